"""The templates for published models run whole on the real server, on small models that ComfyUI's own loaders read."""

import json

import pytest

from graphs import models
from harness.commands import WORKFLOWS, needs_download
from harness.server import Server
from harness.workflow import to_prompt
from small_models import offer, stand_in, write_small_models

pytestmark = pytest.mark.slow
# The most of it that a test runs; the templates themselves keep their steps and sizes.
FEW = dict.fromkeys(("maps", "levels", "class_count", "count", "candidates", "batch_size"), 1)
SMALL = FEW | dict(steps=2, n_max=0.5, megapixels=0.01, width=64, height=64)
SHOWN = ("SaveImage", "SaveVideo", "PreviewImage", "ImageCompare")
TEMPLATES = sorted(path for path in WORKFLOWS.glob("*.json") if needs_download(path))


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server with small models under the names that the templates carry."""
    base = tmp_path_factory.mktemp("small")
    offer(base)
    write_small_models(base / "models")
    with Server(base=base, threads=1) as running:
        yield running


def small(prompt: dict) -> dict:
    """The queued prompt with a few steps on a small image."""
    for node in prompt.values():
        given = node["inputs"]
        given.update({name: min(value, SMALL[name]) for name, value in given.items() if name in SMALL and not isinstance(value, list)})
    return stand_in(prompt)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_runs(small_server, path):
    prompt = small(to_prompt(path, small_server.object_info()))
    outputs = small_server.run(prompt)["outputs"]
    ends = {number for number, node in prompt.items() if node["class_type"] in SHOWN}
    assert ends and ends <= set(outputs)


def test_every_model_has_a_name_a_folder_and_an_address(small_server):
    for path in TEMPLATES:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            listed = node["properties"].get("models", [])
            files = {value for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")}
            assert files == {model["name"] for model in listed}, (path.stem, node["type"])
            assert all(model in [known.entry for known in models.ALL] for model in listed)
