import math

import pytest
import torch
from controlled_diffusion.guidance import diffedit
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import Derivative
from torch.testing import assert_close


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def differences(maps=4, batch=2, size=8):
    """Small noise everywhere and a strong difference in the upper left quarter."""
    found = 0.05 * draw(maps, batch, 4, size, size)
    found[..., : size // 2, : size // 2] += 1.0
    return found


def gaussian(mean, spread):
    """The best denoiser of data N(mean, spread^2) in sigma space."""

    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        return (spread**2 * x + s**2 * mean) / (spread**2 + s**2)

    return model


def scale_vp(sigma):
    return 1 / math.sqrt(1 + sigma**2)


def falling(steps=8, top=5.0):
    return torch.cat([torch.linspace(top, 0.1, steps), torch.zeros(1)]).double()


def wild(x, sigma):
    return torch.tanh(1.3 * x + 0.2 * sigma.view(-1, 1, 1, 1)) * 0.8


def encoded(model, x0, sigmas, input_scale=scale_vp, show=lambda x, denoised: None):
    """The DDIM encoding of x0 at falling sigmas."""
    return [x for (x,) in DDIM().encode(Derivative(model, input_scale), x0, sigmas.tolist(), show).states]


def test_what_differs_is_the_mask():
    mask = diffedit.cut(diffedit.normalized(diffedit.heat([differences()])), 0.5)
    expected = torch.zeros(2, 8, 8)
    expected[:, :4, :4] = 1
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("aggregation", diffedit.AGGREGATIONS)
@pytest.mark.parametrize("normalisation", diffedit.NORMALISATIONS)
@pytest.mark.parametrize("kind", diffedit.THRESHOLDS)
@pytest.mark.parametrize("soft", [False, True])
def test_without_any_difference_the_mask_is_empty_and_finite(aggregation, normalisation, kind, soft):
    found = diffedit.heat([torch.zeros(3, 2, 4, 8, 8)] * 2, aggregation)
    found = diffedit.sharpened(found, torch.zeros(2, 64, 64))
    for threshold in (0.0, 0.5, 1.0):
        shown = diffedit.normalized(found, normalisation)
        assert torch.equal(shown, torch.zeros(2, 64, 64))
        assert torch.equal(diffedit.cut(shown, threshold, kind, soft), torch.zeros(2, 64, 64))


@pytest.mark.parametrize("factor", [1e-6, 0.25, 1e4])
@pytest.mark.parametrize("normalisation", diffedit.NORMALISATIONS)
@pytest.mark.parametrize("kind", diffedit.THRESHOLDS)
def test_the_mask_ignores_the_size_of_the_difference(factor, normalisation, kind):
    masks = [
        diffedit.cut(diffedit.normalized(diffedit.heat([differences().double() * f]), normalisation), 0.4, kind) for f in (1.0, factor)
    ]
    assert torch.equal(*masks) and masks[0].any()


@pytest.mark.parametrize("normalisation", diffedit.NORMALISATIONS)
def test_every_sample_is_normalised_by_itself(normalisation):
    """A public implementation takes the mean of the whole batch: one strong sample empties the mask of the others."""
    alone = differences(batch=1)
    batch = torch.cat([alone, 100 * differences(batch=1)], 1)
    first = diffedit.normalized(diffedit.heat([batch]), normalisation)[:1]
    assert_close(first, diffedit.normalized(diffedit.heat([alone]), normalisation))


def test_the_papers_rule_cuts_at_one_and_a_half_means():
    found = diffedit.heat([draw(4, 2, 4, 16, 16)])
    mask = diffedit.cut(diffedit.normalized(found, "mean", 3.0), 0.5)
    assert torch.equal(mask > 0, found > 1.5 * found.mean((1, 2), keepdim=True))


def test_a_quantile_keeps_its_share_of_the_image():
    values = diffedit.normalized(draw(2, 40, 40).abs())
    assert diffedit.cut(values, 0.9, "quantile").mean((1, 2)) == pytest.approx([0.1, 0.1], abs=0.01)


def test_otsu_parts_two_groups_of_any_size():
    values = torch.full((1, 20, 20), 0.1)
    values[:, :3, :3] = 0.7
    assert 0.1 < float(diffedit.otsu(values)) < 0.7
    assert diffedit.cut(values, 0.5, "otsu").sum() == 9


def test_soft_masks_pass_one_half_where_the_hard_one_cuts():
    values = torch.tensor([[[0.0, 0.2, 0.4, 0.6, 1.0]]])
    assert_close(diffedit.cut(values, 0.4, soft=True), torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]]))


def test_eps_weighs_low_noise_more_denoised_does_not():
    source, target = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    assert torch.equal(diffedit.difference(source, target, 4.0), target - source)
    assert_close(diffedit.difference(source, target, 4.0, "eps"), (target - source) / 4)


