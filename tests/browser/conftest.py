"""One server, one browser and one loaded frontend for all tests in this folder."""

import pytest

import small_models
from browser import chromium
from browser.graph_image import opened_frontend


@pytest.fixture(scope="module")
def page(server):
    """The frontend with an empty graph; ``page.baseline`` holds the console errors of the bare frontend."""
    executable = chromium.find()
    if executable is None:
        pytest.skip("There is no Chromium here; install one (Debian: apt-get install chromium) or set CHROMIUM to its path.")
    small_models.offer(server.base)
    with opened_frontend(executable, server.url) as page:
        page.baseline = set(page.take_errors())
        yield page
