"""RF-Inversion: pulled towards a noise on the way up, towards the image on the way down."""

import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import replay
from controlled_diffusion.inversion.noise import draw_like
from controlled_diffusion.inversion.rf_inversion import RFInversion
from torch.testing import assert_close

from denoisers import apart, derivative, draw, levels, silent

STEPS = 12
SIGMAS = levels("flow", STEPS)


def encode(method, cfg=1.0, way=None):
    return method.encode(way or derivative("flow", cfg), draw(), SIGMAS, silent)


def noise_of(seed):
    return draw_like(draw(), torch.Generator().manual_seed(seed)).expand(2, -1, -1, -1)


def test_gamma_one_goes_straight_to_the_noise_of_the_seed():
    for seed in (0, 5):
        for (x,), s in zip(encode(RFInversion(gamma=1.0, seed=seed)).states, SIGMAS):
            assert_close(x, (1 - s) * draw() + s * noise_of(seed))
    assert_close(encode(RFInversion(gamma=1.0, noise_scale=8.0)).states[0][0], 8 * noise_of(0))  # of models with larger noise


def test_gamma_zero_is_ddim_inversion():
    for (a,), (b,) in zip(encode(RFInversion(gamma=0.0)).states, encode(DDIM()).states):
        assert_close(a, b)


def test_the_pull_up_is_the_papers():
    """x + ds (v + gamma ((y1 - x) / (1 - s) - v)), the velocity asked at the level it goes to."""
    trajectory, way, x = encode(RFInversion(gamma=0.3)), derivative("flow"), draw()
    for now, goal in zip(SIGMAS[::-1], SIGMAS[::-1][1:]):
        v = way(x, goal)
        x = x + (goal - now) * ((1 - 0.3) * v + 0.3 * (noise_of(0) - x) / (1 - now))
    assert_close(trajectory.states[0][0], x)


def test_more_gamma_ends_nearer_to_the_noise():
    distances = [apart(encode(RFInversion(gamma=g)).states[0][0], noise_of(0)) for g in (0.0, 0.3, 0.6, 0.9)]
    assert all(b < a for a, b in zip(distances, distances[1:]))


@pytest.mark.parametrize("prompt", [0.0, 1.0])
def test_eta_one_gives_the_image_back_under_any_prompt(prompt):
    method = RFInversion(eta=1.0)
    assert apart(replay(method, derivative("flow", 3.0, prompt), encode(method)), draw()) < 1e-12


def test_eta_zero_is_plain_sampling_of_the_noise_that_was_found():
    method = RFInversion(eta=0.0)
    trajectory, way = encode(method), derivative("flow", 3.0, 1.0)
    x = trajectory.states[0][0]
    for now, goal in zip(SIGMAS, SIGMAS[1:]):
        x = x + (goal - now) * way(x, now)
    assert_close(replay(method, way, trajectory), x)


def test_the_pull_down_is_the_papers_where_it_is_on():
    """v + eta ((x - y0) / s - v) at the steps that begin between the two sigmas, and v elsewhere."""
    method = RFInversion(eta=0.6, start_sigma=SIGMAS[2], end_sigma=SIGMAS[5])
    trajectory, way = encode(method), derivative("flow", 3.0, 1.0)
    x = trajectory.states[0][0]
    for i, (now, goal) in enumerate(zip(SIGMAS, SIGMAS[1:])):
        eta, v = (0.6 if 2 <= i <= 5 else 0.0), way(x, now)
        x = x + (goal - now) * (v + eta * ((x - draw()) / now - v))
    assert_close(replay(method, way, trajectory), x)


def test_eta_decays_with_the_steps():
    trajectory = encode(RFInversion())
    pulls = [RFInversion(eta=0.8, decay=2.0).pull(i, trajectory) for i in range(STEPS)]
    assert pulls == pytest.approx([0.8 * (1 - i / STEPS) ** 2 for i in range(STEPS)])
    assert RFInversion(eta=0.8).pull(STEPS - 1, trajectory) == 0.8


def test_a_longer_pull_keeps_more_of_the_image():
    methods = [RFInversion(eta=0.9, end_sigma=end) for end in (1.0, 0.7, 0.4, 0.0)]
    found = [apart(replay(m, derivative("flow", 3.0, 1.0), encode(m)), draw()) for m in methods]
    assert all(b < a for a, b in zip(found, found[1:]))


def test_one_evaluation_a_step_and_none_at_sigma_zero():
    way = derivative("flow")
    replay(RFInversion(), way, encode(RFInversion(), way=way))
    assert way.calls == 2 * STEPS
