import math

import pytest
from controlled_diffusion.guidance.schedules import AXES, Constant, Curve, NoiseScale, Ramp, Schedule, SigmaPower, SnrPower, Span

from checks import refused

EPS = NoiseScale(tuple(14.6 * (0.03 / 14.6) ** (i / 500) for i in range(501)))
FLOW = NoiseScale(tuple(max(1 - i / 500, 1e-3) * (1 - 1e-9 * i) for i in range(501)), flow=True)
SCALES = pytest.mark.parametrize("scale", [EPS, FLOW], ids=["eps", "flow"])


@SCALES
def test_percent_is_the_inverse_of_sigma_between_grid_points(scale):
    for percent in (0.0, 0.0001, 0.1234, 0.5, 0.77777, 0.99):
        assert scale.percent(scale.sigma(percent)) == pytest.approx(percent, abs=1e-6)


@SCALES
def test_log_snr_is_signal_power_over_noise_power(scale):
    sigma = 0.4
    snr = (0.6 / 0.4) ** 2 if scale.flow else 1 / 0.4**2
    assert scale.log_snr(sigma) == pytest.approx(math.log(snr))
    assert scale.sigma_of_log_snr(scale.log_snr(sigma)) == pytest.approx(sigma)


@SCALES
def test_powers_are_their_formulas_and_one_at_their_reference(scale):
    reference, sigma = scale.sigma(0.5), scale.sigma(0.8)
    ratio = math.exp(scale.log_snr(sigma) - scale.log_snr(reference))
    for shape, expected in ((SnrPower(0.3, 0.5, 1e9), ratio**0.3), (SigmaPower(0.7, 0.5, 1e9), (sigma / reference) ** -0.7)):
        assert Schedule(shape)(sigma, scale) == pytest.approx(expected)
        assert Schedule(shape)(reference, scale) == pytest.approx(1.0)


@SCALES
@pytest.mark.parametrize("shape", [SnrPower(4.0), SigmaPower(4.0), SnrPower(-4.0), SigmaPower(-4.0)])
def test_powers_never_explode_at_the_ends(scale, shape):
    for sigma in (0.0, 1e-9, scale.sigmas[-1], scale.sigmas[0], 1e9):
        assert 0.0999 <= Schedule(shape)(sigma, scale) <= 10.001


@SCALES
def test_ramps_reach_their_ends_and_middle(scale):
    for cosine, quarter in ((False, 0.25), (True, 0.5 - 0.5 * math.cos(math.pi / 4))):
        schedule = Schedule(Ramp(2.0, 0.5, cosine), 0.2, 0.8)
        assert [schedule(scale.sigma(p), scale) for p in (0.2, 0.5, 0.8)] == pytest.approx([2.0, 1.25, 0.5], abs=1e-6)
        assert Ramp(0, 1, cosine=cosine)(scale.sigma(0.25), Span(scale)) == pytest.approx(quarter, abs=1e-6)


@SCALES
@pytest.mark.parametrize("axis", AXES)
def test_a_ramp_is_straight_along_its_axis(scale, axis):
    span = Span(scale, 0.1, 0.9)
    first, last = (scale.reading(scale.sigma(p), axis) for p in (0.1, 0.9))
    for percent in (0.2, 0.5, 0.7):
        sigma = scale.sigma(percent)
        expected = (scale.reading(sigma, axis) - first) / (last - first)
        assert Ramp(0.0, 1.0, axis=axis)(sigma, span) == pytest.approx(expected, abs=1e-6)


@SCALES
def test_a_curve_is_read_at_the_position_in_the_span(scale):
    schedule = Schedule(Curve(lambda x: x**2, height=3.0), 0.5, 1.0)
    assert schedule(scale.sigma(0.75), scale) == pytest.approx(3 * 0.25, abs=1e-5)


@SCALES
def test_an_interval_is_zero_outside_and_untouched_inside(scale):
    schedule = Schedule(Constant(2.0), 0.3, 0.6)
    values = {p: schedule(scale.sigma(p), scale) for p in (0.0, 0.29, 0.31, 0.59, 0.61, 1.0)}
    assert values == {0.0: 0.0, 0.29: 0.0, 0.31: 2.0, 0.59: 2.0, 0.61: 0.0, 1.0: 0.0}
    assert [Schedule()(s, scale) for s in (1e9, 20.0, 1.0, 1e-6, 0.0)] == [1.0] * 5


@SCALES
def test_a_step_on_the_edge_of_an_interval_is_inside(scale):
    """However its sigma was rounded."""
    for edge in (i / 20 for i in range(1, 20)):
        for sigma in (scale.sigma(edge) * (1 + off) for off in (-3e-7, 0.0, 3e-7)):
            inside = [Schedule(start=edge), Schedule(end=edge), Schedule(start=edge - 0.001, end=edge + 0.001)]
            outside = [Schedule(start=edge + 0.001), Schedule(end=edge - 0.001)]
            assert [s(sigma, scale) for s in (*inside, *outside)] == [1, 1, 1, 0, 0]


def test_schedules_are_continuous_between_the_steps_of_a_sampler():
    schedule = Schedule(Ramp(5.0, 1.0, cosine=True))
    sigmas = [EPS.sigma(i / 10000) for i in range(10001)]
    jumps = [abs(schedule(a, EPS) - schedule(b, EPS)) for a, b in zip(sigmas, sigmas[1:])]
    assert max(jumps) < 1e-3


@pytest.mark.parametrize("start, end", [(0.6, 0.3), (-0.1, 1.0), (0.0, 1.5)])
def test_a_backward_interval_is_refused_with_both_numbers(start, end):
    refused(f"got {start} to {end}", Schedule, start=start, end=end)