def test_the_mean_difference_cancels_random_changes():
    steady, random = torch.ones(64, 1, 4, 8, 4), draw(64, 1, 4, 8, 4)
    found = diffedit.heat([torch.cat([steady, random], -1)], "mean difference")
    assert found[..., :4].min() > 3 * found[..., 4:].max()


def test_the_median_of_the_maps_ignores_one_that_is_mad():
    maps = torch.ones(5, 1, 4, 8, 8)
    maps[0] = 1e3
    assert_close(diffedit.heat([maps], "median"), torch.ones(1, 8, 8))


def test_a_video_gets_the_union_of_its_frames():
    found = torch.zeros(3, 2, 4, 5, 8, 8)
    found[:, :, :, 1, 0, 0] = found[:, :, :, 3, 7, 7] = 1
    expected = torch.zeros(2, 8, 8)
    expected[:, 0, 0] = expected[:, 7, 7] = 1
    assert torch.equal(diffedit.heat([found]), expected)


def test_sharpening_takes_the_edges_of_the_pixels():
    coarse, pixels = torch.zeros(1, 4, 4), torch.zeros(1, 32, 32)
    coarse[:, :2, :2], pixels[:, 3:12, 3:12] = 1, 0.3
    mask = diffedit.cut(diffedit.normalized(diffedit.sharpened(coarse, pixels)), 0.3)
    assert torch.equal(mask > 0, pixels > 0)


def test_open_removes_specks_and_close_fills_holes():
    square, speck, hole = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    square[:, 8:24, 8:24], speck[:, 2, 2], hole[:, 15:17, 15:17] = 1, 1, 1
    assert torch.equal(diffedit.opened(square + speck, 2), square)
    assert torch.equal(diffedit.closed(square - hole, 2), square)
    assert diffedit.dilated(square, 3).sum() == 22**2 and diffedit.dilated(square, -3).sum() == 10**2


def test_close_does_not_tie_the_mask_to_the_border():
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 12:30] = 1
    assert torch.equal(diffedit.closed(mask, 6), mask)


def test_morphology_of_zero_changes_nothing():
    mask = draw(2, 16, 16).abs()
    for change in (diffedit.opened, diffedit.closed, diffedit.dilated, diffedit.blurred):
        assert torch.equal(change(mask, 0), mask)


def test_blur_keeps_the_middle_and_crosses_one_half_at_the_edge():
    mask = torch.zeros(1, 40, 40, dtype=torch.float64)
    mask[..., 20:] = 1
    soft = diffedit.blurred(mask, 6)
    assert_close(soft[..., 19] + soft[..., 20], mask[..., 20])
    assert_close(soft[..., :14], mask[..., :14])
    assert_close(soft[..., 26:], mask[..., 26:])
    assert 0.3 < soft[0, 0, 19] < 0.5


def test_a_mask_for_each_frame_is_refused():
    with pytest.raises(ValueError, match="The mask differs between 3 frames of a video, but DiffEdit takes one"):
        diffedit.cells(torch.ones(1, 3, 8, 8), 4, 4)


def test_a_hard_mask_frees_whole_cells_a_soft_one_shares():
    mask = torch.zeros(1, 16, 16)
    mask[:, 7, 7] = 1
    assert diffedit.cells(mask, 2, 2).tolist() == [[[1, 0], [0, 0]]]
    assert diffedit.cells(mask, 2, 2, soft=True).tolist() == [[[1 / 64, 0], [0, 0]]]


def test_levels_are_spread_evenly_and_one_is_the_middle():
    assert diffedit.probe_percents(0.3, 0.7, 1) == [0.5]
    assert diffedit.probe_percents(0.3, 0.7, 3) == pytest.approx([0.3, 0.5, 0.7])


def test_encoding_of_gaussian_data_is_of_first_order():
    x0, model = 0.5 + 0.7 * draw(2, 4, 8, 8).double(), gaussian(0.5, 0.7)
    errors = []
    for steps in (25, 50, 100):
        sigmas = falling(steps)
        states = encoded(model, x0, sigmas, lambda s: 1.0)
        x = diffedit.sample_diffedit(model, states[0], sigmas, trajectory=states, mask=torch.ones(1, 1, 1, 1))
        errors.append(float((x - x0).norm() / x0.norm()))
    assert errors[0] / errors[1] > 1.6 and errors[1] / errors[2] > 1.6 and errors[2] < 0.05


