"""Takes the README's screenshot: a workflow in the real frontend, with the images that it made on the demo model.

``python . run tests/screenshot.py [NAME]`` writes .github/screenshot.jpg.
"""

import json
import sys
import time

from PIL import Image

from browser import chromium, graph_image
from harness.environment import ROOT
from harness.server import Server

PLACE = ROOT / ".github" / "screenshot.jpg"
WIDTH = 1400
SHOWN = "app.graph._nodes.filter(n => /Image$/.test(n.type) && /Save|Preview/.test(n.type)).every(n => n.imgs?.length)"


def main(name: str = "diffedit") -> None:
    with Server() as server, graph_image.opened_frontend(chromium.find(), server.url) as page:
        graph_image.open_workflow(page, json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8")))
        page.evaluate("app.queuePrompt(0).then(() => 1)")
        while any(json.loads(server.get("/queue")).values()):
            time.sleep(0.5)
        page.wait_until(SHOWN)
        time.sleep(2)  # until the images are drawn
        made = graph_image.image_of(page, PLACE.with_suffix(".png"))
        left, top, right, bottom = map(round, page.evaluate(graph_image.PLACE))
    with Image.open(made) as whole:
        graph = whole.convert("RGB").crop((left, top, right, bottom))
    made.unlink()
    graph.resize((WIDTH, round(graph.height * WIDTH / graph.width)), Image.Resampling.LANCZOS).save(PLACE, quality=82, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
