"""What all inversions share, and DDIM inversion, on models with known answers."""

import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import Derivative, Trajectory, method_named, replay
from torch.testing import assert_close


def silent(x, denoised):
    pass


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean=0.5, deviation=0.7):
    """The exact denoiser of Gaussian data."""
    return lambda x, sigma: mean + deviation**2 / (deviation**2 + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)


def wild(x, sigma):
    """A denoiser with nothing to recommend it but that it is a function."""
    s = sigma.view(-1, 1, 1, 1)
    return torch.tanh(x.roll(1, -1) * 1.3 - x.flip(-2) * 0.4 + s.log1p()) * 0.8


def vp(sigma):
    return (1 + sigma**2) ** -0.5


def grid(steps: int, top: float = 10.0) -> tuple[float, ...]:
    return tuple(top * (1 - i / steps) ** 2 for i in range(steps + 1))


def round_trip(steps: int, **scale) -> float:
    derivative, x0 = Derivative(gaussian(), **scale), draw(2, 4, 8, 8).double()
    trajectory = DDIM().encode(derivative, x0, grid(steps), silent)
    return float((replay(DDIM(), derivative, trajectory) - x0).norm() / x0.norm())


@pytest.mark.parametrize("scale", [{}, {"input_scale": vp}], ids=["plain", "vp"])
def test_the_error_of_ddim_inversion_halves_with_the_step(scale):
    errors = [round_trip(n, **scale) for n in (50, 100, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.25)


def test_the_trail_is_the_ddim_encoding_in_its_own_space():
    """The reference in VP: z' = a' (z - b eps) / a + b' eps, with eps of the state as it is at the next timestep."""
    x0, sigmas = draw(1, 4, 8, 8).double(), grid(6)

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


def test_the_trail_falls_along_the_sigmas_and_ends_at_the_image():
    x0 = draw(1, 4, 8, 8)
    trajectory = DDIM().encode(Derivative(wild), x0, grid(5), silent)
    assert trajectory.sigmas == grid(5) and trajectory.steps == 5
    assert torch.equal(trajectory.states[-1][0], x0)


def test_a_model_whose_slope_is_constant_comes_back_exactly():
    noise = draw(1, 4, 8, 8, seed=3).double()
    derivative = Derivative(lambda x, sigma: x.double() - sigma.double().view(-1, 1, 1, 1) * noise)
    x0 = draw(1, 4, 8, 8).double()
    trajectory = DDIM().encode(derivative, x0, grid(4), silent)
    assert_close(trajectory.states[0][0], x0 + 10 * noise, atol=1e-5, rtol=1e-5)
    assert_close(replay(DDIM(), derivative, trajectory), x0, atol=1e-5, rtol=1e-5)


def test_no_evaluation_is_made_at_sigma_zero_and_each_step_makes_one():
    seen = []
    derivative = Derivative(lambda x, sigma: seen.append(float(sigma[0])) or x * 0)
    replay(DDIM(), derivative, DDIM().encode(derivative, draw(1, 4, 8, 8), grid(5), silent))
    assert min(seen) > 0 and len(seen) == derivative.calls == 10
    assert seen == pytest.approx([*sorted(grid(5)[:-1]), *grid(5)[:-1]])


def test_what_is_changed_between_the_steps_stays_changed():
    derivative, x0 = Derivative(wild), draw(1, 4, 8, 8)
    trajectory = DDIM().encode(derivative, x0, grid(5), silent)
    kept = replay(DDIM(), Derivative(lambda x, s: wild(x, s) + 1), trajectory, between=lambda carry, level: trajectory.states[level])
    assert torch.equal(kept, x0)


def test_branches_repeat_the_whole_batch_one_after_the_other():
    x0 = draw(2, 4, 8, 8)
    trajectory = DDIM().encode(Derivative(wild), x0, grid(3), silent)
    two = Trajectory(trajectory.sigmas, trajectory.states, {"maps": draw(3, 2, 4, 8, 8)}).branches(2)
    assert torch.equal(two.states[-1][0], torch.cat([x0, x0]))
    assert two.extras["maps"].shape == (3, 4, 4, 8, 8) and torch.equal(two.extras["maps"][:, :2], two.extras["maps"][:, 2:])
    assert trajectory.branches(1) is trajectory


def test_a_trail_without_a_state_for_every_sigma_is_refused():
    with pytest.raises(ValueError, match="1 states for 3 sigmas"):
        Trajectory((2.0, 1.0, 0.0), ((draw(1, 4, 8, 8),),))


def test_a_method_is_found_by_its_name_and_an_unknown_one_refused():
    assert method_named("ddim") is DDIM
    with pytest.raises(ValueError, match=r"'warp' is no inversion method of this version; it knows .*ddim"):
        method_named("warp")
