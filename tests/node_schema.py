"""What tests, measures and benchmarks read from a node's schema."""

from controlled_diffusion.nodes.inputs import auto, families


def defaults(node, family: str = "demo") -> dict:
    """The value of each widget of a new node; of a list of options without a default it is the first, of one on auto that of a family."""
    schema = node.GET_SCHEMA()
    known = {i.id: (i.default, getattr(i, "options", None)) for i in schema.inputs if hasattr(i, "default")}
    plain = {k: options[0] if default is None else default for k, (default, options) in known.items() if default is not None or options}
    return plain | {i.id: families.setting(schema.node_id, i.id, family, plain).value for i in auto.auto_inputs(schema.inputs)}
