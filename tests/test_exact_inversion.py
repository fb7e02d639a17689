"""EDICT, BDIA and O-BELM on models with known answers and on wild ones."""

import pytest
import torch
from controlled_diffusion.inversion.bdia import BDIA
from controlled_diffusion.inversion.belm import OBELM
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.edict import EDICT
from controlled_diffusion.inversion.exact import for_steps, step_pair
from controlled_diffusion.inversion.method import Derivative, Trajectory, replay, single
from torch.testing import assert_close

from checks import refused
from denoisers import FAMILIES, Gaussian, Seen, apart, derivative, draw, errors, levels, network, one, round_trip, silent, vp

METHODS = [EDICT(), BDIA(), OBELM()]
SETTINGS = [*map(EDICT, (0.9, 0.93, 1.0)), *map(BDIA, (0.92, 0.96, 1.0)), OBELM()]
UNEVEN = (5.0, 4.5, 3.0, 2.7, 1.1, 0.4, 0.3, 0.0)

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", SETTINGS, ids=str)
def test_round_trip_is_exact(method, family, cfg, strength):
    for steps in (1, 2, 7, 50) if method.name == "edict" else (3, 7, 8, 50):
        sigmas = levels(family, steps, strength)
        assert round_trip(method, family, sigmas, cfg) < 1e-12, steps
        assert round_trip(method, family, sigmas, cfg, torch.float32) < 1e-5, steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method, bound", [(EDICT(for_steps(0.93, 200)), 1e-5), (BDIA(for_steps(0.96, 200)), 1e-5), (OBELM(), 5e-5)])
def test_round_trip_of_200_steps_is_exact(family, method, bound):
    sigmas = levels(family, 200)
    assert round_trip(method, family, sigmas) < 1e-11
    assert round_trip(method, family, sigmas, dtype=torch.float32) < bound


def test_belm_is_exact_on_uneven_sigmas():
    for family, top in (("eps", 1), ("flow", 5)):
        assert round_trip(OBELM(), family, tuple(s / top for s in UNEVEN)) < 1e-12


def eps(x, sigma):
    """The noise that the network predicts for a state in sigma space."""
    return network(single(x).double() * vp(sigma), torch.tensor([sigma], dtype=torch.float64))


class Eps(Derivative):
    """The derivative of this network; by way of a denoised image it would lose digits, which the references keep."""

    def __call__(self, x, sigma, level=None):
        self.denoised = x if level is None else x * (self.input_scale(level) / self.input_scale(sigma))
        return eps(self.denoised, sigma)


def edict_step(z, w, i, sigmas, p):
    """(z, w) after one denoising step in plain VP space, with the coefficients of DDIM."""
    (s, t), a = sigmas[i : i + 2], vp(sigmas[i])
    keep = vp(t) / a
    add = t * vp(t) - keep * s * a
    if i % 2 == 0:
        z = keep * z + add * eps(w / a, s)
        w = keep * w + add * eps(z / vp(s), s)
    else:
        w = keep * w + add * eps(z / a, s)
        z = keep * z + add * eps(w / vp(s), s)
    z = p * z + (1 - p) * w
    return z, p * w + (1 - p) * z


def bdia_step(z, before, i, sigmas, gamma):
    """(z_{i+1}, z_i) in plain VP space."""
    a, b = [vp(s) for s in sigmas], [s * vp(s) for s in sigmas]
    e = eps(z / a[i], sigmas[i])

    def to(j):
        return a[j] * (z - b[i] * e) / a[i] + b[j] * e

    return gamma * (before - to(i - 1)) + to(i + 1), z


def belm_step(z, before, i, sigmas, _):
    """(z_{i+1}, z_i) of the paper's update in VP space; its h counts steps of sigma / alpha, its i falls."""
    alpha = [vp(s) for s in sigmas]
    h, h_before = sigmas[i] - sigmas[i + 1], sigmas[i - 1] - sigmas[i]
    after = (
        (h / h_before) ** 2 * alpha[i + 1] / alpha[i - 1] * before
        + (h_before**2 - h**2) / h_before**2 * alpha[i + 1] / alpha[i] * z
        - h * (h + h_before) / h_before * alpha[i + 1] * eps(z / alpha[i], sigmas[i])
    )
    return after, z


PAPERS = [(EDICT(0.93), edict_step, 0.93), (BDIA(0.92), bdia_step, 0.92), (BDIA(1.0), bdia_step, 1.0), (OBELM(), belm_step, None)]


@pytest.mark.parametrize("steps", [8, 9])
@pytest.mark.parametrize("method, step, setting", PAPERS)
def test_steps_are_the_papers_in_vp_space(method, step, setting, steps):
    sigmas, coupled = levels("eps", steps, 0.8), method.name == "edict"
    trajectory, scale = method.encode(Eps(None, vp), draw(), sigmas, silent), [vp(s) for s in sigmas]
    first = 0 if coupled else 1  # the first pair of the others is not of the paper's form
    z, w = trajectory.states[first][0] * scale[first], trajectory.states[first][1] * scale[0]
    for i in range(first, trajectory.steps):
        z, w = step(z, w, i, sigmas, setting)
        for ours, theirs, level in zip(trajectory.states[i + 1], (z, w), (i + 1, i + 1 if coupled else i)):
            assert apart(ours * scale[level], theirs) < 1e-12


