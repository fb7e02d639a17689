"""Images of graphs as the browser shows them: thumbnails of templates whose models are not at hand."""

import contextlib
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageDraw, ImageOps

from browser import chromium
from harness.contact_sheet import font

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
PAPER, INK = "#202020", "#f0f0f0"
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


def thumbnail(page, workflow: Path, side: int = 512) -> None:
    """A square with the workflow's name and its whole graph, beside the workflow."""
    open_workflow(page, json.loads(workflow.read_text(encoding="utf-8")))
    image = image_of(page, workflow.with_suffix(".png"))
    with Image.open(image) as whole:
        graph = whole.convert("RGB").crop(tuple(map(round, page.evaluate(PLACE))))
    image.unlink()
    named(graph, workflow.stem.partition(" ")[2], side).save(workflow.with_suffix(".jpg"), quality=88)


def named(graph: Image.Image, name: str, side: int) -> Image.Image:
    """An image under its name."""
    paper = Image.new("RGB", (side, side), PAPER)
    lines = textwrap.fill(name, 24)
    ImageDraw.Draw(paper).multiline_text((24, 24), lines, INK, font(36), spacing=10)
    top = 24 + 48 * (lines.count("\n") + 1) + 24
    fitting = ImageOps.contain(graph, (side, side - top), Image.Resampling.LANCZOS)
    paper.paste(fitting, ((side - fitting.width) // 2, (top + side - fitting.height) // 2))
    return paper
