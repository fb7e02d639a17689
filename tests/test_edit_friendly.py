"""Edit-friendly inversion: noise maps that bring the image back exactly."""

import pytest
import torch
from controlled_diffusion.inversion.edit_friendly import EditFriendly
from controlled_diffusion.inversion.method import replay
from controlled_diffusion.inversion.noise import draw_like, noised
from torch.testing import assert_close

from denoisers import FAMILIES, MODELS, apart, derivative, draw, levels, silent


def method(family, seed=0):
    return EditFriendly(seed, flow=family == "flow")


def encode(family, steps=10, cfg=1.0, x0=None, seed=0, strength=1.0):
    return method(family, seed).encode(derivative(family, cfg), draw() if x0 is None else x0, levels(family, steps, strength), silent)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_the_same_prompt_and_cfg_give_the_image_back_exactly(family, steps, cfg):
    trajectory = encode(family, steps, cfg)
    assert apart(replay(method(family), derivative(family, cfg), trajectory), draw()) < 1e-12
    assert apart(replay(method(family), derivative(family, cfg, prompt=1.0), trajectory), draw()) > 1e-2
    rough = encode(family, steps, cfg, draw(dtype=torch.float32))
    assert apart(replay(method(family), derivative(family, cfg), rough), draw(dtype=torch.float32)) < 1e-6


def ancestral(x, denoised, noise, now, goal):
    """ComfyUI's step of `euler_ancestral` with eta 1, as its papers write it: down to a lower level, then noise."""
    up = min(goal, (goal**2 * (now**2 - goal**2) / now**2) ** 0.5)
    return x + (x - denoised) / now * ((goal**2 - up**2) ** 0.5 - now) + up * noise


def ancestral_flow(x, denoised, noise, now, goal):
    down = goal * (1 + (goal / now - 1))
    kept, left = 1 - goal, 1 - down
    x = down / now * x + (1 - down / now) * denoised
    return kept / left * x + noise * (goal**2 - down**2 * kept**2 / left**2) ** 0.5


@pytest.mark.parametrize("family, reference", [("eps", ancestral), ("v", ancestral), ("flow", ancestral_flow)])
def test_the_noise_maps_are_what_ancestral_sampling_has_to_add(family, reference):
    trajectory = encode(family)
    for i, (now, goal) in enumerate(zip(trajectory.sigmas[:-1], trajectory.sigmas[1:-1])):
        x, after = trajectory.states[i][0], trajectory.states[i + 1][0]
        denoised = MODELS[family](x.float(), torch.full([2], now)).double()
        assert_close(reference(x, denoised, trajectory.extras["noise_maps"][i], now, goal), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_has_the_image_under_a_noise_of_its_own(family):
    trajectory, x0 = encode(family), draw()
    noises = [(x - (1 - s if family == "flow" else 1) * x0) / s for (x,), s in zip(trajectory.states[:-1], trajectory.sigmas)]
    for i, noise in enumerate(noises):
        assert float(noise.std()) == pytest.approx(1, abs=0.15)
        assert all(abs(float((noise[0] * other[0]).mean())) < 0.3 for other in noises[:i])  # independent, over 256 numbers
    assert torch.equal(trajectory.states[-1][0], x0)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_maps_are_finite_and_no_normal_noise(family):
    """A map holds the new noise and, with the other sign, the old one, so neighbors oppose each other."""
    maps = encode(family, 50).extras["noise_maps"][:-1].flatten(1)
    assert bool(torch.isfinite(maps).all()) and float(maps[5:-5].std()) > 1.3
    neighbors = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(maps[5:-5], maps[6:-4])])
    assert float(neighbors.mean()) < -0.2


def test_the_last_map_is_what_the_last_prediction_lacks():
    trajectory = encode("eps")
    way = derivative("eps")
    way(trajectory.states[-2][0], trajectory.sigmas[-2])
    assert_close(trajectory.extras["noise_maps"][-1], draw() - way.denoised.double(), atol=1e-6, rtol=1e-6)


def test_a_later_start_finds_the_same_states_below_it():
    whole, part = encode("eps", 10), encode("eps", 10, strength=0.6)
    assert part.sigmas == whole.sigmas[4:] and part.extras["noise_maps"].shape[0] == 6
    for a, b in zip(part.states, whole.states[4:]):
        assert_close(a[0], b[0], atol=1e-10, rtol=1e-10)


def test_seeds_differ_and_images_of_a_batch_get_the_same_noise():
    first, again, other = (encode("eps", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.states[0][0], again.states[0][0])
    assert not torch.allclose(first.states[0][0], other.states[0][0])
    alone = encode("eps", seed=1, x0=draw()[1:])
    assert torch.equal(alone.states[0][0], first.states[0][0][1:])
    assert_close(alone.extras["noise_maps"], first.extras["noise_maps"][:, 1:], atol=1e-9, rtol=1e-9)


def test_one_evaluation_a_step():
    way = derivative("flow")
    trajectory = method("flow").encode(way, draw(), levels("flow", 7), silent)
    assert way.calls == 7
    replay(method("flow"), way, trajectory)
    assert way.calls == 14


def test_models_with_larger_noise_get_larger_noise():
    trajectory = EditFriendly(flow=True, noise_scale=8.0).encode(derivative("flow"), draw(), levels("flow", 10), silent)
    assert float(trajectory.states[0][0].std()) == pytest.approx(8, abs=0.8)
    assert float(trajectory.extras["noise_maps"][:-1].std()) < 3


def test_noise_is_drawn_once_for_a_batch_of_any_shape():
    for shape in ((3, 4, 8, 8), (3, 16, 2, 8, 8)):
        assert draw_like(torch.zeros(shape), torch.Generator().manual_seed(0)).shape == (1, *shape[1:])
    clean, noise = torch.full((1,), 2.0), torch.full((1,), 3.0)
    assert [float(noised(clean, noise, 0.5, flow)) for flow in (True, False)] == [2.5, 3.5]
