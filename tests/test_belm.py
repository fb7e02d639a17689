"""O-BELM on models with known answers and on wild ones."""

import pytest
import torch
from controlled_diffusion.inversion.bdia import BDIA
from controlled_diffusion.inversion.belm import OBELM
from controlled_diffusion.inversion.exact import step_pair
from controlled_diffusion.inversion.method import Derivative, method_named, replay, single
from torch.testing import assert_close

from denoisers import Seen, apart, derivative, draw, errors, levels, network, one, round_trip, silent, vp

FAMILIES = ("eps", "v", "flow")
UNEVEN = (5.0, 4.5, 3.0, 2.7, 1.1, 0.4, 0.3, 0.0)


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_way_back_gives_the_image_to_the_last_digits(family, cfg, strength):
    for steps, single_precision in ((3, 1e-5), (7, 1e-5), (8, 1e-5), (50, 1e-5), (200, 5e-5)):
        sigmas = levels(family, steps, strength)
        assert round_trip(OBELM(), family, sigmas, cfg) < 1e-12, steps
        assert round_trip(OBELM(), family, sigmas, cfg, torch.float32) < single_precision, steps


def test_the_way_back_is_exact_on_any_falling_sigmas():
    assert round_trip(OBELM(), "eps", UNEVEN) < 1e-12
    assert round_trip(OBELM(), "flow", tuple(s / 5 for s in UNEVEN)) < 1e-12


def test_a_parabola_is_followed_exactly_whatever_the_steps():
    """x = a + b sigma + c sigma^2: what no other weights manage on uneven steps."""
    a, b, c = (draw(seed=i) for i in range(3))

    class Straight(Derivative):
        def __call__(self, x, at, level=None):
            return b + 2 * c * at

    def true(sigma):
        return a + b * sigma + c * sigma**2

    carry = true(UNEVEN[1]), true(UNEVEN[0])
    for i in range(1, len(UNEVEN) - 1):
        carry = OBELM().step(Straight(None), carry, i, type("Sigmas", (), {"sigmas": UNEVEN}))
        assert_close(carry[0], true(UNEVEN[i + 1]), atol=1e-11, rtol=1e-11)
    other = step_pair(Straight(None), (true(UNEVEN[1]), true(UNEVEN[0])), 1, UNEVEN, 1.0)
    assert apart(other[0], true(UNEVEN[2])) > 0.1


def reference_step(z, before, i, sigmas, eps):
    """The update of the paper in VP space; its h counts steps of sigma / alpha, its i falls."""
    alpha = [vp(s) for s in sigmas]
    h, h_before = sigmas[i] - sigmas[i + 1], sigmas[i - 1] - sigmas[i]
    return (
        (h / h_before) ** 2 * alpha[i + 1] / alpha[i - 1] * before
        + (h_before**2 - h**2) / h_before**2 * alpha[i + 1] / alpha[i] * z
        - h * (h + h_before) / h_before * alpha[i + 1] * eps(z, sigmas[i])
    )


def test_it_is_the_paper_in_vp_space():
    sigmas = levels("eps", 9, 0.8)

    def seen(x, sigma):
        return network(single(x).double() * vp(sigma), torch.tensor([sigma], dtype=torch.float64))

    class Exact(Derivative):  # a denoised image loses digits of eps; the reference keeps them
        def __call__(self, x, at, level=None):
            self.denoised = x if level is None else x * (self.input_scale(level) / self.input_scale(at))
            return seen(self.denoised, at)

    trajectory = OBELM().encode(Exact(None, vp), draw(), sigmas, silent)
    before, z = (t * vp(s) for (t, _), s in zip(trajectory.states[:2], sigmas))
    for i in range(1, trajectory.steps):
        before, z = z, reference_step(z, before, i, sigmas, lambda z, s: seen(z / vp(s), s))
        assert apart(trajectory.states[i + 1][0] * vp(sigmas[i + 1]), z) < 1e-12


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("scale", [one, vp])
def test_the_error_of_the_noise_falls_with_the_square_of_the_step(scale, power):
    found = errors(lambda n: OBELM(), scale, power)
    assert found[1] / found[2] == pytest.approx(4, rel=0.1) and found[2] < 1e-3


def test_on_even_steps_it_is_the_leapfrog_of_a_flow_model():
    sigmas = levels("flow", 8)
    leapfrog, ours = (m.encode(derivative("flow"), draw(), sigmas, silent) for m in (BDIA(1.0), OBELM()))
    assert_close(ours.states[0][0], leapfrog.states[0][0], atol=1e-9, rtol=1e-9)


def test_each_step_asks_once_and_never_at_sigma_zero():
    way, sigmas = Seen(), levels("eps", 5)
    trajectory = OBELM().encode(way, draw(), sigmas, silent)
    assert way.sigmas == pytest.approx(sorted([*sigmas[1:-1], sigmas[-2]]))
    replay(OBELM(), way, trajectory)
    assert way.sigmas[5:] == pytest.approx(sigmas[1:-1])


def test_another_prompt_gives_another_image():
    trajectory = OBELM().encode(derivative("v"), draw(), levels("v", 10), silent)
    assert apart(replay(OBELM(), derivative("v", prompt=1.0), trajectory), draw()) > 0.05


def test_sigmas_that_stand_still_are_refused():
    with pytest.raises(ValueError, match=r"The sigmas do not fall after 2; .* Take fewer, or another scheduler"):
        OBELM().encode(derivative("eps"), draw(), (3.0, 2.0, 2.0, 0.0), silent)


def test_steps_that_grow_beyond_float32_are_refused_there_and_exact_in_float64():
    sigmas = (14.6, 14.59, 14.58, 9.0, 4.0, 0.0)
    with pytest.raises(ValueError, match=r"558 times longer .* about 5e-01 of the image in float32\. Choose precision float64"):
        OBELM().encode(derivative("eps"), draw(dtype=torch.float32), sigmas, silent)
    assert round_trip(OBELM(), "eps", sigmas) < 1e-7


def test_one_step_is_refused():
    with pytest.raises(ValueError, match="There is 1 step, but a method over three levels needs 2 or more"):
        OBELM().encode(derivative("eps"), draw(), levels("eps", 1), silent)


def test_a_file_calls_it_o_belm():
    assert method_named("o-belm") is OBELM