@every_method
def test_evaluations_are_counted_and_none_is_at_sigma_zero(method):
    way, sigmas, coupled = Seen(), levels("eps", 5), method.name == "edict"
    trajectory = method.encode(way, draw(), sigmas, silent)
    assert way.calls == len(way.sigmas) == (10 if coupled else 5)
    assert coupled or way.sigmas == pytest.approx(sorted([*sigmas[1:-1], sigmas[-2]]))
    up = way.calls
    replay(method, way, trajectory)
    assert way.sigmas[up:] == pytest.approx([s for s in sigmas[:-1] for _ in range(2)] if coupled else sigmas[1:-1])
    assert min(way.sigmas) > 0


@every_method
def test_a_trajectory_ends_at_the_image_another_prompt_elsewhere(method):
    """A state of EDICT is twice the image there; of the others it is x and the x before it, and the first holds the next x."""
    x0, sigmas = draw(), levels("v", 10)
    trajectory = method.encode(derivative("v"), x0, sigmas, silent)
    xs = [state[0] for state in trajectory.states]
    assert trajectory.sigmas == sigmas and torch.equal(xs[-1], x0)
    if method.name == "edict":
        assert torch.equal(trajectory.states[-1][1], x0)
    else:
        assert [state[1] is x for state, x in zip(trajectory.states, [xs[1], *xs])] == [True] * 11
    assert apart(replay(method, derivative("v", prompt=1.0), trajectory), draw()) > 0.05


@pytest.mark.parametrize("scale", [one, vp])
@pytest.mark.parametrize("method_for, order, power, steps, most", [
    (lambda n: BDIA(1.0), 2, 1.0, (100, 200, 400), 1e-3),
    (lambda n: OBELM(), 2, 1.0, (100, 200, 400), 1e-3),
    (lambda n: OBELM(), 2, 2.0, (100, 200, 400), 1e-3),
    (lambda n: EDICT(for_steps(0.93, n)), 1, 1.0, (200, 400, 800), 0.01),
], ids=["bdia", "belm", "belm on uneven steps", "edict"])  # fmt: skip
def test_bdia_and_belm_are_of_second_order_edict_of_first(method_for, order, power, steps, most, scale):
    found = errors(method_for, scale, power, steps)
    assert found[1] / found[2] == pytest.approx(2**order, rel=0.1) and found[2] < most


LOST = [
    (EDICT(0.8), levels("eps", 50), r"p is 0\.8, .* grow 5e\+09 times over the 50 steps .* give 0\.892 to 1, usually 0\.93"),
    (BDIA(0.5), levels("eps", 50), r"gamma is 0\.5, .* grow 1e\+15 times over the 50 steps .* give 0\.832 to 1, usually 0\.92 to 1"),
    (BDIA(0.0), levels("eps", 5), r"gamma is 0, which is DDIM and has no exact inverse; give 0\.92 to 1"),
    (BDIA(), levels("eps", 1), r"There is 1 step, but a method over three levels needs 2 or more \(usually 50\); raise steps"),
    (OBELM(), levels("eps", 1), "There is 1 step, but a method over three levels needs 2 or more"),
    (OBELM(), (3.0, 2.0, 2.0, 0.0), r"The sigmas do not fall after 2; .* Take fewer, or another scheduler"),
]


@pytest.mark.parametrize("method, sigmas, message", LOST)
def test_settings_that_lose_the_image_are_refused(method, sigmas, message):
    refused(message, method.encode, derivative("eps"), draw(), sigmas, silent)


def test_bad_settings_are_refused_and_those_named_accepted():
    for p in (0.0, -0.5, 1.01):
        refused(rf"p is {p:g}; give more than 0, up to 1, usually 0\.93", EDICT, p)
    for gamma in (-0.1, 1.01):
        refused(rf"gamma is {gamma:g}; give 0\.92 to 1", BDIA, gamma)
    for method in (EDICT(0.892), BDIA(0.832)):
        method.encode(derivative("eps"), draw(), levels("eps", 50), silent)


def test_belm_refuses_steps_beyond_float32():
    sigmas = (14.6, 14.59, 14.58, 9.0, 4.0, 0.0)
    told = r"558 times longer .* about 5e-01 of the image in float32\. Choose precision float64"
    refused(told, OBELM().encode, derivative("eps"), draw(dtype=torch.float32), sigmas, silent)
    assert round_trip(OBELM(), "eps", sigmas) < 1e-7


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 200])
def test_for_steps_keeps_the_product_over_all_steps(steps):
    assert for_steps(0.93, steps) ** steps == pytest.approx(0.93**50)
    assert round_trip(EDICT(for_steps(0.93, steps)), "eps", levels("eps", steps)) < 1e-11
    assert [for_steps(p, steps) for p in (0.0, -1.0, 1.5)] == [0.0, -1.0, 1.5]  # for the method to refuse


