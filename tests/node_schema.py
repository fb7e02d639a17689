"""What tests, measures and benchmarks read from a node's schema."""


def defaults(node) -> dict:
    """The value of each widget of a new node; of a list of options without a default it is the first."""
    known = {i.id: (i.default, getattr(i, "options", None)) for i in node.GET_SCHEMA().inputs if hasattr(i, "default")}
    return {k: options[0] if default is None else default for k, (default, options) in known.items() if default is not None or options}
