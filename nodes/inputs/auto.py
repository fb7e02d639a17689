"""Puts in what inputs on auto mean for a node's model, and says on the node what was chosen. families.py has the values and how to use it."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..host import model_tag
from ..host.progress import NodeText, keep
from . import families
from .widgets import AUTOS, AutoCombo


def resolved(schema: io.Schema, given: dict) -> dict:
    """The inputs of a node with values instead of auto, which the node says.

    Inputs of a node without a "model" stay as they are: whoever reads them calls `chosen`.
    """
    if not any(i.id == "model" for i in schema.inputs):
        return given
    waiting = _waiting(schema.inputs, given)
    if not waiting:
        return given
    model = given["model"][0] if schema.is_input_list else given["model"]
    family, flat = model_tag.family(model), _flat(schema.inputs, given, schema.is_input_list)
    found = {name: families.setting(schema.node_id, name, family, flat).value for name in waiting}
    keep(line(family, found))
    return _filled(schema.inputs, given, found, schema.is_input_list)


def chosen(model, node_id: str, given: dict) -> dict:
    """The same for the values of a node `node_id` that has no model of its own, such as one of options: plain values, no lists."""
    family, rows = model_tag.family(model), families.TABLE.get(node_id, {})
    waiting = [name for name, value in given.items() if name in rows and value in (families.AUTO_NUMBER, families.AUTO_CHOICE)]
    found = {name: families.setting(node_id, name, family, given).value for name in waiting}
    keep(line(family, found))
    return {**given, **found}


def line(family: str, found: dict) -> str:
    values = ", ".join(f"{name} {families.shown(value)}" for name, value in found.items())
    return f"auto for {families.label(family)}: {values}" if found else ""


def with_text(made: io.NodeOutput, text: NodeText) -> io.NodeOutput:
    """The outputs of a node whose own text comes after the lines that it kept, and above its progress if there is any text already."""
    shown = made.ui if isinstance(made.ui, dict) else made.ui.as_dict() if made.ui is not None else {}
    own = shown.get("text", ())
    if text.lines:
        made.ui = {**shown, **ui.PreviewText("\n".join((*text.lines, *own))).as_dict()}
    if text.lines or text.progress:
        keep(*own)
    return made


def auto_inputs(inputs) -> list[io.Input]:
    """All inputs that can be auto, those of dynamic options too."""
    inner = [i for each in inputs if isinstance(each, io.DynamicCombo.Input) for o in each.options for i in auto_inputs(o.inputs)]
    return [*(i for i in inputs if isinstance(i, AUTOS)), *inner]


def _options(each: io.Input, given: dict) -> tuple[list[io.Input], dict]:
    """The inputs of the option of a dynamic combo that is chosen, and their values."""
    value = given.get(each.id) if isinstance(each, io.DynamicCombo.Input) else None
    value = value[0] if isinstance(value, list) else value
    return next((o.inputs for o in each.options if o.key == value.get(each.id)), []) if isinstance(value, dict) else [], value


def _is_auto(each: io.Input, value) -> bool:
    return value == (families.AUTO_CHOICE if isinstance(each, AutoCombo) else families.AUTO_NUMBER)


def _waiting(inputs, given: dict) -> list[str]:
    """Names of the inputs on auto; of those left out, too."""
    found = []
    for each in inputs:
        value = given.get(each.id, each.default if isinstance(each, AUTOS) else None)
        if isinstance(each, AUTOS) and any(_is_auto(each, v) for v in (value if isinstance(value, list) else [value])):
            found.append(each.id)
        found += _waiting(*_options(each, given))
    return found


def _flat(inputs, given: dict, lists: bool) -> dict:
    """Plain values by name: the first of lists, and those of chosen options beside the others."""
    plain = {i.id: given[i.id][0] if lists and given.get(i.id) else given.get(i.id) for i in inputs}
    for each in inputs:
        own, values = _options(each, plain)
        if own:
            plain |= _flat(own, values, False)
        if isinstance(values, dict):
            plain[each.id] = values.get(each.id)
    return plain


def _filled(inputs, given: dict, found: dict, lists: bool) -> dict:
    made = dict(given)
    for each in inputs:
        if each.id in found and isinstance(each, AUTOS):
            values = given.get(each.id, [each.default])
            put = [found[each.id] if _is_auto(each, v) else v for v in (values if isinstance(values, list) else [values])]
            made[each.id] = put if lists else put[0]
        elif options := _options(each, given)[0]:
            filled = _filled(options, _options(each, given)[1], found, False)
            made[each.id] = [filled] if lists else filled
    return made
