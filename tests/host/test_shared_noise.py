"""The noise that ComfyUI's samplers draw by themselves is known for each."""

import inspect

import comfy.samplers
import pytest
import torch
from controlled_diffusion.nodes.host.attention.shared_noise import with_shared_noise

from host import tiny
from host.sampling import cfg_guider, sigmas_of
from host.tiny import conditioning

pytestmark = pytest.mark.usefixtures("inference_mode")
FUNCTIONS = {name: comfy.samplers.ksampler(name).sampler_function for name in comfy.samplers.KSAMPLER_NAMES}
NAMES = [name for name, function in FUNCTIONS.items() if "noise_sampler" in inspect.signature(function).parameters]


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny.unet("eps", output_scale=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_of_a_sampler_is_its_own(model, name):
    """A batch of one row is sampled as without shared noise, bit for bit."""
    guider = cfg_guider(model, conditioning(1), conditioning(0), 3.0)
    sampler, sigmas = comfy.samplers.sampler_object(name), sigmas_of(model)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    shared = with_shared_noise(sampler, noise, 1, sigmas, 7)
    assert shared is not sampler
    made = [guider.sample(noise, torch.zeros_like(noise), s, sigmas, disable_pbar=True, seed=7) for s in (sampler, shared)]
    assert torch.equal(*made) and made[0].isfinite().all()
