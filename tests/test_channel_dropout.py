import pytest
import torch
from controlled_diffusion.training.channel_dropout import ChannelDropout, JointDropout, draws, rate_for
from torch.testing import assert_close

from checks import refused

COUNT = 40_000


def drawn(channels, count=COUNT):
    return torch.rand(count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_all_channels_are_dropped_together_at_the_rate_asked_for(channels):
    keep = ChannelDropout((rate_for(0.1, channels),) * channels).keep(torch.zeros(COUNT), drawn(channels))
    assert keep.shape == (COUNT, channels) and keep.dtype == torch.bool
    assert_close(float((~keep).all(1).float().mean()), 0.1, atol=0.006, rtol=0)
    assert_close((~keep).float().mean(0), torch.full((channels,), 0.1 ** (1 / channels)), atol=0.01, rtol=0)


def test_channels_are_dropped_independently():
    gone = (~ChannelDropout((0.3, 0.6, 0.5)).keep(torch.zeros(COUNT), drawn(3))).float()
    assert_close(gone.mean(0), torch.tensor([0.3, 0.6, 0.5]), atol=0.01, rtol=0)
    assert (torch.corrcoef(gone.T) - torch.eye(3)).abs().max() < 0.02
    never_and_always = ChannelDropout((0.0, 1.0)).keep(torch.zeros(1000), drawn(2, 1000))
    assert never_and_always[:, 0].all() and not never_and_always[:, 1].any()
    assert rate_for(0.0, 3) == 0.0 and rate_for(1.0, 3) == 1.0


def test_a_rate_may_follow_the_noise():
    dropout = ChannelDropout((0.1, 0.5), clean=(0.9, 0.5))
    rates = dropout.rate(torch.tensor([-30.0, 0.0, 30.0]))
    assert_close(rates, torch.tensor([[0.1, 0.5], [0.5, 0.5], [0.9, 0.5]], dtype=torch.float64))
    clean = dropout.keep(torch.full((COUNT,), 30.0), drawn(2))
    assert_close((~clean).float().mean(0), torch.tensor([0.9, 0.5]), atol=0.01, rtol=0)
    always = ChannelDropout((0.2,))
    assert torch.equal(always.keep(torch.linspace(-9, 9, 500), drawn(1, 500)), always.keep(torch.zeros(500), drawn(1, 500)))


def test_whether_anything_is_ever_left_out():
    assert ChannelDropout((0.0, 0.1)).active and ChannelDropout((0.0,), clean=(0.1,)).active
    assert not ChannelDropout((0.0, 0.0), clean=(0.0, 0.0)).active


def test_a_sample_is_drawn_the_same_in_any_batch():
    assert torch.equal(torch.cat([draws(7, 0, 5, 2), draws(7, 5, 3, 2)]), draws(7, 0, 8, 2))
    assert not torch.equal(draws(7, 0, 8, 2), draws(8, 0, 8, 2))
    many = draws(7, 0, 4000, 2)
    assert_close(many.mean(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)
    assert abs(torch.corrcoef(many.T)[0, 1]) < 0.06


def test_joint_dropout_has_three_cases_of_equal_share():
    keep = JointDropout().keep(torch.zeros(COUNT), ((torch.arange(COUNT) + 0.5) / COUNT)[:, None].expand(-1, 2))
    shares = {(p, t): float(((keep[:, 0] == p) & (keep[:, 1] == t)).float().mean()) for p in (True, False) for t in (True, False)}
    assert_close(shares, {(True, True): 0.85, (True, False): 0.05, (False, True): 0.05, (False, False): 0.05}, atol=1e-3, rtol=0)


def test_bad_rates_and_counts_are_refused():
    refused(r"at the rate 1.5; give 0 \(never\) to 1", ChannelDropout, (0.1, 1.5))
    refused("2 rates at pure noise but 1 at clean", ChannelDropout, (0.1, 0.2), clean=(0.3,))
    refused("rate is 2 for 1 channels", rate_for, 2, 1)
    refused(r"a share of 0\.5; give 0 to 1/3", JointDropout, 0.5)
