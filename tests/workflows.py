"""Writes example_workflows/ and subgraphs/: `python . run tests/workflows.py` lays the graphs of tests/graphs/ out.

`--thumbnails` also runs them. A workflow may as well be saved from the browser; the script keeps them alike. `--only NAME ...` does a few of them: names of functions.
Templates for published models are not run: their thumbnails show what the demo model makes of the same task.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from PIL import Image, ImageOps

import graphs
import small_models
from graphs import blueprints, thumbnails
from graphs.parts import own_model
from harness.blueprint import Blueprint
from harness.graph import Graph
from harness.server import Server
from harness.workflow import to_prompt

FOLDER = Path(__file__).parents[1] / "example_workflows"
PAGES = Path(__file__).parents[1] / "nodes" / "web" / "docs"
BLUEPRINTS = FOLDER.with_name("subgraphs")


def workflows() -> list:
    """All functions that draw a workflow, technique by technique."""
    modules = (importlib.import_module(f"graphs.{m.name}") for m in pkgutil.iter_modules(graphs.__path__))
    return [draw for module in modules for draw in getattr(module, "WORKFLOWS", ())]


def file_name(draw) -> str:
    """The name of a workflow's file without its ending; templates for published models have one in words."""
    return getattr(draw, "file_name", draw.__name__)


def chosen(groups: list[list]) -> list:
    """Four of the images that the nodes of a workflow make: of many nodes the first and the last three, of few some of each."""
    groups = [groups[0], *groups[-3:]] if len(groups) > 4 else groups
    shares = {1: (4,), 2: (2, 2), 3: (1, 1, 2), 4: (1, 1, 1, 1)}[len(groups)]
    images = [p for group, share in zip(groups, shares) for p in group[:share]]
    rest = [p for group, share in reversed(list(zip(groups, shares))) for p in group[share:]]
    return [*images, *rest, *[images[-1]] * 3][:4]


def thumbnail(server: Server, path: Path) -> None:
    """Four images of what the workflow makes, or the only one, beside it."""
    made = [batch for batch in server.images_by_node(server.run(to_prompt(path, server.object_info()))).values() if batch]
    images = made[0] if sum(map(len, made)) == 1 else chosen(made)
    side = 512 if len(images) == 1 else 256
    paper = Image.new("RGB", (512, 512))
    for i, image in enumerate(images):
        tile = ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")
        paper.paste(tile, (i % 2 * side, i // 2 * side))
    paper.save(path.with_suffix(".jpg"), quality=88)


def task_thumbnail(describe, path: Path) -> None:
    """For a template whose model is not at hand."""
    model = path.stem.rpartition("(")[2].rstrip(")")
    thumbnails.draw(describe.shown, model, FOLDER).save(path.with_suffix(".jpg"), quality=85, optimize=True)


def help_image(path: Path) -> None:
    """A smaller copy of a thumbnail beside the help pages that show it: ComfyUI serves that folder alone."""
    place = PAGES / f"{path.stem}.jpg"
    if any(f"({place.name})" in page.read_text("utf-8") for page in PAGES.glob("*.md")):
        with Image.open(path.with_suffix(".jpg")) as whole:
            whole.resize((384, 384), Image.Resampling.LANCZOS).save(place, quality=85, optimize=True)


def draw_blueprint(describe, object_info) -> Path:
    """Writes a subgraph for the node library."""
    title, *texts = describe.text
    blueprint = Blueprint(title, object_info, *texts)
    describe(blueprint)
    return blueprint.save(BLUEPRINTS / f"{title}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thumbnails", action="store_true", help="run the workflows and draw their thumbnails")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these workflows alone")
    options = parser.parse_args()
    with Server() as server:
        small_models.offer(server.base)
        for describe in blueprints.BLUEPRINTS:
            if not options.only or describe.__name__ in options.only:
                sys.stdout.write(f"{draw_blueprint(describe, server.object_info()).name}\n")
        for describe in workflows():
            if options.only and describe.__name__ not in options.only:
                continue
            graph = Graph(file_name(describe), server.object_info())
            describe(graph)
            if not graph.models:
                graph.add_to_note(own_model(graph))
            path = graph.save(FOLDER / f"{file_name(describe)}.json")
            if options.thumbnails:
                task_thumbnail(describe, path) if graph.models else thumbnail(server, path)
                help_image(path)
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
