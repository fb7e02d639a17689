"""ComfyUI's MultiGPU CFG Split spreads the channels: its own code, with two names of the CPU instead of two GPUs."""

import pytest
import torch
from controlled_diffusion.guidance.image_guidance import ImageGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper

from host.sampling import ksampler, run
from host.tiny import conditioning
from host.tiny import unet as tiny_unet

pytest.importorskip("comfy.multigpu")
EMPTY, CAT, DOG = (conditioning(i) for i in range(3))
pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture
def split():
    """A model with a clone on a second device, and the devices on which something was evaluated."""
    model, other = tiny_unet("eps"), tiny_unet("eps")
    other.load_device = torch.device("cpu", 0)
    other.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [other])
    seen = []
    for patcher in (model, other):
        patcher.model.apply_model = lambda *a, f=patcher.model.apply_model, d=patcher.load_device, **k: (seen.append(d), f(*a, **k))[1]
    return model, seen


def channels():
    return [Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(DOG, 1.5, negative=True, null=CAT)]


def test_channels_are_spread_over_devices(split):
    model, seen = split
    found = run(MultiCFG(model, EMPTY, channels()))
    assert set(seen) == {torch.device("cpu"), torch.device("cpu", 0)}
    torch.testing.assert_close(found, run(MultiCFG(tiny_unet("eps"), EMPTY, channels())), atol=1e-3, rtol=1e-3)


def test_the_patch_too(split):
    model, seen = split
    found = ksampler(MultiCFGWrapper(channels()[1:]).install(model), CAT, EMPTY, 3.0)
    assert set(seen) == {torch.device("cpu"), torch.device("cpu", 0)}
    torch.testing.assert_close(
        found, ksampler(MultiCFGWrapper(channels()[1:]).install(tiny_unet("eps")), CAT, EMPTY, 3.0), atol=1e-3, rtol=1e-3
    )


def test_a_gradient_through_the_denoiser_is_refused(split):
    gradient = ImageGradient(lambda z: z.square().mean((1, 2, 3)), through_denoiser=True)
    with pytest.raises(ValueError, match="Take MultiGPU CFG Split away"):
        run(MultiCFG(split[0], EMPTY, [Channel(CAT, 3.0), Channel(None, 1.0, gradient=gradient)]))
