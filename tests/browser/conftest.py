"""One server, one browser and one loaded frontend for all tests in this folder."""

import contextlib

import pytest

import small_models
from browser import chromium
from browser.graph_image import opened_frontend


@pytest.fixture(scope="module")
def page(server):
    """The frontend with an empty graph; ``page.baseline`` holds the console errors of the bare frontend."""
    with frontend(server) as page:
        yield page


@pytest.fixture(scope="module")
def page_of_nodes_2(server):
    """The same with the nodes that ComfyUI calls Nodes 2.0."""
    with frontend(server, **{"Comfy.VueNodes.Enabled": "true"}) as page:
        yield page


@contextlib.contextmanager
def frontend(server, **settings: str):
    executable = chromium.find()
    if executable is None:
        pytest.skip("There is no Chromium here; install one (Debian: apt-get install chromium) or set CHROMIUM to its path.")
    small_models.offer(server.base)
    server.object_info(anew=True)
    with opened_frontend(executable, server.url, settings) as page:
        page.baseline = set(page.take_errors())
        yield page
