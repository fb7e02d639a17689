"""One server, one browser and one loaded frontend for all tests in this folder."""

import pytest

from browser import chromium

READY = "window.app?.graph && window.LiteGraph && Object.keys(LiteGraph.registered_node_types).length > 100"
# A whole graph fits the image, with its text, and nothing lies over it.
READABLE = {"LiteGraph.Canvas.MinFontSizeForLOD": "0", "Comfy.Minimap.Visible": "false"}


@pytest.fixture(scope="module")
def page(server):
    """The frontend with an empty graph; ``page.baseline`` holds the console errors of the bare frontend."""
    executable = chromium.find()
    if executable is None:
        pytest.skip("There is no Chromium here; install one (Debian: apt-get install chromium) or set CHROMIUM to its path.")
    with chromium.Page(executable, width=2400, height=1350) as page:
        page.open(server.url)
        page.wait_until(READY)
        for setting, value in READABLE.items():
            page.evaluate(f"app.extensionManager.setting.set('{setting}', {value}).then(() => 1)")
        page.wait_for_network()
        page.baseline = set(page.take_errors())
        yield page
