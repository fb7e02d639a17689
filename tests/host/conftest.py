"""Boots the real ComfyUI once for the tests in this folder, and hands them tiny models made of its own classes."""

import gc
import shutil
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


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_its_model():
    """ComfyUI collects garbage at every loading while it knows of a network whose patcher is gone."""
    import comfy.model_management

    yield
    gc.collect()
    assert [type(m.real_model()).__name__ for m in comfy.model_management.current_loaded_models if m.is_dead()] == []


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
def text_model():
    """Flux's tiny random text encoder, shared by all tests: do not change it."""
    from host import tiny_text

    with torch.inference_mode():
        return tiny_text.clip("flux")


TRAINED = ("embeddings", "loras", "diffusion_models", "noisy_classifiers")


@pytest.fixture(scope="session")
def trained():
    """The folder that `folders` empties."""
    return Path(base_directory.name) / "trained"


@pytest.fixture
def folders(trained):
    """Empty folders of outputs and of models that trainers write; ComfyUI knows no other of their kinds."""
    import folder_paths

    shutil.rmtree(trained, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "models_dir", str(trained))
        patch.setattr(folder_paths, "output_directory", str(trained / "output"))
        for kind in (*TRAINED, "output"):
            (trained / kind).mkdir(parents=True)
        for kind in TRAINED:
            patch.setitem(folder_paths.folder_names_and_paths, kind, ([str(trained / kind)], {".safetensors", ".pt"}))
            folder_paths.filename_list_cache.pop(kind, None)
        yield trained


@pytest.fixture(scope="session")
def reading_clip(trained):
    """A tiny CLIP that reads embeddings in `folders`, made in inference mode as a loader node makes it: do not change it."""
    from host import tiny

    with torch.inference_mode():
        return tiny.clip(torch.float32, embedding_directory=[str(trained / "embeddings")])


@pytest.fixture(scope="session")
def vae():
    """A tiny random VAE (4 channels, 8 times smaller), shared by all tests: do not change it."""
    from host import tiny

    return tiny.vae()


def tiny_unet(family: str):
    from host import tiny

    return tiny.unet(family)
