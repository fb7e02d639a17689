import math

import pytest
import torch
from controlled_diffusion.guidance.schedules import NoiseScale
from controlled_diffusion.guidance.sdedit import frozen, geometric_sigmas, sigmas_from, start_sigma

from checks import refused

EPS = NoiseScale(tuple(14.6 * (0.03 / 14.6) ** (i / 500) for i in range(501)))
FLOW = NoiseScale(tuple(max(1 - i / 500, 1e-3) * (1 - 1e-9 * i) for i in range(501)), flow=True)


def even(n):
    """A scheduler with sigmas evenly spaced in log sigma."""
    return [EPS.sigma(i / n) for i in range(n)] + [0.0]


def karras(n):
    """Karras' grid with rho 7, whose steps crowd at low noise."""
    ramp = [i / max(1, n - 1) for i in range(n)]
    return [(14.6 ** (1 / 7) + r * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for r in ramp] + [0.0]


def test_strength_in_percent_is_the_models_own_noise_level():
    assert start_sigma(0.5, "percent", EPS) == pytest.approx(EPS.sigma(0.5))
    assert start_sigma(1.0, "percent", EPS) == pytest.approx(14.6)
    assert start_sigma(0.0, "percent", EPS) == 0.0


@pytest.mark.parametrize("scale", [EPS, FLOW], ids=["eps", "flow"])
def test_percent_sigma_and_snr_name_the_same_level(scale):
    sigma = start_sigma(0.4, "percent", scale)
    assert start_sigma(sigma, "sigma", scale) == sigma
    assert start_sigma(math.exp(scale.log_snr(sigma)), "snr", scale) == pytest.approx(sigma)


def test_ve_reads_strength_in_equal_ratios_but_for_flow():
    assert start_sigma(0.5, "percent", EPS, "VE") == pytest.approx(math.sqrt(14.6 * 0.03))
    assert start_sigma(0.5, "percent", FLOW, "VE") == start_sigma(0.5, "percent", FLOW, "VP")


@pytest.mark.parametrize("grid", [even, karras])
@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_every_scheduler_starts_at_the_strength_with_all_steps(grid, steps, strength):
    start = start_sigma(strength, "percent", EPS)
    sigmas = sigmas_from(start, steps, grid)
    assert sigmas[0] == start and sigmas[-1] == 0.0 and len(sigmas) - 1 == steps
    assert all(a > b for a, b in zip(sigmas, sigmas[1:]))


def test_geometric_sigmas_keep_their_ratio():
    sigmas = geometric_sigmas(8.0, 4, 1.0)
    assert sigmas == pytest.approx([8.0, 4.0, 2.0, 1.0, 0.0])


def test_frozen_values_are_the_originals_bit_for_bit():
    result, original = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float() * 0.5
    kept = frozen(result, original, mask)
    hidden = (mask == 0).expand_as(kept)
    assert torch.equal(kept[hidden], original[hidden]) and torch.equal(kept[~hidden], result[~hidden])


@pytest.mark.parametrize("strength, unit, message", [
    (1.5, "percent", "1.5 percent; give 0"),
    (-0.1, "percent", "-0.1 percent"),
    (99.0, "sigma", "sigma 99; this model goes from 0 to 14.6"),
    (0.001, "snr", r"an SNR of 0.001; the noisiest level of this model has 0.00469\d. Raise it"),
    (0.0, "snr", "an SNR of 0.0; give a number above 0"),
    (math.nan, "percent", "nan percent"),
])  # fmt: skip
def test_an_impossible_strength_is_refused_with_the_range(strength, unit, message):
    refused(message, start_sigma, strength, unit, EPS)
