"""Normalized Attention Guidance against the published formula."""

import pytest
import torch
from controlled_diffusion.attention.negative_attention import Strength

from compare import assert_close


def published(positive, negative, scale, tau, alpha):
    """As ComfyUI's own node and the paper have it."""
    guided = positive * scale - negative * (scale - 1)
    own, new = (torch.norm(t, p=1, dim=-1, keepdim=True).clamp_min(1e-6) for t in (positive, guided))
    ratio = new / own
    guided = guided * torch.minimum(ratio, torch.full_like(ratio, tau)) / ratio
    return guided * alpha + positive * (1 - alpha)


@pytest.mark.parametrize("given", [(5.0, 2.5, 0.25), (11.0, 1.0, 1.0), (1.5, 10.0, 0.5), (0.5, 1.5, 0.5)])
def test_it_is_the_published_formula(given):
    positive, negative = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    assert_close(Strength(*given).guided(positive, negative), published(positive, negative, *given), atol=1e-5, rtol=1e-5)


def test_the_result_is_held_to_tau():
    positive, negative = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    grown = Strength(20.0, 1.5, 1.0).guided(positive, negative).abs().sum(-1) / positive.abs().sum(-1)
    assert float(grown.max()) < 1.5001 and float(grown.min()) > 1.4


def test_nothing_stays_nothing():
    """No division by zero where the attention of a token is zero, in half precision too."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        zero = torch.zeros(1, 2, 4, dtype=dtype)
        made = Strength().guided(zero, zero)
        assert torch.equal(made, zero) and made.dtype == dtype


def test_a_factor_acts_on_the_guiding_part():
    assert Strength(5.0).times(0.5).scale == 3.0 and Strength(5.0).times(0.0).neutral and Strength(alpha=0.0).neutral
