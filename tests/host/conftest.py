"""Boots the real ComfyUI once for the tests in this folder, and hands them tiny models made of its own classes."""

import tempfile
from pathlib import Path

import pytest
import torch

from harness import host
from harness.comfyui import find_comfyui

if find_comfyui() is None:
    collect_ignore_glob = ["test_*.py"]

    def pytest_terminal_summary(terminalreporter):
        terminalreporter.write_line("tests/host was left out: there is no ComfyUI here. 'python . test' fetches it.")

else:
    base_directory = tempfile.TemporaryDirectory(prefix="controlled-diffusion-")
    host.boot(Path(base_directory.name))


@pytest.fixture
def inference_mode():
    """What the executor does around every node: the whole test runs in torch's inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def eps_model():
    return tiny_unet("eps")


@pytest.fixture
def v_model():
    return tiny_unet("v")


@pytest.fixture
def flow_model():
    return tiny_unet("flow")


@pytest.fixture(params=["eps", "v", "flow"])
def any_model(request):
    """A tiny random MODEL of each family in turn."""
    return tiny_unet(request.param)


@pytest.fixture(scope="session")
def clip():
    """A tiny random CLIP (SD1 tokenizer, float32), shared by all tests: do not change it."""
    from host import tiny

    return tiny.clip(dtype=torch.float32)


@pytest.fixture(scope="session")
def vae():
    """A tiny random VAE (4 channels, 8 times smaller), shared by all tests: do not change it."""
    from host import tiny

    return tiny.vae()


def tiny_unet(family: str):
    from host import tiny

    return tiny.unet(family)