def test_encoding_is_ddim_inversion_in_the_models_own_space():
    """VP: z' = a'/a (z - b e) + b' e with e = eps(z, t'); in sigma space x = z / a, and the network sees x / sqrt(1 + sigma^2)."""
    x0, rising = draw(1, 4, 8, 8).double(), falling(5).flip(0)

    def eps(z, sigma):
        return torch.sin(3 * z + sigma)

    def model(x, sigma):
        return x - sigma * eps(x / (1 + sigma**2).sqrt(), sigma)

    states = encoded(lambda x, s: model(x, s.view(-1, 1, 1, 1)), x0, rising.flip(0))
    z = x0
    for now, goal in zip(rising, rising[1:]):
        a, a2 = (1 / (1 + s**2).sqrt() for s in (now, goal))
        e = eps(z, goal)
        z = a2 * (z - now * a * e) / a + goal * a2 * e
    assert_close(states[0], z / a2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", diffedit.RULES)
def test_an_empty_mask_returns_the_image_bit_for_bit(rule):
    x0, sigmas = draw(2, 4, 8, 8).double(), falling()
    states = encoded(wild, x0, sigmas)
    x = diffedit.sample_diffedit(wild, states[0], sigmas, trajectory=states, mask=torch.zeros(1, 1, 1, 1), rule=rule)
    assert torch.equal(x, x0)


@pytest.mark.parametrize("rule", diffedit.RULES)
def test_a_full_mask_is_the_plain_ddim_edit(rule):
    x0, sigmas = draw(2, 4, 8, 8).double(), falling()
    states = encoded(wild, x0, sigmas)
    plain = states[0]
    for now, goal in zip(sigmas, sigmas[1:]):
        plain = plain + (goal - now) * (plain - wild(plain, now * plain.new_ones(2))) / now
    x = diffedit.sample_diffedit(wild, states[0], sigmas, trajectory=states, mask=torch.ones(1, 1, 1, 1), rule=rule)
    assert torch.equal(x, plain)


def seen_by_the_network(rule, mask):
    """The states and levels at which the network is asked, with the encoding (last is the image)."""
    sigmas, asked = falling(), []
    states = encoded(wild, draw(1, 4, 8, 8).double(), sigmas)

    def model(x, sigma):
        asked.append(x)
        return wild(x + 1, sigma)

    diffedit.sample_diffedit(model, states[0], sigmas, trajectory=states, mask=mask, rule=rule)
    return asked, states, sigmas


def half(size=8):
    mask = torch.zeros(1, 1, size, size, dtype=torch.float64)
    mask[..., size // 2 :] = 1
    return mask


def test_off_the_mask_the_network_sees_its_levels_encoding():
    """A public implementation blends with the level before the step: the network sees an image noisier than its level."""
    asked, states, _ = seen_by_the_network("trajectory", half())
    for x, state in zip(asked, states):
        assert torch.equal(x[..., :4], state[..., :4])


def test_clean_mix_keeps_the_noise_of_the_first_encoding():
    asked, states, sigmas = seen_by_the_network("clean mix", half())
    noise = (states[0] - states[-1]) / sigmas[0]
    for x, sigma in zip(asked, sigmas):
        assert_close(x[..., :4], (states[-1] + sigma * noise)[..., :4])


@pytest.mark.parametrize("rule", diffedit.RULES)
def test_a_soft_mask_lies_between_and_keeps_its_zeros(rule):
    x0, sigmas = draw(1, 4, 8, 8).double(), falling()
    states = encoded(wild, x0, sigmas)

    def edit(mask):
        return diffedit.sample_diffedit(lambda x, s: wild(x, s) + 1, states[0], sigmas, trajectory=states, mask=mask, rule=rule)

    soft, hard = edit(0.5 * half()), edit(half())
    assert torch.equal(soft[..., :4], x0[..., :4])
    change = lambda x: (x - x0)[..., 4:].abs().mean()  # noqa: E731
    assert 0.02 < change(soft) < 0.9 * change(hard)


def test_the_callback_sees_every_step_of_both_ways():
    seen, sigmas = [], falling(4)
    states = encoded(wild, draw(1, 4, 8, 8), sigmas.float(), show=lambda x, denoised: seen.append(len(seen)))
    diffedit.sample_diffedit(
        wild, states[0], sigmas.float(), callback=lambda d: seen.append(d["i"]), trajectory=states, mask=half().float()
    )
    assert seen == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: diffedit.cut(torch.zeros(1, 2, 2), 1.5), "threshold is 1.5; give 0 to 1"),
        (lambda: diffedit.cut(torch.zeros(1, 2, 2), math.nan), "threshold is nan"),
        (lambda: diffedit.normalized(torch.zeros(1, 2, 2), "mean", 0.0), "clamp_ratio is 0.0; give a number above 0"),
        (lambda: diffedit.probe_percents(0.6, 0.4, 2), "start_percent 0.6 to end_percent 0.4; give 0 <= start <= end <= 1"),
        (lambda: diffedit.probe_percents(0.4, 0.6, 0), "0 probe levels; give 1"),
        (lambda: diffedit.sample_diffedit(wild, None, falling(3), trajectory=[], mask=None), "0 states for 4 sigmas"),
    ],
)
def test_impossible_values_are_refused_with_the_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
