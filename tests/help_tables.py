"""Writes the tables of settings by model family into the help pages: `python . run tests/help_tables.py`."""

import re
from pathlib import Path

from controlled_diffusion.nodes import MODULES
from controlled_diffusion.nodes.inputs.auto import auto_inputs
from controlled_diffusion.nodes.inputs.families import page_table

DOCS = Path(__file__).resolve().parents[1] / "nodes" / "web" / "docs"
SCHEMAS = [node.GET_SCHEMA() for module in MODULES for node in module.NODES]
ON_AUTO = {schema.node_id for schema in SCHEMAS if auto_inputs(schema.inputs)}
SECTION, FIRST = "## Typical values", "| auto |"
BLOCK = re.compile(rf"^{re.escape(FIRST)}.*\n(?:\|.*\n)*\n?", re.MULTILINE)


def rewritten(page: str, node_id: str) -> str:
    """A help page with the node's table first under "Typical values", or without one."""
    bare = BLOCK.sub("", page)
    return bare.replace(f"{SECTION}\n\n", f"{SECTION}\n\n{page_table(node_id)}\n\n") if node_id in ON_AUTO else bare


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(rewritten(page, path.stem), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
