"""EDICT on models with known answers and on wild ones."""

import pytest
import torch
from controlled_diffusion.inversion.edict import EDICT
from controlled_diffusion.inversion.exact import for_steps
from controlled_diffusion.inversion.method import Derivative, Trajectory, replay, single
from torch.testing import assert_close

from denoisers import Seen, apart, derivative, draw, errors, levels, network, one, round_trip, silent, vp

FAMILIES = ("eps", "v", "flow")


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("p", [0.9, 0.93, 1.0])
def test_the_way_back_gives_the_image_to_the_last_digits(family, p, cfg, strength):
    for steps in (1, 2, 7, 50):
        sigmas = levels(family, steps, strength)
        assert round_trip(EDICT(p), family, sigmas, cfg) < 1e-12, steps
        assert round_trip(EDICT(p), family, sigmas, cfg, torch.float32) < 1e-5, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_steps_come_back_with_p_for_so_many(family):
    method, sigmas = EDICT(for_steps(0.93, 200)), levels(family, 200)
    assert round_trip(method, family, sigmas) < 1e-11
    assert round_trip(method, family, sigmas, dtype=torch.float32) < 1e-5


@pytest.mark.parametrize("p", [0.8, 0.93])
def test_mixing_brings_the_pair_together_by_p_squared(p):
    still = Derivative(lambda x, sigma: x)
    trajectory = Trajectory((2.0, 1.0, 0.0), ((draw(seed=1), draw(seed=2)),) * 3)
    carry = trajectory.states[0]
    for i in range(2):
        after = EDICT(p).step(still, carry, i, trajectory)
        assert_close(after[0] - after[1], p**2 * (carry[0] - carry[1]))
        assert_close(after[0], p * carry[0] + (1 - p) * carry[1])
        carry = after


def reference_step(z, w, i, sigmas, p, eps):
    """One denoising step in plain VP space, with the coefficients of DDIM."""
    (s, t), (a, b) = sigmas[i : i + 2], (vp(sigmas[i]), sigmas[i] * vp(sigmas[i]))
    keep = vp(t) / a
    add = t * vp(t) - keep * b
    if i % 2 == 0:
        z = keep * z + add * eps(w, s)
        w = keep * w + add * eps(z, s)
    else:
        w = keep * w + add * eps(z, s)
        z = keep * z + add * eps(w, s)
    z = p * z + (1 - p) * w
    return z, p * w + (1 - p) * z


@pytest.mark.parametrize("steps", [7, 8])
def test_it_is_the_paper_in_vp_space(steps):
    sigmas, p = levels("eps", steps, 0.8), 0.93

    def seen(x, sigma):
        return network(x.double() * vp(float(sigma[0])), sigma.double())

    def eps(z, sigma):
        return seen(single(z / vp(sigma)), torch.tensor([sigma], dtype=torch.float32))

    def model(x, sigma):
        return x.double() - float(sigma[0]) * seen(x, sigma)

    class Exact(Derivative):  # a denoised image loses digits of eps; the reference keeps them
        def __call__(self, x, at, level=None):
            inside = x if level is None else x * (self.input_scale(level) / self.input_scale(at))
            self.denoised = inside
            return seen(single(inside), torch.tensor([at], dtype=torch.float32))

    way = Exact(model, vp)
    trajectory = EDICT(p).encode(way, draw(), sigmas, silent)
    z, w = (t * vp(sigmas[0]) for t in trajectory.states[0])
    for i in range(trajectory.steps):
        z, w = reference_step(z, w, i, sigmas, p, eps)
        for ours, theirs in zip(trajectory.states[i + 1], (z, w)):
            assert apart(ours * vp(sigmas[i + 1]), theirs) < 1e-12


def test_the_states_take_turns_from_the_start_of_the_trail():
    """Which state moves first: the network is asked about the other."""
    asked = []
    trajectory = Trajectory((3.0, 2.0, 1.0, 0.0), ((draw(seed=1), draw(seed=2)),) * 4)
    way = Derivative(lambda x, sigma: asked.append(x) or x)
    for i in range(3):
        EDICT().step(way, trajectory.states[0], i, trajectory)
    first = [1 if torch.equal(x, single(trajectory.states[0][1])) else 0 for x in asked[::2]]
    assert first == [1, 0, 1]


def test_a_step_asks_twice_and_never_at_sigma_zero():
    way, sigmas = Seen(), levels("eps", 5)
    trajectory = EDICT().encode(way, draw(), sigmas, silent)
    assert way.calls == 10
    replay(EDICT(), way, trajectory)
    assert way.calls == 20 and min(way.sigmas) > 0
    assert way.sigmas[10:] == pytest.approx([s for s in sigmas[:-1] for _ in range(2)])


def test_the_trail_ends_at_the_image_twice():
    x0 = draw()
    trajectory = EDICT().encode(derivative("eps"), x0, levels("eps", 4), silent)
    assert trajectory.sigmas == levels("eps", 4)
    assert all(torch.equal(t, x0) for t in trajectory.states[-1])


@pytest.mark.parametrize("scale", [one, vp])
def test_the_error_of_the_noise_halves_with_the_step(scale):
    found = errors(lambda n: EDICT(for_steps(0.93, n)), scale, steps=(200, 400, 800))
    assert found[1] / found[2] == pytest.approx(2, rel=0.1) and found[2] < 0.01


def test_the_pair_drifts_apart_on_the_way_up_and_less_so_the_closer_p_is_to_one():
    trajectories = [EDICT(p).encode(derivative("eps"), draw(), levels("eps", 50), silent) for p in (0.97, 0.93, 0.9)]
    gaps = [apart(y, x) for x, y in (trajectory.states[0] for trajectory in trajectories)]
    assert gaps[0] < 0.1 < gaps[1] < 0.4 < gaps[2]


def test_another_prompt_gives_another_image():
    trajectory = EDICT().encode(derivative("v"), draw(), levels("v", 10), silent)
    assert apart(replay(EDICT(), derivative("v", prompt=1.0), trajectory), draw()) > 0.05


@pytest.mark.parametrize("p", [0.0, -0.5, 1.01])
def test_a_p_that_mixes_nothing_sensible_is_refused(p):
    with pytest.raises(ValueError, match=rf"p is {p:g}; give more than 0, up to 1, usually 0\.93"):
        EDICT(p)


def test_a_p_that_loses_the_image_is_refused_with_one_that_does_not():
    sigmas = levels("eps", 50)
    with pytest.raises(ValueError, match=r"p is 0\.8, .* grow 5e\+09 times over the 50 steps .* give 0\.892 to 1, usually 0\.93"):
        EDICT(0.8).encode(derivative("eps"), draw(), sigmas, silent)
    EDICT(0.892).encode(derivative("eps"), draw(), sigmas, silent)


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 200])
def test_p_is_for_fifty_steps_and_mixes_as_much_in_any_number(steps):
    p = for_steps(0.93, steps)
    assert p**steps == pytest.approx(0.93**50)
    assert round_trip(EDICT(p), "eps", levels("eps", steps)) < 1e-11


def test_what_is_no_p_is_left_to_the_method_to_refuse():
    assert [for_steps(p, 200) for p in (0.0, -1.0, 1.5)] == [0.0, -1.0, 1.5]
