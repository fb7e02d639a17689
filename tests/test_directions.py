"""Adaptive projected guidance and CFG-zero-star against their definitions and limits."""

import pytest
import torch
from controlled_diffusion.guidance.directions import Shaping, fitted_null, projected
from torch.testing import assert_close

from checks import draw, refused

X, COND, NULL = (draw(3, 4, 5, 5, seed=seed, dtype=torch.float64) for seed in range(3))
ZEROS = torch.zeros(3, dtype=torch.float64)


def norms(t):
    return t.flatten(1).norm(dim=1)


def dots(a, b):
    return (a * b).flatten(1).sum(1)


def test_neutral_shaping_is_the_plain_difference():
    direction, kept = Shaping()(COND, NULL, X)
    assert torch.equal(direction, COND - NULL) and torch.equal(kept, COND - NULL) and Shaping().neutral


def test_eta_weighs_the_part_parallel_to_the_prediction():
    assert_close(dots(Shaping(apg_eta=0.0)(COND, NULL, X)[0], COND), ZEROS, atol=1e-12, rtol=0)
    whole, orthogonal = COND - NULL, projected(COND - NULL, COND, 0.0)
    assert_close(projected(COND - NULL, COND, 0.3), orthogonal + 0.3 * (whole - orthogonal))


def test_the_norm_is_capped_per_sample_and_short_directions_stay():
    limit = float(norms(COND - NULL)[0]) * 1.0001
    direction, _ = Shaping(apg_norm=limit)(COND, NULL, X)
    assert (norms(direction) <= limit * (1 + 1e-9)).all()
    assert_close(direction[0], (COND - NULL)[0])


def test_momentum_adds_the_running_direction_before_the_cap():
    shaping = Shaping(apg_momentum=-0.5)
    first, running = shaping(COND, NULL, X)
    second, after = shaping(COND, NULL, X, running)
    assert_close(first, COND - NULL)
    assert_close(second, 0.5 * (COND - NULL))
    assert_close(after, second)
    capped, kept = Shaping(apg_momentum=-0.5, apg_norm=1e-3)(COND, NULL, X, running)
    assert_close(kept, second)
    assert_close(norms(capped), torch.full((3,), 1e-3, dtype=torch.float64))


def test_the_fitted_null_is_the_nearest_multiple_of_its_velocity():
    assert_close(dots(COND - fitted_null(COND, NULL, X), X - NULL), ZEROS, atol=1e-10, rtol=0)
    assert_close(fitted_null(COND, X - 2 * (X - COND), X), COND)


def test_equal_predictions_have_no_direction():
    direction, _ = Shaping(apg_eta=0.0, apg_norm=1.0, zero_star=True)(COND, COND, X)
    assert_close(direction, torch.zeros_like(COND), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shaping", [Shaping(apg_eta=0.0, apg_norm=2.0), Shaping(zero_star=True)], ids=["apg", "zero star"])
def test_shaping_acts_on_the_weight_above_1(shaping):
    shaped, delta = shaping(COND, NULL, X)[0], COND - NULL
    for weight, expected in ((4.0, delta + 3 * shaped), (1.0, delta), (0.25, 0.25 * delta), (-2.0, -2 * shaped), (0.0, 0 * delta)):
        assert_close(weight * shaping.direction(COND, NULL, X, weight)[0], expected)


@pytest.mark.parametrize("wrong", [dict(apg_eta=-0.1), dict(apg_momentum=1.5), dict(apg_norm=-1.0), dict(apg_eta=float("nan"))])
def test_wrong_values_are_refused_by_name(wrong):
    refused(f"{next(iter(wrong))} is", Shaping, **wrong)
