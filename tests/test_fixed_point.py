"""The options of DDIM inversion: fixed-point iterations and midpoint steps."""

import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.fixed_point import anderson, distance, solve
from controlled_diffusion.inversion.method import Derivative, replay
from torch.testing import assert_close

from denoisers import FAMILIES, apart, derivative, draw, levels, one, round_trip, silent

ACCELERATIONS = ["picard", "anderson"]
STEPS = 10


def encode(method, way, x0=None, sigmas=None):
    return method.encode(way, draw() if x0 is None else x0, levels("flow", STEPS) if sigmas is None else sigmas, silent)


def by_hand(way, x0, sigmas):
    """The states of plain DDIM inversion, the image's first."""
    states = [x0]
    for now, goal in zip(sigmas[::-1], sigmas[::-1][1:]):
        states.append(states[-1] + (goal - now) * way(states[-1], goal, now))
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_without_iterations_it_is_ddim_inversion(family):
    trajectory = encode(DDIM(), derivative(family), sigmas=levels(family, STEPS))
    expected = by_hand(derivative(family), draw(), levels(family, STEPS))
    assert all(torch.equal(state[0], x) for state, x in zip(trajectory.states[::-1], expected)) and trajectory.extras == {}


class Apples(torch.Tensor):
    """As tensors on an Apple GPU, which has no float64."""

    device = property(lambda self: torch.device("mps"))

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


