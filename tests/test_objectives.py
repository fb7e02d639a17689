import math

import pytest
import torch
from controlled_diffusion.training.objectives import TIMESTEPS, WEIGHTINGS, Levels, loss_weight, picks, spread, squared_error
from torch.testing import assert_close

from checks import draw, refused


def test_the_error_is_the_mean_of_what_a_mask_covers():
    a, b, mask, one_empty = draw(2, 4, 6, 6), draw(2, 4, 6, 6, seed=1), torch.zeros(2, 1, 6, 6), torch.ones(2, 1, 6, 6)
    assert_close(squared_error(a, b), torch.stack([(x - y).square().mean() for x, y in zip(a, b)]))
    assert_close(squared_error(a, b, torch.ones(2, 1, 6, 6)), squared_error(a, b))
    mask[:, :, :2, :3], one_empty[1] = 1, 0
    spoilt = torch.where(mask.bool(), a, a + 100)
    assert_close(squared_error(spoilt, b, mask), squared_error(a[..., :2, :3], b[..., :2, :3]))
    assert_close(squared_error(a, b, mask / 2), squared_error(a, b, mask))
    refused("A mask is empty", squared_error, a, b, one_empty)


SIGMAS = torch.tensor([0.05, 0.4, 0.9, 3.0], dtype=torch.float64)


def parametrization(kind, sigma, output, x):
    """Denoised prediction of what a network of this kind puts out."""
    if kind == "v":
        return x / (1 + sigma**2) - output * sigma / (1 + sigma**2).sqrt()
    return x - sigma * output


def gain(kind, sigma):
    return parametrization(kind, sigma, torch.ones_like(sigma), torch.zeros_like(sigma))


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_own_weighting_is_the_error_of_the_output(kind):
    sigmas = SIGMAS if kind != "flow" else SIGMAS / 4
    sigma = sigmas.view(-1, 1, 1, 1)
    x0, noise, output = (draw(4, 3, 5, 5, seed=i, dtype=torch.float64) for i in range(3))
    x = (1 - sigma if kind == "flow" else 1) * x0 + sigma * noise
    targets = {"eps": noise, "v": (noise - sigma * x0) / (1 + sigma**2).sqrt(), "flow": noise - x0}
    expected = (output - targets[kind]).square().flatten(1).mean(1)
    found = loss_weight("own", gain(kind, sigmas), -2 * sigmas.log()) * squared_error(parametrization(kind, sigma, output, x), x0)
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_min_snr_is_the_papers_weight_of_each_parametrization(kind):
    snr = SIGMAS**-2
    papers = {"eps": snr.clamp(max=5) / snr, "v": snr.clamp(max=5) / (snr + 1), "x0": snr.clamp(max=5)}[kind]
    own = torch.ones(4) if kind == "x0" else loss_weight("own", gain(kind, SIGMAS), snr.log())
    found = loss_weight("min-snr", None, snr.log(), gamma=5.0)
    assert_close(found, (papers * own).float(), rtol=1e-4, atol=1e-6)


def test_clean_weighting_ignores_low_noise_in_eps_models():
    """Which is why it is no default: at SD1.5's levels, drawn uniformly, how much the less noisy half counts in the error of the noise."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)
    sigmas = ((1 - a) / a).sqrt()
    counts = loss_weight("clean", None, -2 * sigmas.log()) / loss_weight("own", sigmas, None)
    assert counts[:500].sum() / counts.sum() < 0.03 and counts[900:].sum() / counts.sum() > 0.5


def test_unknown_weightings_are_refused():
    assert "own" in WEIGHTINGS
    refused("'snr'; choose one of own, min-snr, clean", loss_weight, "snr", SIGMAS, SIGMAS)


def test_the_spread_fills_the_interval_evenly():
    for count in (5, 13, 100):
        places = spread(7, 0, count).sort().values
        gaps = torch.cat([places[1:] - places[:-1], places[:1] + 1 - places[-1:]])
        assert gaps.max() < 2.7 / count and gaps.min() > 0.3 / count


def test_the_spread_does_not_depend_on_where_it_is_taken_up():
    assert torch.equal(spread(3, 0, 12)[5:9], spread(3, 5, 4))
    assert not torch.equal(spread(3, 0, 4), spread(4, 0, 4))
    assert spread(0xFFFFFFFFFFFFFFFF, 0, 3).shape == (3,)


@pytest.mark.parametrize("kind", TIMESTEPS)
def test_levels_follow_their_distribution(kind):
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    levels = Levels(kind, mean=-0.5, std=0.8, shift=3.0)
    places = levels.places(u)
    assert (places[1:] > places[:-1]).all() and places.min() > 0 and places.max() < 1
    if kind == "uniform":
        assert_close(places, u)
    elif kind == "logit-normal":
        logit = (places / (1 - places)).log()
        assert_close(logit.mean(), torch.tensor(-0.5, dtype=torch.float64), atol=1e-3, rtol=0)
        assert_close(logit.std(), torch.tensor(0.8, dtype=torch.float64), atol=5e-3, rtol=0)
    else:
        before, after = (1 - u) / u, (1 - places) / places
        assert_close(after, before / 3)  # the shift divides the ratio of signal to noise


def test_levels_keep_within_their_range():
    places = Levels("logit-normal", low=0.3, high=0.6).places(spread(0, 0, 200))
    assert 0.3 <= places.min() < 0.35 and 0.55 < places.max() <= 0.6
    refused(r"from 0.6 to 0.3; give 0 <= start < end <= 1", Levels, low=0.6, high=0.3)
    refused("'sigmoid'; choose one of uniform, logit-normal, shifted", Levels, "sigmoid")


def test_each_epoch_shows_every_image_once_in_a_new_order():
    order = picks(5, 0, 40, 8)
    epochs = [order[i : i + 8] for i in range(0, 40, 8)]
    assert all(sorted(e) == list(range(8)) for e in epochs) and len({tuple(e) for e in epochs}) > 3
    assert picks(5, 13, 9, 8) == order[13:22] and picks(6, 0, 40, 8) != order
    assert picks(5, 0, 3, 1) == [0, 0, 0]


def test_levels_of_an_image_are_spread_too():
    """Images come in turn and levels in steps of the golden ratio: no image is seen at one side of the noise alone."""
    order, levels = picks(1, 0, 800, 8), spread(1, 0, 800)
    for image in range(8):
        own = levels[[i for i, p in enumerate(order) if p == image]]
        assert 0.4 < own.mean() < 0.6 and own.std() > 0.25
    assert math.isclose(float(levels.mean()), 0.5, abs_tol=0.01)
