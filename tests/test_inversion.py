"""What all inversions share, and DDIM inversion, on models with known answers."""

import pytest
import torch
from controlled_diffusion.inversion.belm import OBELM
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import Derivative, Trajectory, method_named, replay
from controlled_diffusion.inversion.negative_prompt import NegativePrompt
from controlled_diffusion.inversion.null_text import NullText
from controlled_diffusion.inversion.rf_inversion import RFInversion
from torch.testing import assert_close

from checks import refused
from denoisers import FAMILIES, Gaussian, Seen, apart, derivative, draw, levels, one, silent, vp


def grid(steps: int, top: float = 10.0) -> tuple[float, ...]:
    return tuple(top * (1 - i / steps) ** 2 for i in range(steps + 1))


@pytest.mark.parametrize("scale", [one, vp])
def test_ddim_error_halves_with_the_step(scale):
    def round_trip(steps):
        return apart(replay(DDIM(), Gaussian(scale), DDIM().encode(Gaussian(scale), draw(), grid(steps), silent)), draw())

    errors = [round_trip(n) for n in (50, 100, 200)]
    assert errors[0] > errors[1] > errors[2] and errors[1] / errors[2] == pytest.approx(2.0, rel=0.25)


def test_ddim_is_the_papers_encoding_in_vp_space():
    """z' = a' (z - b eps) / a + b' eps, with eps of the state as it is at the next timestep."""
    x0, sigmas = draw(1, 4, 8, 8), grid(6)

    def network(z, sigma):
        return torch.sin(3 * z.roll(1, -1)) * 0.3 + z * sigma / 20  # eps of a VP latent

    def model(x, sigma):
        sigma = sigma.double().view(-1, 1, 1, 1)
        return x - sigma * network(x.double() * vp(sigma), sigma)

    trajectory = DDIM().encode(Derivative(model, vp), x0, sigmas, silent)
    z = x0
    for now, goal in zip(sigmas[::-1], sigmas[::-1][1:]):
        eps = network(z, torch.tensor(goal))
        z = vp(goal) * (z - now * vp(now) * eps) / vp(now) + goal * vp(goal) * eps
    assert_close(trajectory.states[0][0] * vp(sigmas[0]), z, atol=1e-5, rtol=1e-5)


def test_trajectory_has_the_falling_sigmas_and_ends_at_the_image():
    trajectory = DDIM().encode(derivative("eps"), draw(), grid(5), silent)
    assert trajectory.sigmas == grid(5) and trajectory.steps == 5
    assert torch.equal(trajectory.states[-1][0], draw())
    held = replay(DDIM(), derivative("eps", prompt=1.0), trajectory, between=lambda state, level: trajectory.states[level])
    assert torch.equal(held, draw())  # what is changed between the steps lasts
    refused("1 states for 3 sigmas", Trajectory, (2.0, 1.0, 0.0), ((draw(),),))


def test_branches_repeat_the_whole_batch():
    one = Trajectory((1.0, 0.0), ((draw(),),) * 2, {"maps": draw(3, 2, 4, 8, 8)})
    two = one.branches(2)
    assert torch.equal(two.states[-1][0], torch.cat([draw(), draw()]))
    assert two.extras["maps"].shape == (3, 4, 4, 8, 8) and torch.equal(two.extras["maps"][:, :2], two.extras["maps"][:, 2:])
    assert one.branches(1) is one


def test_methods_are_found_by_name():
    assert method_named("ddim") is DDIM and method_named("o-belm") is OBELM
    refused(r"'warp' is no inversion method of this version; it knows .*ddim", method_named, "warp")


def test_ddim_is_exact_where_the_derivative_is_constant():
    noise = draw(1, 4, 8, 8, seed=3)
    way = Derivative(lambda x, sigma: x.double() - sigma.double().view(-1, 1, 1, 1) * noise)
    trajectory = DDIM().encode(way, draw(1, 4, 8, 8), grid(4), silent)
    assert_close(trajectory.states[0][0], draw(1, 4, 8, 8) + 10 * noise, atol=1e-5, rtol=1e-5)
    assert_close(replay(DDIM(), way, trajectory), draw(1, 4, 8, 8), atol=1e-5, rtol=1e-5)