@pytest.mark.parametrize("options", [dict(), *(dict(fixed_point_iterations=5, acceleration=a) for a in ACCELERATIONS)], ids=str)
def test_a_device_without_float64_takes_float32(options):
    def way(x, at, level=None):
        return torch.tanh(x.roll(1, -1)) / (1 + at)

    way.denoised = None
    plain, apples = (encode(DDIM(**options), way, x0) for x0 in (draw().float(), draw().float().as_subclass(Apples)))
    assert_close(apples.states[0][0].as_subclass(torch.Tensor), plain.states[0][0], atol=1e-5, rtol=1e-5)
    assert all(t.dtype == torch.float32 for t in apples.extras.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_extrapolation_is_more_exact_at_the_same_cost(family):
    """Both errors fall with the step, that of extrapolated states from far below."""
    plain, ahead = ([round_trip(DDIM(extrapolate=e), family, levels(family, n)) for n in (20, 40, 80)] for e in (False, True))
    assert all(b < a / 2 for a, b in zip(plain, ahead)) and all(b < a / 1.9 for a, b in zip(ahead, ahead[1:]))
    way = derivative(family)
    encode(DDIM(extrapolate=True), way)
    assert way.calls == STEPS


def test_the_model_sees_the_extrapolated_state():
    sigmas, way, seen = levels("flow", 4), derivative("flow"), []

    def watched(x, at, level=None):
        seen.append(x)
        return way(x, at, level)

    watched.denoised = None
    states = [x for (x,) in encode(DDIM(extrapolate=True), watched, sigmas=sigmas).states[::-1]]
    up = sigmas[::-1]
    slopes = [(b - a) / (t - s) for a, b, s, t in zip(states, states[1:], up, up[1:])]
    assert torch.equal(seen[0], states[0])
    for i, slope in enumerate(slopes[:-1], 1):
        assert_close(seen[i], states[i] + (up[i + 1] - up[i]) * slope)
        assert_close(states[i + 1], states[i] + (up[i + 1] - up[i]) * way(seen[i], up[i + 1]))


def test_midpoint_steps_do_not_extrapolate():
    plain, asked = (encode(DDIM(2, extrapolate=e), derivative("eps")) for e in (False, True))
    assert torch.equal(plain.states[0][0], asked.states[0][0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_iterations_make_the_round_trip_exact(family, order, acceleration):
    errors = [round_trip(DDIM(order, k, acceleration, tolerance=0), family, levels(family, 20)) for k in (0, 1, 2, 5, 10)]
    assert errors[0] > 2e-6 and errors[-1] < 1e-6
    assert all(b < max(a / 2, 1e-6) for a, b in zip(errors, errors[1:]))


@pytest.mark.parametrize("order", [1, 2])
def test_anderson_needs_fewer_iterations_where_picard_is_slow(order):
    picard, anderson = ([round_trip(DDIM(order, k, a), "v", levels("v", 3)) for k in (2, 5, 10)] for a in ACCELERATIONS)
    assert all(fast < slow / 5 for fast, slow in zip(anderson, picard))
    assert anderson[-1] < 2e-6 and picard[-1] > 1e-3


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_residuals_of_every_step_and_sample_are_kept(acceleration):
    few, more = (encode(DDIM(1, k, acceleration), derivative("flow")).extras["residuals"] for k in (2, 6))
    assert few.shape == (STEPS, 2) and bool((more < few).all()) and bool((more > 0).all())


def test_the_residual_is_that_of_the_step_down():
    sigmas, way = levels("flow", STEPS), derivative("flow")
    found = DDIM(1, 1).encode(way, draw(), sigmas, silent)
    plain = by_hand(way, found.states[1][0], sigmas[:2])[-1]  # where the last step up starts to iterate
    down = plain + (sigmas[1] - sigmas[0]) * way(plain, sigmas[0])
    image = plain + (found.states[1][0] - down)
    assert_close(found.extras["residuals"][0], distance(image, plain))
    assert_close(found.states[0][0], image)


def test_the_iterations_end_at_the_tolerance():
    calls = {}
    for tolerance in (0.0, 1e-4, 1e-1):
        way = derivative("flow")
        residuals = encode(DDIM(1, 12, tolerance=tolerance), way).extras["residuals"]
        calls[tolerance] = way.calls
        assert bool((residuals <= max(tolerance, 1e-6)).all())
    assert calls[0.0] <= 13 * STEPS and 13 * STEPS > calls[1e-4] > calls[1e-1] == 2 * STEPS


def scripted(*values):
    """A map that gives these numbers one after the other, whatever it is asked."""
    given = iter(values)
    return lambda y: torch.full_like(y, next(given))


def solved(image, start=1.0, least=torch.inf, iterations=3, acceleration="picard", tolerance=0.0):
    first, known = torch.full((1, 1), start, dtype=torch.float64), torch.tensor([least]).double()
    return tuple(map(float, solve(image, first, known, iterations, acceleration, tolerance)))


def test_picard_stops_where_the_residual_grows():
    assert solved(scripted(2.0, 2.2, 4.0)) == (2.0, pytest.approx(0.1))  # of 1, 2 and 2.2 the residuals are 1, 0.1 and 0.8
    assert solved(scripted(2.0, 2.2, 2.21)) == (2.21, pytest.approx(0.01 / 2.2))  # 1, 0.1 and 0.005: the last one's image
    assert solved(scripted(3.0), least=0.5) == (1.0, 0.5)  # worse than what is known: the start


def test_anderson_keeps_the_best_and_outdoes_a_diverging_picard():
    assert solved(scripted(2.0, 9.0), iterations=2, acceleration="anderson") == (1.0, 1.0)
    assert solved(scripted(3.0), iterations=1, least=0.5, acceleration="anderson") == (1.0, 0.5)
    assert solved(lambda y: 4 - 3 * y, start=2.0) == (2.0, 2.0)  # from 2 to -2, where the residual has grown from 2 to 6
    found, residual = solved(lambda y: 4 - 3 * y, start=2.0, acceleration="anderson")
    assert found == pytest.approx(1.0) and residual < 1e-9


def test_diverging_iterations_leave_plain_inversion():
    way = Derivative(lambda x, sigma: x + 8 * sigma.view(-1, 1, 1, 1) * x, one)  # a velocity of -8 x: a step of a quarter maps y to x - 2 y
    methods = DDIM(1, 0, "picard"), DDIM(1, 9, "picard"), DDIM(1, 9, "anderson")
    plain, picard, anderson = (encode(m, way, sigmas=(0.75, 0.5, 0.25, 0.0)).states[0][0] for m in methods)
    assert torch.equal(picard, plain)
    assert_close(anderson, draw() / 3**3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_every_sample_of_a_batch_stops_by_itself(acceleration):
    gains = torch.tensor([0.2, 0.9, -3.0]).double().view(3, 1)

    def found(rows):
        return solve(lambda y: gains[rows] * y + 1, torch.ones(len(rows), 5).double(), torch.full([len(rows)], 10.0), 6, acceleration, 1e-3)

    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(found([0, 1, 2]), zip(*(found([i]) for i in range(3)))))


def test_anderson_solves_three_dimensions_in_four_evaluations():
    matrix, goal = 0.9 * torch.linalg.qr(draw(3, 3))[0], draw(1, 3, seed=1)
    ys, images = [torch.zeros(1, 3).double()], []
    for _ in range(4):
        images.append((ys[-1] - goal) @ matrix + goal)
        ys.append(anderson(ys[-4:], images[-4:]))
    assert apart(ys[-1], goal) < 1e-5 and apart(images[-1], goal) > 1e-3


@pytest.mark.parametrize("family, highest", [("eps", 3.0), ("flow", 1.0)])
@pytest.mark.parametrize("order", [1, 2])
def test_ddim_is_of_first_order_and_midpoint_of_second(family, highest, order):
    def top(order, steps):
        return encode(DDIM(order), derivative(family), sigmas=tuple(highest * (1 - i / steps) for i in range(steps + 1))).states[0][0]

    exact = top(2, 400)
    errors = [apart(top(order, steps), exact) for steps in (8, 16, 32)]
    assert [a / b for a, b in zip(errors, errors[1:])] == pytest.approx([2**order] * 2, rel=0.2)


def rf_solver(velocity, x, now, goal):
    """The second-order formula of RF-Solver: a Taylor step with the velocity's derivative from half a step ahead."""
    h, v = goal - now, velocity(x, now)
    dv_ds = (velocity(x + h / 2 * v, now + h / 2) - v) / (h / 2)
    return x + h * v + h**2 / 2 * dv_ds


def test_a_midpoint_step_is_rf_solvers_formula_on_both_ways():
    sigmas, way = levels("flow", STEPS), derivative("flow")
    trajectory = encode(DDIM(2), way)
    states = [x for (x,) in trajectory.states]
    for i in range(STEPS - 1):  # the step up from sigma 0 asks its first velocity at its end
        assert_close(states[i], rf_solver(way, states[i + 1], sigmas[i + 1], sigmas[i]), atol=1e-6, rtol=1e-6)
    for i in range(STEPS):
        after = DDIM(2).step(way, trajectory.states[i], i, trajectory)[0]
        assert_close(after, rf_solver(way, states[i], *sigmas[i : i + 2]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method, evaluations", [(DDIM(2), 4), (DDIM(1, 3, tolerance=0), 5), (DDIM(2, 3, tolerance=0), 10)], ids=str)
def test_evaluations_are_counted_and_none_is_at_sigma_zero(method, evaluations):
    seen, way = [], derivative("flow")
    way.model = lambda x, sigma, inner=way.model: seen.append(float(sigma[0])) or inner(x, sigma)
    replay(method, way, encode(method, way))
    assert len(seen) == way.calls == evaluations * STEPS and min(seen) > 0
