"""Writes example_workflows/: `python . run tests/workflows.py` lays the graphs of tests/graphs/ out, `--thumbnails` also runs them.

A workflow may as well be saved from the browser; the script keeps them alike. `--only NAME ...` does a few of them.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from PIL import Image

import graphs
from harness.graph import Graph
from harness.server import Server
from harness.workflow import to_prompt

FOLDER = Path(__file__).parents[1] / "example_workflows"


def workflows() -> list:
    """All functions that draw a workflow, technique by technique."""
    modules = (importlib.import_module(f"graphs.{m.name}") for m in pkgutil.iter_modules(graphs.__path__))
    return [draw for module in modules for draw in getattr(module, "WORKFLOWS", ())]


def thumbnail(server: Server, path: Path) -> None:
    """Four pictures of what the workflow makes, beside it: of two or more nodes, two of the first and two of the last."""
    made = server.images_by_node(server.run(to_prompt(path, server.object_info()))).values()
    groups = [[p.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS) for p in batch if p.width == p.height] for batch in made]
    groups = [g for g in groups if g]
    pictures = groups[0][:2] + groups[-1][:2] if len(groups) > 1 and len(groups[0]) > 1 else [p for g in groups for p in g]
    pictures = [*pictures, *[pictures[-1]] * 3][:4]
    paper = Image.new("RGB", (512, 512))
    for i, picture in enumerate(pictures):
        paper.paste(picture, (i % 2 * 256, i // 2 * 256))
    paper.save(path.with_suffix(".jpg"), quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thumbnails", action="store_true", help="run the workflows and draw their thumbnails")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these workflows alone")
    options = parser.parse_args()
    with Server() as server:
        for describe in workflows():
            if options.only and describe.__name__ not in options.only:
                continue
            graph = Graph(describe.__name__, server.object_info())
            describe(graph)
            path = graph.save(FOLDER / f"{describe.__name__}.json")
            if options.thumbnails:
                thumbnail(server, path)
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
