"""Prompt-to-Prompt on the demo model: `python . run tests/measures/prompt_to_prompt.py [--count 200]`.

Scenes that the model was never trained on are drawn from their captions, and edited by every operation: a color or a shape swapped, a
texture or a size put in, a texture taken out, the order of two things turned round, the background swapped, a noun strengthened or
weakened. Each edit is drawn three times from one noise: without the patch, by Prompt-to-Prompt, and with all attention replaced. An
edit succeeds if the checker reads the target in it; the things of source and edit are compared by overlap (IoU), and what should stay,
which is all but the changed thing, by PSNR. What is measured is kept in .host/measures, so that a run that was stopped goes on.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.demo.files import FILES

from demo.any_world import in_one
from demo.world import BACKGROUNDS, COLORS, PAIR_PLACES, SHAPES, Caption, Claim, Scene, Thing, thing_masks
from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from harness.host import PRIVATE
from host import editing
from measures.diffedit import caption, held_out
from measures.script import head, options_of, percent, row, say

PATH = PRIVATE / "measures" / "prompt_to_prompt.json"
FIRST = 1000  # number of the first scene; the settings below were chosen on those from 0
ROOM = 2  # pixels around things that count neither as thing nor as background
GROWN = 1.05  # how much larger or smaller a noun's thing must become
STYLE = dict(cross_end=0.8, self_end=0.6)
LAYOUT = STYLE | dict(blend_words="*", blend_threshold=0.6, blend_start=0.1)
LOOSE = dict(blend_words="*", blend_threshold=0.3, blend_start=0.2)
TAKEN_OUT = dict(cross_end=0.5, self_end=0.4) | LOOSE
FREE = dict(cross_end=0.5, self_end=0.1) | LOOSE
PLACED = dict(cross_end=0.8, self_end=0.4) | LOOSE
WEIGHED = dict(cross_end=1.0, self_end=0.0)
WAYS = {
    "no patch": dict(cross_end=0.0, self_end=0.0),
    "Prompt-to-Prompt": {},
    "everything": dict(cross_end=1.0, self_end=1.0, self_layers="all"),
}


@dataclass(frozen=True)
class Edit:
    """`weights`: of words. `grows`: by how much the first thing should change its area, 1 for no matter. `stays`: what should stay as it
    is, "the rest" being all but the first thing."""

    target: Caption
    weights: str = ""
    grows: float = 1.0
    stays: str = "the rest"


def one_of(rng: np.random.Generator, values, *but):
    return [v for v in values if v not in but][int(rng.integers(len([v for v in values if v not in but])))]


def with_first(scene: Scene, **changes) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **changes), *scene.things[1:]))


def plain(scene: Scene) -> Scene:
    return with_first(scene, texture="plain", size="medium")


def swapped(what: str, values) -> Callable:
    def edit(scene: Scene, rng) -> Edit:
        taken = [getattr(t, what) for t in scene.things]
        return Edit(caption(with_first(scene, **{what: one_of(rng, values, *taken)})))

    return edit


def inserted(what: str, *values: str) -> Callable:
    def edit(scene: Scene, rng) -> Edit:
        made = with_first(scene, **{what: one_of(rng, values)})
        told, size = caption(made), made.things[0].size
        first = replace(told.claims[0], size=size if what == "size" else None)
        return Edit(replace(told, claims=(first, *told.claims[1:])))

    return edit


def weighed(weight: float, grows: float) -> Callable:
    def edit(scene: Scene, rng) -> Edit:
        return Edit(caption(scene), f"{scene.things[0].shape}: {weight}", grows)

    return edit


def restyled(scene: Scene, rng) -> Edit:
    return Edit(caption(replace(scene, background=one_of(rng, BACKGROUNDS, scene.background))), stays="things")


def reordered(scene: Scene, rng) -> Edit:
    made = caption(scene)
    first, second = made.text.removesuffix(f" on a {scene.background} background").split(" and ")
    claims = tuple(replace(c, position=p) for c, p in zip(made.claims, PAIR_PLACES[scene.layout]))
    return Edit(Caption(f"{second} and {first} on a {scene.background} background", claims, scene.background), stays="all")


# A group of edits shares its sources: how many things they have, what is done to them first, and the edits with the settings for each.
GROUPS = {
    "swap": ((1, 2), plain, {"swap a color": (swapped("color", COLORS), LAYOUT), "swap a shape": (swapped("shape", SHAPES), PLACED)}),
    "change": (
        (1, 2),
        plain,
        {
            "insert a texture": (inserted("texture", "striped", "dotted"), LAYOUT),
            "insert a size": (inserted("size", "small", "large"), FREE),
            "swap the background": (restyled, STYLE),
            "strengthen a noun": (weighed(4.0, GROWN), WEIGHED),
            "weaken a noun": (weighed(0.0, 1 / GROWN), WEIGHED),
        },
    ),
    "delete": ((1, 2), lambda scene: with_first(scene, texture="striped"), {"delete a texture": (inserted("texture", "plain"), TAKEN_OUT)}),
    "reorder": ((2,), lambda scene: scene, {"reorder two things": (reordered, LAYOUT)}),
}


def drawn(studio: Studio, seed: int, source: str, edits: list[Edit], **knobs) -> np.ndarray:
    """The source's image, then one for each edit, from the same noise: uint8 (1 + edits, H, W, 3)."""
    targets = "\n".join(e.target.text for e in edits)
    weights = "\n".join(e.weights or "on: 1" for e in edits) if any(e.weights for e in edits) else ""
    given = dict(latent={"samples": torch.zeros(1, 4, studio.side, studio.side)}, word_weights=weights) | knobs
    model, positive, negative, latent, _ = editing.patch(studio.model, studio.clip, targets, source, **given)
    noise = comfy.sample.prepare_noise(latent["samples"], seed, latent["batch_index"])
    settings = (STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent["samples"])
    return studio.images(comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=seed))


