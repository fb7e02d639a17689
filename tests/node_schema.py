"""What tests, measures and benchmarks read from a node's schema."""

from comfy_api.latest import io
from controlled_diffusion.nodes.inputs import auto, families
from controlled_diffusion.nodes.inputs.fit import FitInput


def defaults(node, family: str = "demo", **chosen: str) -> dict:
    """The value that `execute` gets of each widget of a new node: of options without a default the first, of one on auto that of a family.

    `chosen` are other options of dynamic combos than the first.
    """
    schema = node.GET_SCHEMA()
    values = _values(schema.inputs, chosen)
    flat = values | {name: value[name] for name, value in values.items() if isinstance(value, dict)}
    for name in (i.id for i in auto.auto_inputs(schema.inputs)):
        holder = _holder(values, name)
        if name in holder:
            holder[name] = families.setting(schema.node_id, name, family, flat).value
    return values


def with_settings(node, **settings) -> dict:
    """Defaults with other settings, each where the node has it: its own, or one of a dynamic combo's option.

    An option is chosen by its name, or by a dictionary of it and of settings that come before all others. Settings of options that are not
    chosen are left out.
    """
    inputs = node.GET_SCHEMA().inputs
    combos = [i for i in inputs if isinstance(i, io.DynamicCombo.Input)]
    inner = {own.id for each in combos for option in each.options for own in option.inputs} - {i.id for i in inputs}
    named = {i.id: settings[i.id] for i in combos if i.id in settings}
    values = defaults(node, **{name: given[name] if isinstance(given, dict) else given for name, given in named.items()})
    for name in settings.keys() - named.keys():
        holder = _holder(values, name)
        if holder is not values or name not in inner:
            holder[name] = settings[name]
    for name, given in named.items():
        values[name] |= given if isinstance(given, dict) else {}
    return values


def _holder(values: dict, name: str) -> dict:
    """The values that a setting stands in: a dynamic combo's, or the node's own."""
    return next((v for v in values.values() if isinstance(v, dict) and name in v and name not in values), values)


def _option(combo: io.DynamicCombo.Input, key: str | None) -> dict:
    option = next((o for o in combo.options if o.key == key), combo.options[0])
    return {combo.id: option.key, **_values(option.inputs, {})}


def _values(inputs, chosen: dict) -> dict:
    combos = {i.id: _option(i, chosen.get(i.id)) for i in inputs if isinstance(i, io.DynamicCombo.Input)}
    known = {i.id: (i.default, getattr(i, "options", None)) for i in inputs if hasattr(i, "default") and not isinstance(i, FitInput)}
    values = {k: options[0] if default is None else default for k, (default, options) in known.items() if default is not None or options}
    return values | combos


def widgets(node) -> tuple[int, int]:
    """(all widgets that the frontend draws for a node, those before advanced ones are opened)"""
    inputs = node.GET_SCHEMA().inputs
    return _drawn(inputs, True), _drawn(inputs, False)


def _drawn(inputs, advanced: bool) -> int:
    """A seed's control is a widget of its own, a dynamic combo has those of its largest choice."""
    count = 0
    for given in inputs:
        if isinstance(given, io.DynamicCombo.Input):
            count += 1 + max(_drawn(option.inputs, advanced) for option in given.options)
        elif isinstance(given, io.WidgetInput) and not given.force_input and (advanced or not given.advanced):
            count += 1 + bool(getattr(given, "control_after_generate", None))
    return count
