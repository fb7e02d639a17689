"""BDIA on models with known answers and on wild ones."""

import pytest
import torch
from controlled_diffusion.inversion.bdia import BDIA
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.exact import for_steps
from controlled_diffusion.inversion.method import Derivative, Trajectory, replay, single
from torch.testing import assert_close

from denoisers import Gaussian, Seen, apart, derivative, draw, errors, levels, network, one, round_trip, silent, vp

FAMILIES = ("eps", "v", "flow")


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.92, 0.96, 1.0])
def test_the_way_back_gives_the_image_to_the_last_digits(family, gamma, cfg, strength):
    for steps in (3, 7, 8, 50):
        sigmas = levels(family, steps, strength)
        assert round_trip(BDIA(gamma), family, sigmas, cfg) < 1e-12, steps
        assert round_trip(BDIA(gamma), family, sigmas, cfg, torch.float32) < 1e-5, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_steps_come_back_with_gamma_for_so_many(family):
    method, sigmas = BDIA(for_steps(0.96, 200)), levels(family, 200)
    assert round_trip(method, family, sigmas) < 1e-11
    assert round_trip(method, family, sigmas, dtype=torch.float32) < 1e-5


def reference_step(z, before, i, sigmas, gamma, eps):
    """z_{i+1} from z_i and z_{i-1} in plain VP space."""
    a, b = [vp(s) for s in sigmas], [s * vp(s) for s in sigmas]
    e = eps(z, sigmas[i])

    def to(j):
        return a[j] * (z - b[i] * e) / a[i] + b[j] * e

    return gamma * (before - to(i - 1)) + to(i + 1)


@pytest.mark.parametrize("gamma", [0.92, 1.0])
def test_it_is_the_paper_in_vp_space(gamma):
    sigmas = levels("eps", 9, 0.8)

    def seen(x, sigma):
        return network(single(x).double() * vp(sigma), torch.tensor([sigma], dtype=torch.float64))

    class Exact(Derivative):  # a denoised image loses digits of eps; the reference keeps them
        def __call__(self, x, at, level=None):
            self.denoised = x if level is None else x * (self.input_scale(level) / self.input_scale(at))
            return seen(self.denoised, at)

    trajectory = BDIA(gamma).encode(Exact(None, vp), draw(), sigmas, silent)
    before, z = (t * vp(s) for (t, _), s in zip(trajectory.states[:2], sigmas))
    for i in range(1, trajectory.steps):
        before, z = z, reference_step(z, before, i, sigmas, gamma, lambda z, s: seen(z / vp(s), s))
        assert apart(trajectory.states[i + 1][0] * vp(sigmas[i + 1]), z) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_without_gamma_it_samples_as_ddim_does(family):
    way, sigmas = derivative(family), levels(family, 6)
    states = [draw() * sigmas[0]]
    for now, goal in zip(sigmas, sigmas[1:]):
        states.append(states[-1] + (goal - now) * way(states[-1], now))
    trajectory = Trajectory(sigmas, ((states[0], states[1]),) * 7)
    assert_close(replay(BDIA(0.0), derivative(family), trajectory), states[-1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.96, 1.0])
def test_a_constant_slope_is_followed_on_a_straight_line(gamma):
    noise, sigmas, x0 = draw(seed=3), levels("flow", 6), draw()

    class Constant(Derivative):
        def __call__(self, x, at, level=None):
            self.denoised = x
            return noise

    trajectory = BDIA(gamma).encode(Constant(None), x0, sigmas, silent)
    for (x, _), sigma in zip(trajectory.states, sigmas):
        assert_close(x, x0 + sigma * noise, atol=1e-12, rtol=1e-12)


def test_a_flow_model_gives_the_factor_gamma_alone_and_others_that_of_their_levels():
    sigmas = (4.0, 2.0, 1.0, 0.0)
    assert BDIA(0.9).weight(Derivative(None, one), sigmas, 1) == 0.9
    assert BDIA(0.9).weight(Derivative(None, vp), sigmas, 1) == pytest.approx(0.9 * (2 / 17) ** 0.5)


def test_each_step_asks_once_and_never_at_sigma_zero():
    way, sigmas = Seen(), levels("eps", 5)
    trajectory = BDIA().encode(way, draw(), sigmas, silent)
    assert way.sigmas == pytest.approx(sorted([*sigmas[1:-1], sigmas[-2]]))
    replay(BDIA(), way, trajectory)
    assert way.sigmas[5:] == pytest.approx(sigmas[1:-1])


def test_a_carry_is_a_state_and_the_one_before_it_and_the_first_holds_the_next():
    x0, sigmas = draw(), levels("eps", 4)
    trajectory = BDIA().encode(derivative("eps"), x0, sigmas, silent)
    states = [carry[0] for carry in trajectory.states]
    assert torch.equal(states[-1], x0)
    assert [c[1] is s for c, s in zip(trajectory.states, [states[1], *states])] == [True] * 5


def test_the_first_step_down_shows_its_state_though_nothing_was_predicted():
    trajectory, shown = BDIA().encode(derivative("eps"), draw(), levels("eps", 3), silent), []
    replay(BDIA(), derivative("eps"), trajectory, show=lambda x, denoised: shown.append(denoised))
    assert torch.equal(shown[0], trajectory.states[1][0]) and len(shown) == 3


@pytest.mark.parametrize("scale", [one, vp])
def test_with_gamma_one_the_error_of_the_noise_falls_with_the_square_of_the_step(scale):
    found = errors(lambda n: BDIA(1.0), scale)
    assert found[1] / found[2] == pytest.approx(4, rel=0.1) and found[2] < 1e-3


def test_its_noise_is_nearer_to_the_true_one_than_that_of_ddim():
    way, sigmas, x0 = Gaussian(vp), levels("eps", 50), draw()
    ours, plain = (m.encode(way, x0, sigmas, silent).states[0][0] for m in (BDIA(), DDIM()))
    true = way.at_top(x0, sigmas[0])
    assert apart(ours, true) < apart(plain, true) / 1.5


def test_another_prompt_gives_another_image():
    trajectory = BDIA().encode(derivative("v"), draw(), levels("v", 10), silent)
    assert apart(replay(BDIA(), derivative("v", prompt=1.0), trajectory), draw()) > 0.05


@pytest.mark.parametrize("gamma", [-0.1, 1.01])
def test_a_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(ValueError, match=rf"gamma is {gamma:g}; give 0\.92 to 1"):
        BDIA(gamma)


def test_inverting_without_gamma_is_refused():
    with pytest.raises(ValueError, match=r"gamma is 0, which is DDIM and has no exact inverse; give 0\.92 to 1"):
        BDIA(0.0).encode(derivative("eps"), draw(), levels("eps", 5), silent)


def test_a_gamma_that_loses_the_image_is_refused_with_one_that_does_not():
    sigmas = levels("eps", 50)
    with pytest.raises(ValueError, match=r"gamma is 0\.5, .* grow 1e\+15 times over the 50 steps .* give 0\.832 to 1, usually 0\.92 to 1"):
        BDIA(0.5).encode(derivative("eps"), draw(), sigmas, silent)
    BDIA(0.832).encode(derivative("eps"), draw(), sigmas, silent)


def test_one_step_is_refused():
    with pytest.raises(ValueError, match=r"There is 1 step, but a method over three levels needs 2 or more \(usually 50\); raise steps"):
        BDIA().encode(derivative("eps"), draw(), levels("eps", 1), silent)