def covered(things, size: int = 128) -> np.ndarray:
    """Where any of the things is, bool (size, size)."""
    return in_one([t.mask for t in things], size)


def named(reading: checker.Reading, thing: Thing | Claim) -> list[checker.Seen]:
    """The things of an image of that shape and color."""
    return [t for t in reading.things if (t.shape, t.color) == (thing.shape, thing.color)]


def succeeded(before: checker.Reading, after: checker.Reading, edit: Edit, thing: Thing) -> bool:
    """Whether everything that the target claims is there, or a noun's thing became larger or smaller."""
    if edit.grows == 1.0:
        return all(checker.judge(after, edit.target).values())
    one, other = (int(covered(named(r, thing)).sum()) for r in (before, after))
    return other >= edit.grows * one if edit.grows > 1 else 0 < other <= edit.grows * one


def widened(mask: np.ndarray, cells: int = ROOM) -> np.ndarray:
    return torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2 * cells + 1, 1, cells)[0].numpy() > 0


def staying(before: checker.Reading, after: checker.Reading, edit: Edit, thing: Thing) -> np.ndarray:
    """The pixels that should stay as they are."""
    if edit.stays == "all":
        return np.ones((128, 128), bool)
    if edit.stays == "things":
        return ~widened(~(covered(before.things) & covered(after.things)))
    changed = [named(before, thing) or before.things, named(after, edit.target.claims[0]) or after.things]
    return ~widened(covered([t for things in changed for t in things]))


def judged(before: np.ndarray, after: np.ndarray, edit: Edit, scene: Scene) -> list[float]:
    """(success, IoU of the things of both, PSNR of what should stay)."""
    one, other = checker.read(before), checker.read(after)
    a, b, kept = covered(one.things), covered(other.things), staying(one, other, edit, scene.things[0])
    error = np.square((before.astype(float) - after)[kept] / 255).mean() if kept.any() else 1.0
    success = succeeded(one, other, edit, scene.things[0])
    return [float(success), float((a & b).sum() / max((a | b).sum(), 1)), float(-10 * np.log10(max(error, 1e-12)))]


def runs_of(edits: dict[str, Edit], settings: dict[str, dict], way: str) -> list[tuple[list[str], dict]]:
    """(operations, settings) of every run: one for all, or for Prompt-to-Prompt one for all that want the same settings."""
    if WAYS[way]:
        return [(list(edits), WAYS[way])]
    different = [s for i, s in enumerate(settings.values()) if s not in list(settings.values())[:i]]
    return [([name for name in edits if settings[name] == knobs], knobs) for knobs in different]


@torch.inference_mode()
def measured(studio: Studio, group: str, index: int, ways=tuple(WAYS)) -> dict[str, dict[str, list[float]]]:
    """{way: {operation: numbers}} of edit number `index` of every operation of a group."""
    counts, prepare, operations = GROUPS[group]
    scene = prepare(held_out(FIRST + index, counts[index % len(counts)] == 2))
    edits = {name: make(scene, np.random.default_rng((12, index, i))) for i, (name, (make, _)) in enumerate(operations.items())}
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for way in ways:
        for names, knobs in runs_of(edits, {name: settings for name, (_, settings) in operations.items()}, way):
            before, *after = drawn(studio, index, caption(scene).text, [edits[n] for n in names], **knobs)
            found[way] |= {n: judged(before, image, edits[n], scene) for n, image in zip(names, after)}
    return found


