"""ComfyUI's TorchCompileModel on the model: what changes the network from step to step, or trains it, gives the same as without it."""

import pytest
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.textual_inversion import TIEmbeddingTrainer
from safetensors.torch import load_file

from bench.cases import Cases
from bench.shapes import Shape
from host import editing, tiny
from host.sampling import cfg_guider, run
from host.tiny import CONTEXT, conditioning
from host.training import execute, images

helpers = pytest.importorskip("comfy_api.torch_helpers")
nodes_compile = pytest.importorskip("comfy_extras.nodes_torch_compile")
EMPTY, CAT, DOG = (conditioning(i) for i in range(3))
pytestmark = pytest.mark.usefixtures("inference_mode")


def compiled(model):
    """As that node does, with torch's own backend, which needs no C++ compiler."""
    made = model.clone()
    guards = {"guard_filter_fn": getattr(nodes_compile, "skip_torch_compile_dict", lambda entries: [True] * len(entries))}
    helpers.set_torch_compile_wrapper(model=made, backend="eager", options=guards)
    return made


@pytest.fixture
def small():
    torch._dynamo.reset()
    return tiny.unet("eps", **tiny.ONE_LEVEL)


def test_guidance_samples_with_the_compiled_network(small):
    channels = [Channel(CAT, 3.0), Channel(DOG, 2.0)]
    found, wanted = (run(MultiCFG(model, EMPTY, channels)) for model in (compiled(small), small))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_schedule_of_an_image_prompt_acts(small):
    cases = Cases(small, Shape(*[None] * 3, width=CONTEXT, pooled=CONTEXT, side=8), 8)
    patched = cases._adapted(small, "base", schedules=(Schedule(Ramp(1.0, 0.0)),))
    found, wanted = (run(cfg_guider(model, CAT, EMPTY, 4.0)) for model in (compiled(patched), patched))
    assert torch.equal(found, wanted)


def test_windows_of_prompt_to_prompt_act(small, clip):
    edit = editing.patch(small, clip, "a very fluffy red cat", "a red cat", cross_end=0.5, self_end=0.2, self_layers="all")
    patched, *rest = edit
    assert torch.equal(editing.sample(compiled(patched), *rest), editing.sample(patched, *rest))


def test_a_compiled_model_is_trained_as_any_other(small, reading_clip, vae, folders):
    """Also where it has sampled before."""
    model = compiled(small)
    run(cfg_guider(model, CAT, EMPTY, 4.0))
    given = dict(clip=reading_clip, vae=vae, images=images(), initial_words="cat", steps=2, validation_count=0)
    for each, name in ((model, "compiled"), (small, "plain")):
        execute(TIEmbeddingTrainer, model=each, name=name, **given)
    found, wanted = (load_file(folders / "embeddings" / f"{name}.safetensors")["clip_l"] for name in ("compiled", "plain"))
    assert torch.equal(found, wanted)
