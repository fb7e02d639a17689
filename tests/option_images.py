"""Takes the images of the help pages of option nodes: the node in the real frontend, connected to one that takes its options.

``python . run tests/option_images.py`` writes them beside the pages.
"""

import json
from pathlib import Path

from PIL import Image

from browser import chromium, graph_image
from harness.environment import ROOT
from harness.server import Server

PAGES = ROOT / "nodes" / "web" / "docs"
SHOWN = {  # page: a workflow that has the node, the node
    "dataset_options": ("dreambooth", "DatasetOptions"),
    "p2p_options": ("prompt_to_prompt_style", "P2POptions"),
    "pair_options": ("instruct_pairs", "PairOptions"),
    "training_options": ("classifier_training", "TrainingOptions"),
    "validation_options": ("dreambooth", "ValidationOptions"),
}
# Leaves the two nodes alone, side by side at their real size, and gives the box around them in pixels of the page.
ALONE = """(() => {
  const options = app.graph._nodes.find(node => node.type === %s)
  const pair = [options, options.getOutputNodes(0)[0]]
  for (const node of [...app.graph._nodes]) if (!pair.includes(node)) app.graph.remove(node)
  for (const group of [...app.graph._groups]) app.graph.remove(group)
  pair[0].pos = [0, 0]
  pair[1].pos = [pair[0].size[0] + 80, 0]
  app.canvas.ds.scale = 1.5
  app.canvas.ds.offset = [100, 100]
  app.canvas.setDirty(true, true)
  const {top, left} = app.canvas.canvas.getBoundingClientRect()
  const right = pair[1].pos[0] + pair[1].size[0], bottom = Math.max(pair[0].size[1], Math.min(pair[1].size[1], 300))
  return [left + 80 * 1.5, top + 50 * 1.5, left + (120 + right) * 1.5, top + (115 + bottom) * 1.5]
})()"""
WIDTH = 800


def take(page, name: str, workflow: str, node: str) -> Path:
    graph_image.open_workflow(page, json.loads((ROOT / "example_workflows" / f"{workflow}.json").read_text("utf-8")))
    page.evaluate(graph_image.VIEW_AT_REST)
    box = page.evaluate(ALONE % json.dumps(node))
    taken, place = graph_image.image_of(page, PAGES / f"{name}.png"), PAGES / f"{name}.jpg"
    with Image.open(taken) as whole:
        part = whole.convert("RGB").crop(tuple(map(round, box)))
    taken.unlink()
    part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS).save(place, quality=85, optimize=True)
    return place


def main() -> None:
    with Server() as server, graph_image.opened_frontend(chromium.find(), server.url) as page:
        for name, shown in SHOWN.items():
            print(take(page, name, *shown).name)


if __name__ == "__main__":
    main()
