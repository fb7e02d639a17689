"""What tests, measures and benchmarks read from a node's schema."""

from comfy_api.latest import io
from controlled_diffusion.nodes.inputs import auto, families
from controlled_diffusion.nodes.inputs.fit import FitInput


def defaults(node, family: str = "demo") -> dict:
    """The value that `execute` gets of each widget of a new node: of options without a default the first, of one on auto that of a family."""
    schema = node.GET_SCHEMA()
    values = _values(schema.inputs)
    for name in (i.id for i in auto.auto_inputs(schema.inputs)):
        holder = _holder(values, name)
        if name in holder:
            holder[name] = families.setting(schema.node_id, name, family, values).value
    return values


def with_settings(node, **settings) -> dict:
    """Defaults with other settings, each where the node has it: its own, or one of a dynamic combo's first option."""
    values = defaults(node)
    for name, value in settings.items():
        _holder(values, name)[name] = value
    return values


def _holder(values: dict, name: str) -> dict:
    """The values that a setting stands in: a dynamic combo's, or the node's own."""
    return next((v for v in values.values() if isinstance(v, dict) and name in v and name not in values), values)


def _values(inputs) -> dict:
    combos = {i.id: {i.id: i.options[0].key, **_values(i.options[0].inputs)} for i in inputs if isinstance(i, io.DynamicCombo.Input)}
    known = {i.id: (i.default, getattr(i, "options", None)) for i in inputs if hasattr(i, "default") and not isinstance(i, FitInput)}
    values = {k: options[0] if default is None else default for k, (default, options) in known.items() if default is not None or options}
    return values | combos
