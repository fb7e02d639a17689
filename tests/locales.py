"""Says what the translations in locales/ lack, or have too much: `python . run tests/locales.py`.

A locales/<language>/nodeDefs.json has names, descriptions and tooltips of all nodes, as ComfyUI's frontend looks them up. The English texts
are in the schemas alone. What a translation must take over from them unchanged is compared: numbers, quoted values, ids and placeholders.
"""

import json
import re
from collections import Counter
from pathlib import Path

from comfy_api.latest import io
from controlled_diffusion.nodes import MODULES

FOLDER = Path(__file__).resolve().parents[1] / "locales"
NUMBER = re.compile(r"(?:(?<![A-Za-z0-9.])-)?\d+(?:\.\d+)?(?:e-?\d+)?")
QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)", re.ASCII)  # also between letters that are not
# Ids such as blend_words and s_T, embedding:name, {caption} and {}, <concept>, %year%, paths such as models/ipadapter.
FIXED = re.compile(r"[A-Za-z]\w*_\w+|embedding:\w+|\{\w*\}|<\w+>|%\w+%|\b[a-z]\w+(?:/\w+)+", re.ASCII)
FOREIGN = re.compile(r"[^\x00-\u024f\u2000-\u206f]")  # a letter that English texts do not have
ENGLISH = re.compile(r"(?:\b[A-Za-z_]+[ ,]+){4}[A-Za-z_]+")  # five words in a row
SENTENCE_END = re.compile(r"(?<=\.) (?=[^a-z])")
MARKUP = re.compile(r"[@{}|%]")  # the frontend reads these as markup, in all texts but tooltips


def languages() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir())


def texts(schema: io.Schema) -> dict[str, str]:
    """The English texts of a node by their place, as 'inputs.steps.tooltip'."""
    found = {"display_name": schema.display_name, "description": schema.description}
    for name, each in inputs(schema.inputs):
        shown = (each.template.input if isinstance(each, io.Autogrow.Input) else each).tooltip
        before = found.get(f"inputs.{name}.tooltip", "")
        found |= {f"inputs.{name}.name": each.id, f"inputs.{name}.tooltip": both(before, shown)}
    for index, each in enumerate(schema.outputs):
        found |= {f"outputs.{index}.name": each.display_name, f"outputs.{index}.tooltip": each.tooltip}
    return found


def both(before: str, shown: str) -> str:
    """Two tooltips as one: each sentence once."""
    return " ".join(dict.fromkeys(sentence for text in (before, shown) for sentence in SENTENCE_END.split(text) if sentence))


def inputs(given, prefix: str = ""):
    """(name, input) of all inputs. In the frontend's keys the dots before inputs of a dynamic combo are underscores.

    Inputs of the same name in several options have one key, and so one text that has to say it for all.
    """
    for each in given:
        yield prefix + each.id, each
        for option in each.options if isinstance(each, io.DynamicCombo.Input) else ():
            yield from inputs(option.inputs, f"{prefix}{each.id}_")


def flat(given: dict, prefix: str = "") -> dict[str, str]:
    """Nested texts by their place."""
    found = {}
    for key, value in given.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def english() -> dict[str, str]:
    """All texts of the pack by their place, as 'DDIMInverter.inputs.steps.tooltip'."""
    return flat({schema.node_id: texts(schema) for module in MODULES for schema in (node.GET_SCHEMA() for node in module.NODES)})


def translated(language: str) -> dict[str, str]:
    return flat(json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8")))


def problems(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """What is wrong with a translation, a line each."""
    missing = [f"missing: {place}: {text}" for place, text in ours.items() if not theirs.get(place)]
    left_over = [f"left over: {place}" for place in theirs if place not in ours]
    return missing + left_over + [f"{place}: {fault}" for place in ours if theirs.get(place) for fault in faults(place, ours[place], theirs[place])]


def faults(place: str, text: str, translation: str) -> list[str]:
    if place.endswith(".name"):
        return markup(translation)
    if place.endswith((".display_name", ".description")):
        return markup(translation) + changed(text, translation)
    return changed(text, translation)


def markup(translation: str) -> list[str]:
    return [f"{found} is markup there" for found in MARKUP.findall(translation)]


def changed(text: str, translation: str) -> list[str]:
    """What a translated sentence has other than the English one."""
    pairs = {
        "numbers": (Counter(NUMBER.findall(text)), Counter(NUMBER.findall(translation))),
        "quoted values": (Counter(QUOTED.findall(text)), Counter(QUOTED.findall(translation))),
        "ids and placeholders": (Counter({*FIXED.findall(text)}), Counter({*FIXED.findall(translation)})),
    }
    found = [f"{what} {[*before.elements()]} became {[*after.elements()]}" for what, (before, after) in pairs.items() if before != after]
    if not FOREIGN.search(translation) or ENGLISH.search(QUOTED.sub("", translation)):
        found.append(f"not translated: {translation}")
    return found


def main() -> None:
    ours = english()
    for language in languages():
        lines = problems(ours, translated(language))
        print(f"{language}: {len(ours)} texts, {len(lines)} problems", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