class Kept:
    """What was measured of each group so far, in a file; a group begins anew when the model or its settings are others."""

    def __init__(self):
        weights = hashlib.sha256(FILES["shapes"].model.read_bytes()).hexdigest()
        shared = {"first": FIRST, "ways": WAYS, "steps": STEPS, "sampler": SAMPLER, "weights": weights}
        held = json.loads(PATH.read_text()) if PATH.exists() else {}
        self.about = {
            group: {**shared, "settings": {name: settings for name, (_, settings) in operations.items()}}
            for group, (_, _, operations) in GROUPS.items()
        }
        known = {group: part["found"] for group, part in held.items() if part["about"] == self.about.get(group)}
        self.groups: dict[str, list] = {group: known.get(group, []) for group in GROUPS}

    def add(self, group: str, found: dict) -> None:
        self.groups[group].append(found)
        PATH.parent.mkdir(parents=True, exist_ok=True)
        temporary = PATH.with_suffix(".partial")
        temporary.write_text(json.dumps({g: {"about": self.about[g], "found": rows} for g, rows in self.groups.items()}))
        os.replace(temporary, PATH)


def redrawn(count: int) -> float:
    """The IoU of the things of a scene and of the same with the shape swapped, both drawn by the world at one place: what a perfect
    edit has."""
    (counts, prepare, operations), overlaps = GROUPS["swap"], []
    number, (make, _) = next((i, operation) for i, (name, operation) in enumerate(operations.items()) if name == "swap a shape")
    for index in range(count):
        scene = prepare(held_out(FIRST + index, counts[index % len(counts)] == 2))
        shape = make(scene, np.random.default_rng((12, index, number))).target.claims[0].shape
        a, b = (np.any(thing_masks(s), axis=0) for s in (scene, with_first(scene, shape=shape)))
        overlaps.append((a & b).sum() / (a | b).sum())
    return float(np.mean(overlaps))


def table(kept: Kept, count: int) -> str:
    """A line for each operation: success, IoU and PSNR of every way."""
    lines = ["Edit success · IoU of the things of source and edit · PSNR of what should stay\n", head("operation", "edits", *WAYS)]
    for group, (_, _, operations) in GROUPS.items():
        found = kept.groups[group][:count]
        for name in operations if found else ():
            means = [np.mean([e[way][name] for e in found], axis=0) for way in WAYS]
            cells = [f"{percent(success)} · {iou:.2f} · {psnr:.1f} dB" for success, iou, psnr in means]
            lines.append(row(name, len(found), *cells))
    if swaps := len(kept.groups["swap"][:count]):
        lines.append(f"\nA shape swapped by the world itself, the thing at its place and size: IoU {redrawn(swaps):.2f}.")
    return "\n".join(lines)


@torch.inference_mode()
def weights(studio: Studio, count: int) -> str:
    """How much a weight of 4 changes the first thing, by the words that have it: RMS of its pixels, in [0, 1]."""
    changes = []
    for index in range(count):
        scene = plain(held_out(FIRST + index, index % 2 == 1))
        told, thing = caption(scene), scene.things[0]
        lines = f"{thing.color}: 4", f"{thing.shape}: 4", f"{thing.color} {thing.shape}: 4"
        before, *after = drawn(studio, index, told.text, [Edit(told, line) for line in lines], **WEIGHED) / 255
        found = covered(named(checker.read((before * 255).astype(np.uint8)), thing))
        changes += [[np.sqrt(np.square(image - before)[found].mean()) for image in after]] if found.any() else []
    means = [f"{n:.3f}" for n in np.mean(changes, axis=0)]
    return "\n".join((head(f"a weight of 4 on ({len(changes)} things)", "color", "noun", "both"), row("RMS of the thing's pixels", *means)))


def main() -> None:
    only = dict(nargs="*", choices=list(GROUPS), default=list(GROUPS), help="some of the groups of operations")
    shown = dict(action="store_true", help="print what has been measured, and measure nothing")
    weighed = (0, "measure word weights on so many scenes instead")
    options, kept = options_of(__doc__, count=(200, "edits of each operation"), only=only, table=shown, weights=weighed), Kept()
    if options.weights:
        say(weights(Studio(), options.weights))
        return
    if not options.table:
        studio = Studio()
        for index, group in product(range(options.count), options.only):
            if len(kept.groups[group]) == index:
                kept.add(group, measured(studio, group, index))
                say(f"{group}: {index + 1} of {options.count}")
    say(table(kept, options.count))


if __name__ == "__main__":
    main()
