"""A new user's way: ComfyUI with one checkpoint and an image, the template "start here", Run, and the image is edited."""

import json
import time

import numpy as np
import pytest
from PIL import Image

import small_models
from browser import chromium
from browser.graph_image import opened_frontend
from graphs import models
from harness.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TEMPLATE = "01 Start here - edit an image by changing words (SDXL)"
CARD = f"document.querySelector('[data-testid=\"template-workflow-{TEMPLATE}\"]')"
# Fewer steps on a small image: the checkpoint of the test knows nothing, and a CPU draws it.
SMALLER = """(() => {
  const most = {steps: 3, megapixels: 0.02}
  for (const widget of app.graph._nodes.flatMap(node => node.widgets ?? [])) widget.value = most[widget.name] ?? widget.value
})()"""
SAME_WORDS = """(() => {
  const [source, target] = app.graph._nodes.filter(node => node.type === 'PrimitiveStringMultiline')
  target.widgets[0].value = source.widgets[0].value
})()"""
RUN = "document.querySelector('[data-testid=\"queue-button\"]')"
RESULT = "app.nodeOutputs[app.graph._nodes.find(node => node.type === 'SaveImage').id]"


@pytest.fixture
def new_server(tmp_path):
    """ComfyUI as installed: its example image, and a small checkpoint of SDXL's layout under its published name."""
    file = tmp_path / "models" / models.SDXL.directory / models.SDXL.name
    file.parent.mkdir(parents=True)
    small_models.write(file, small_models.small_sdxl(), seed=0)
    with Server(base=tmp_path, threads=1) as running:
        yield running


def click(page, element: str) -> None:
    page.wait_until(element, timeout=30)
    page.evaluate(f"{element}.click()")


def saved(server, run: int, patience: float = 400.0):
    """The image that run number `run` saves."""
    deadline = time.monotonic() + patience
    while len(history := json.loads(server.get("/history"))) < run and time.monotonic() < deadline:
        time.sleep(0.2)
    entry = list(history.values())[run - 1]
    assert entry["status"]["status_str"] == "success"
    (place,) = [output["images"][0] for output in entry["outputs"].values() if output.get("images", [{}])[0].get("type") == "output"]
    return server.image(place).convert("RGB")


def difference(one, other) -> float:
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


def test_start_here_edits_an_image(new_server):
    executable = chromium.find()
    if executable is None:
        pytest.skip("There is no Chromium here; install one (Debian: apt-get install chromium) or set CHROMIUM to its path.")
    with opened_frontend(executable, new_server.url) as page:
        page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates').then(() => 1)")
        click(page, CARD)
        page.wait_until("app.graph._nodes.some(node => node.type === 'InversionSampler')", timeout=30)
        page.evaluate(SMALLER)
        click(page, RUN)
        edited = saved(new_server, 1)
        page.wait_until(f"{RESULT}?.images?.length", timeout=30)
        assert page.evaluate("document.querySelectorAll('.p-dialog').length") == 0, "a model is missing, or an error is shown"
        page.evaluate(SAME_WORDS)
        click(page, RUN)
        unedited = saved(new_server, 2)
    with Image.open(new_server.base / "input" / "example.png") as image:
        given = image.convert("RGB").resize(edited.size)
    assert difference(edited, given) > 1 and difference(edited, unedited) > 0.1