ALIGNABLE = [DDIM(), DDIM(extrapolate=True), DDIM(fixed_point_iterations=9), NegativePrompt(), NegativePrompt(extrapolate=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ALIGNABLE)
def test_aligned_the_image_comes_back_exactly(method, family):
    way, sigmas = derivative(family), levels(family, 6)
    trajectory = method.encode(way, draw(), sigmas, silent)
    assert apart(replay(method, way, trajectory, align=True), draw()) < 1e-5
    assert apart(replay(method, way, trajectory), draw()) > 1e-3 or getattr(method, "fixed_point_iterations", 0)


@pytest.mark.parametrize("method, message", [(OBELM(), "an inversion by 'o-belm' cannot"), (DDIM(order=2), "inversion is of order 2")])
def test_what_cannot_be_aligned_is_refused(method, message):
    trajectory = method.encode(derivative("eps"), draw(), grid(4), silent)
    refused(message, replay, method, derivative("eps"), trajectory, align=True)


def test_aligned_an_edit_is_evaluated_beside_the_inversion():
    """Off its path by as much as its own state, with the input scale of the path's level there."""
    trajectory, x, reached = DDIM().encode(Gaussian(vp), draw(), grid(4), silent), draw(seed=1), []

    def between(state, level):
        reached.append(state[0])
        return (x,)

    replay(DDIM(), Gaussian(vp), trajectory, align=True, between=between)
    (now, goal), (before,), (after,) = grid(4)[1:3], *trajectory.states[1:3]
    assert_close(reached[1], x + (goal - now) * Gaussian(vp)(x + after - before, now, goal))


def test_ddim_evaluates_once_a_step_and_never_at_sigma_zero():
    way = Seen()
    replay(DDIM(), way, DDIM().encode(way, draw(), grid(5), silent))
    assert min(way.sigmas) > 0 and way.calls == 10
    assert way.sigmas == pytest.approx([*sorted(grid(5)[:-1]), *grid(5)[:-1]])


BAD = [
    (DDIM, dict(order=3), "order is 3; give 1"),
    (DDIM, dict(fixed_point_iterations=-1), "fixed_point_iterations is -1; give 0"),
    (DDIM, dict(acceleration="newton"), "acceleration is 'newton'; choose one of anderson, picard"),
    (DDIM, dict(tolerance=-1.0), "tolerance is -1; give 0"),
    (NegativePrompt, dict(interpolation=1.5), "interpolation is 1.5; give 0 to 1"),
    (NegativePrompt, dict(quantile=-0.1), "quantile is -0.1; give 0 to 1"),
    (NegativePrompt, dict(guidance="l2"), "guidance is 'l2'; choose one of plain, proximal l0, proximal l1, Uni-Edit"),
    (NegativePrompt, dict(fixed_point_iterations=-1), "fixed_point_iterations is -1; give 0"),
    (NullText, dict(start="noise"), "start is 'noise'; choose one of source, empty"),
    (NullText, dict(optimizer="sgd"), "optimizer is 'sgd'; choose one of fast, adam"),
    (NullText, dict(inner_steps=-1), "inner_steps is -1; give 0"),
    (NullText, dict(learning_rate=0.0), "learning_rate is 0; give more than 0"),
    *((NullText, {name: -1.0}, f"{name} is -1; give 0") for name in ("early_stop", "smoothness", "l1", "perceptual")),
    (RFInversion, dict(gamma=1.5), "gamma is 1.5; give 0"),
    (RFInversion, dict(eta=-0.1), "eta is -0.1; give 0"),
    (RFInversion, dict(start_sigma=0.2, end_sigma=0.6), "start_sigma is 0.2 and end_sigma 0.6"),
    (RFInversion, dict(decay=-1.0), "decay is -1; give 0"),
]


@pytest.mark.parametrize("method, settings, message", BAD)
def test_bad_settings_are_refused(method, settings, message):
    refused(message, method, **settings)
