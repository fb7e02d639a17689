"""Images of graphs as the browser shows them."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from browser import chromium

READY = "window.app?.graph && window.LiteGraph && Object.keys(LiteGraph.registered_node_types).length > 100"
# A whole graph fits the image, with its text, and nothing lies over it.
READABLE = {"LiteGraph.Canvas.MinFontSizeForLOD": "0", "Comfy.Minimap.Visible": "false", "Comfy.VueNodes.Enabled": "false"}
# Resolves when the view, which glides to its place, has been the same for five frames.
VIEW_AT_REST = """new Promise(done => {
  let last, same = 0
  const look = () => {
    const now = String([app.canvas.ds.scale, ...app.canvas.ds.offset])
    same = now === last ? same + 1 : 0
    last = now
    same < 5 ? requestAnimationFrame(look) : done(1)
  }
  look()
})"""
# Left, top, right and bottom of the whole graph without its note, in pixels of the page.
PLACE = """(() => {
  const {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect()
  const parts = [...app.graph._nodes.filter(node => node.type !== 'MarkdownNote'), ...app.graph._groups]
  const boxes = parts.map(part => [...(part.getBounding?.() ?? part._bounding)])
  const ends = [0, 1].map(axis => [Math.min(...boxes.map(b => b[axis])), Math.max(...boxes.map(b => b[axis] + b[axis + 2]))])
  const at = (value, axis) => (value + offset[axis]) * scale + (axis ? canvas.top : canvas.left)
  return [at(ends[0][0], 0), at(ends[1][0], 1), at(ends[0][1], 0), at(ends[1][1], 1)]
})()"""


@contextlib.contextmanager
def opened_frontend(executable: str, url: str, settings: Mapping[str, str] = MappingProxyType({})):
    """A page with the frontend and an empty graph."""
    with chromium.Page(executable, width=2400, height=1350) as page:
        page.open(url)
        page.wait_until(READY)
        for setting, value in {**READABLE, **settings}.items():
            page.evaluate(f"app.extensionManager.setting.set('{setting}', {value}).then(() => 1)")
        page.wait_for_network()
        yield page


def open_workflow(page, workflow: dict) -> None:
    page.take_errors()
    page.evaluate(f"app.loadGraphData({json.dumps(workflow)}).then(() => 1)")
    page.wait_until(f"app.graph._nodes.length === {len(workflow['nodes'])}", timeout=10)
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView').then(() => 1)")


def image_of(page, path: Path) -> Path:
    page.evaluate(VIEW_AT_REST)
    return page.screenshot(path)
