"""Negative-prompt inversion: the negative on the arc, and guidance without its small differences."""

import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import replay
from controlled_diffusion.inversion.negative_prompt import L0, L1, NegativePrompt, by_region, slerp, without_small
from torch.testing import assert_close

from denoisers import derivative, draw, levels, silent


def test_slerp_has_even_speed_and_length():
    a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    a, b = (t / t.flatten(1).norm(dim=1).view(2, 1, 1) for t in (a, b))
    assert slerp(a, b, 0.0) is a and slerp(a, b, 1.0) is b
    middle, quarter = slerp(a, b, 0.5), slerp(a, b, 0.25)
    assert_close(middle, (a + b) / (a + b).flatten(1).norm(dim=1).view(2, 1, 1))
    assert_close(slerp(a, middle, 0.5), quarter)
    assert_close(quarter[1:], slerp(a[1:], b[1:], 0.25))


def test_slerp_between_equals_changes_nothing():
    a = draw(1, 5, 3)
    assert_close(slerp(a, a.clone(), 0.3), a)


def test_small_differences_are_left_out():
    difference = torch.tensor([[-5.0, 1.0, 2.0, -3.0, 4.0], [50.0, 10.0, 20.0, 30.0, -40.0]])
    assert without_small(difference, L0, 0.6).tolist() == [[-5, 0, 0, 0, 4], [50, 0, 0, 0, -40]]
    assert without_small(difference, L1, 0.6).tolist() == [[-2, 0, 0, 0, 1], [20, 0, 0, 0, -10]]


@pytest.mark.parametrize("kind", [L0, L1])
def test_quantile_zero_changes_nothing_and_one_leaves_nothing(kind):
    difference = draw(2, 4, 8, 8)
    assert torch.equal(without_small(difference, kind, 0.0), difference) and NegativePrompt().direction(5.0) is None
    assert not without_small(difference, kind, 1.0).any()
    assert float((without_small(difference, kind, 0.7) != 0).double().mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8)])
def test_uni_edit_is_the_papers_velocity(shape):
    """m v_T + (1 - m) v_S + w (1 + m) (v_T - v_S), with m of each sample from 0 to 1."""
    source, target, w = draw(*shape), draw(*shape, seed=1), 5.0
    guided = source + w * NegativePrompt(guidance="Uni-Edit").direction(w)(target - source)
    for made, one, other in zip(guided, source, target):
        size = (other - one).abs().mean(0)
        m = (size - size.min()) / (size.max() - size.min())
        assert_close(made, m * other + (1 - m) * one + w * (1 + m) * (other - one))


def test_uni_edit_is_plain_where_all_differs_alike():
    same = torch.ones(1, 4, 8, 8)
    assert torch.equal(by_region(same, 5.0), same) and torch.equal(by_region(draw(), 0.0), draw())
    assert not by_region(0 * same, 5.0).any()


def test_it_is_ddim_with_or_without_fixed_point():
    sigmas = levels("eps", 8)
    pairs = (NegativePrompt(), DDIM()), (NegativePrompt(3, extrapolate=True), DDIM(fixed_point_iterations=3, extrapolate=True))
    for mine, ddim in pairs:
        a, b = (m.encode(derivative("eps"), draw(), sigmas, silent) for m in (mine, ddim))
        assert all(torch.equal(x[0], y[0]) for x, y in zip(a.states, b.states))
        assert torch.equal(replay(mine, derivative("eps"), a), replay(DDIM(), derivative("eps"), b))
