"""Edit-friendly inversion in the real ComfyUI."""

from functools import partial

import comfy.samplers
import pytest
import torch
from controlled_diffusion.nodes.edit_friendly import EditFriendlyInverter
from controlled_diffusion.nodes.host.noise_levels import skip_steps

from compare import assert_close
from host import inversions, tiny
from host.inversions import EDIT, EMPTY, SOURCE, apart, image, sample
from host.sampling import Count, cfg_guider, families
from host.video import tiny_video_model, video_conditioning
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
STEPS = 6
model = families(partial(tiny.unet, output_scale=0.2))


def invert(model, latent=None, source=SOURCE, negative=EMPTY, **settings):
    return inversions.invert("edit-friendly", model, latent, source, negative=negative, **settings)[0]


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("skip", [0.0, 0.36, 0.99])
def test_the_same_prompt_and_cfg_give_the_image_back(model, cfg, skip):
    """Without prompts the inversion's own are used."""
    inversion = invert(model, cfg=cfg, skip=skip)
    back = sample(model, inversion, cfg, positive=SOURCE, negative=EMPTY)
    assert apart(back, image()["samples"]) < 1e-6 and apart(sample(model, inversion, cfg), image()["samples"]) < 1e-6
    assert apart(sample(model, inversion, 7.5, **EDIT), back) > 1e-4


def test_comfyuis_ancestral_sampler_with_these_noise_maps(model):
    """`euler_ancestral`, given the noise maps one after the other, makes the image except for its last step."""
    inversion = invert(model, cfg=3.5)
    trajectory = inversion.trajectory
    guider = cfg_guider(model, SOURCE, EMPTY, 3.5)
    sampler = comfy.samplers.ksampler("euler_ancestral")
    left = iter(trajectory.extras["noise_maps"])
    sampler.extra_options = {"noise_sampler": lambda sigma, after: next(left)}  # a new one: ComfyUI shares its default among all samplers
    start, first = trajectory.states[0][0], torch.tensor(trajectory.sigmas[:1])
    sampling = model.get_model_object("model_sampling")
    gain = sampling.noise_scaling(first, torch.ones(1), torch.zeros(1), True)
    got = guider.sample(start / gain, torch.zeros_like(start), sampler, torch.tensor(trajectory.sigmas), disable_pbar=True, seed=0)
    expected = trajectory.states[-1][0] - trajectory.extras["noise_maps"][-1]  # ComfyUI's last step adds nothing
    assert_close(model.model.process_latent_in(got), expected, atol=1e-3, rtol=1e-3)


def test_skip_leaves_out_the_noisiest_steps(model):
    whole, part = (invert(model, skip=s).trajectory for s in (0, 0.36))
    assert part.sigmas == whole.sigmas[2:]
    assert_close(part.states[0][0], whole.states[2][0], atol=1e-4, rtol=1e-4)
    assert part.extras["noise_maps"].shape[0] == STEPS - 2
    first, again, other = (invert(model, seed=s).trajectory.extras["noise_maps"] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1), "seeds repeat, and differ"


@pytest.mark.parametrize("steps, left", [(1, 1), (2, 1), (20, 13), (50, 32), (100, 64)])
def test_skip_is_a_share_of_the_steps(steps, left):
    """By default that of the paper, at any number of steps; a count of 18 left two of 20."""
    sigmas = tuple(float(s) for s in torch.linspace(14, 0, steps + 1))
    assert skip_steps(sigmas, defaults(EditFriendlyInverter)["skip"]) == sigmas[-left - 1 :]


def test_more_skipped_steps_keep_more_of_the_image(model):
    changes = [apart(sample(model, invert(model, skip=s), 5.0, **EDIT), image()["samples"]) for s in (0.2, 0.7, 0.8)]
    assert changes[0] > changes[1] > changes[2]


def test_evaluations_are_one_a_step_and_two_with_guidance(model):
    for cfg, rows in ((1.0, STEPS - 1), (3.5, 2 * (STEPS - 1))):
        count = Count(model)
        inversion = invert(count.model, cfg=cfg, skip=0.2)
        assert count.rows == inversion.evaluations == rows
        sample(count.model, inversion, cfg)
        assert count.rows == 2 * rows


def test_video_latents_come_back():
    given = {"samples": torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    model, source = tiny_video_model(), video_conditioning(1)
    inversion = invert(model, given, source, negative=None, steps=3)
    assert inversion.trajectory.extras["noise_maps"].shape == (3, 1, 16, 3, 8, 8)
    assert apart(sample(model, inversion), given["samples"]) < 1e-5