@pytest.mark.parametrize("p", [0.8, 0.93])
def test_edict_mixing_shrinks_the_difference_by_p_squared(p):
    trajectory = Trajectory((2.0, 1.0, 0.0), ((draw(seed=1), draw(seed=2)),) * 3)
    state = trajectory.states[0]
    for i in range(2):
        after = EDICT(p).step(Derivative(lambda x, sigma: x), state, i, trajectory)
        assert_close(after[0] - after[1], p**2 * (state[0] - state[1]))
        assert_close(after[0], p * state[0] + (1 - p) * state[1])
        state = after


def test_edict_states_take_turns():
    """Which state moves first: the network is evaluated at the other."""
    inputs, trajectory = [], Trajectory((3.0, 2.0, 1.0, 0.0), ((draw(seed=1), draw(seed=2)),) * 4)
    for i in range(3):
        EDICT().step(Derivative(lambda x, sigma: inputs.append(x) or x), trajectory.states[0], i, trajectory)
    assert [int(torch.equal(x, single(trajectory.states[0][1]))) for x in inputs[::2]] == [1, 0, 1]


def test_edict_states_diverge_less_the_closer_p_is_to_one():
    tops = [EDICT(p).encode(derivative("eps"), draw(), levels("eps", 50), silent).states[0] for p in (0.97, 0.93, 0.9)]
    gaps = [apart(y, x) for x, y in tops]
    assert gaps[0] < 0.1 < gaps[1] < 0.4 < gaps[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_bdia_with_gamma_zero_samples_like_ddim(family):
    way, sigmas = derivative(family), levels(family, 6)
    states = [draw() * sigmas[0]]
    for now, goal in zip(sigmas, sigmas[1:]):
        states.append(states[-1] + (goal - now) * way(states[-1], now))
    trajectory = Trajectory(sigmas, ((states[0], states[1]),) * 7)
    assert_close(replay(BDIA(0.0), derivative(family), trajectory), states[-1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.96, 1.0])
def test_bdia_follows_a_constant_derivative_exactly(gamma):
    noise, sigmas, x0 = draw(seed=3), levels("flow", 6), draw()

    class Constant(Derivative):
        def __call__(self, x, sigma, level=None):
            self.denoised = x
            return noise

    trajectory = BDIA(gamma).encode(Constant(None), x0, sigmas, silent)
    for (x, _), sigma in zip(trajectory.states, sigmas):
        assert_close(x, x0 + sigma * noise, atol=1e-12, rtol=1e-12)


def test_bdia_weight_is_gamma_times_the_input_scales():
    weights = [BDIA(0.9).weight(Derivative(None, scale), (4.0, 2.0, 1.0, 0.0), 1) for scale in (one, vp)]
    assert weights == [0.9, pytest.approx(0.9 * (2 / 17) ** 0.5)]


def test_bdia_first_step_shows_its_state():
    """Nothing was predicted yet."""
    trajectory, shown = BDIA().encode(derivative("eps"), draw(), levels("eps", 3), silent), []
    replay(BDIA(), derivative("eps"), trajectory, show=lambda x, denoised: shown.append(denoised))
    assert torch.equal(shown[0], trajectory.states[1][0]) and len(shown) == 3


def test_bdia_noise_is_more_accurate_than_ddims():
    way, sigmas, x0 = Gaussian(vp), levels("eps", 50), draw()
    ours, plain = (apart(m.encode(way, x0, sigmas, silent).states[0][0], way.at_top(x0, sigmas[0])) for m in (BDIA(), DDIM()))
    assert ours < plain / 1.5


def test_belm_follows_a_parabola_exactly():
    """x = a + b sigma + c sigma^2 on uneven steps, which no other weights manage."""
    a, b, c = (draw(seed=i) for i in range(3))

    class Straight(Derivative):
        def __call__(self, x, sigma, level=None):
            return b + 2 * c * sigma

    def true(sigma):
        return a + b * sigma + c * sigma**2

    state = true(UNEVEN[1]), true(UNEVEN[0])
    for i in range(1, len(UNEVEN) - 1):
        state = OBELM().step(Straight(None), state, i, type("Sigmas", (), {"sigmas": UNEVEN}))
        assert_close(state[0], true(UNEVEN[i + 1]), atol=1e-11, rtol=1e-11)
    other = step_pair(Straight(None), (true(UNEVEN[1]), true(UNEVEN[0])), 1, UNEVEN, 1.0)
    assert apart(other[0], true(UNEVEN[2])) > 0.1


def test_belm_on_even_flow_steps_is_the_leapfrog():
    sigmas = levels("flow", 8)
    leapfrog, ours = (m.encode(derivative("flow"), draw(), sigmas, silent) for m in (BDIA(1.0), OBELM()))
    assert_close(ours.states[0][0], leapfrog.states[0][0], atol=1e-9, rtol=1e-9)
