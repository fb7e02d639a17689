import math

import pytest
import torch
from controlled_diffusion.guidance import diffedit
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import Derivative
from torch.testing import assert_close

from checks import draw, refused
from denoisers import silent, vp


def differences(maps=4, batch=2, size=8):
    """Small noise everywhere and a strong difference in the upper left quarter."""
    found = 0.05 * draw(maps, batch, 4, size, size)
    found[..., : size // 2, : size // 2] += 1.0
    return found


def falling(steps=8, top=5.0):
    return torch.cat([torch.linspace(top, 0.1, steps), torch.zeros(1)]).double()


def wild(x, sigma):
    return torch.tanh(1.3 * x + 0.2 * sigma.view(-1, 1, 1, 1)) * 0.8


def encoded(model, x0, sigmas, input_scale=vp, show=silent):
    """The DDIM encoding of x0 at falling sigmas."""
    return [x for (x,) in DDIM().encode(Derivative(model, input_scale), x0, sigmas.tolist(), show).states]


def edited(states, sigmas, mask, model=wild, **options):
    return diffedit.sample_diffedit(model, states, sigmas, mask, **options)


def test_what_differs_is_the_mask():
    mask = diffedit.cut(diffedit.normalized(diffedit.heat([differences()])), 0.5)
    expected = torch.zeros(2, 8, 8)
    expected[:, :4, :4] = 1
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("normalization", diffedit.NORMALIZATIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_without_any_difference_the_mask_is_empty_and_finite(normalization, soft):
    found = diffedit.heat([torch.zeros(3, 2, 4, 8, 8)] * 2)
    found = diffedit.sharpened(found, torch.zeros(2, 64, 64))
    for threshold in (0.0, 0.5, 1.0, diffedit.AUTO):
        shown = diffedit.normalized(found, normalization)
        assert torch.equal(shown, torch.zeros(2, 64, 64))
        assert torch.equal(diffedit.cut(shown, threshold, soft), torch.zeros(2, 64, 64))


@pytest.mark.parametrize("factor", [1e-6, 0.25, 1e4])
@pytest.mark.parametrize("normalization", diffedit.NORMALIZATIONS)
@pytest.mark.parametrize("threshold", [0.4, diffedit.AUTO])
def test_the_mask_ignores_the_size_of_the_difference(factor, normalization, threshold):
    found = [diffedit.normalized(diffedit.heat([differences().double() * f]), normalization) for f in (1.0, factor)]
    masks = [diffedit.cut(values, threshold) for values in found]
    assert torch.equal(*masks) and masks[0].any()


@pytest.mark.parametrize("normalization", diffedit.NORMALIZATIONS)
def test_every_sample_is_normalized_by_itself(normalization):
    """A public implementation takes the mean of the whole batch: one strong sample empties the mask of the others."""
    alone = differences(batch=1)
    both = diffedit.normalized(diffedit.heat([torch.cat([alone, 100 * alone], 1)]), normalization)
    assert_close(both[:1], diffedit.normalized(diffedit.heat([alone]), normalization))


def test_the_papers_rule_cuts_at_one_and_a_half_means():
    found = diffedit.heat([draw(4, 2, 4, 16, 16)])
    mask = diffedit.cut(diffedit.normalized(found, "mean", 3.0), 0.5)
    assert torch.equal(mask > 0, found > 1.5 * found.mean((1, 2), keepdim=True))


def test_otsu_parts_two_groups_of_any_size():
    values = torch.full((1, 20, 20), 0.1)
    values[:, :3, :3] = 0.7
    assert 0.1 < float(diffedit.otsu(values)) < 0.7
    assert diffedit.cut(values, diffedit.AUTO).sum() == 9


def test_soft_masks_pass_one_half_where_the_hard_one_cuts():
    values = torch.tensor([[[0.0, 0.2, 0.4, 0.6, 1.0]]])
    assert_close(diffedit.cut(values, 0.4, soft=True), torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]]))


def test_predicted_noise_of_one_level_gives_the_same_mask():
    """The paper compares noise; it is the difference of the denoised predictions over -sigma."""
    found = differences()
    masks = [diffedit.cut(diffedit.normalized(diffedit.heat([d]), "mean"), 0.5) for d in (found, found / -4.0)]
    assert torch.equal(*masks) and masks[0].any()


def test_holes_are_closed_before_specks_are_removed():
    """The other way around, opening eats a thing whose heat has holes."""
    thing = torch.zeros(1, 64, 64)
    thing[:, 16:48, 16:48] = 1
    thing[:, 16:48:4], thing[:, 2, 2] = 0, 1
    mask, _ = diffedit.Cut(close=3 / 64, open=3 / 64).mask(thing, 8)
    assert mask[:, 17:48, 16:48].all() and not mask[:, :8].any()
    assert not diffedit.opened(thing, 3).any()


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
    square, speck, hole, aside = torch.zeros(4, 1, 32, 32)
    square[:, 8:24, 8:24], speck[:, 2, 2], hole[:, 15:17, 15:17], aside[:, 8:24, 12:30] = 1, 1, 1, 1
    assert torch.equal(diffedit.opened(square + speck, 2), square)
    assert torch.equal(diffedit.closed(square - hole, 2), square)
    assert torch.equal(diffedit.closed(aside, 6), aside)  # is not tied to the border
    assert diffedit.dilated(square, 3).sum() == 22**2 and diffedit.dilated(square, -3).sum() == 10**2
    for change in (diffedit.opened, diffedit.closed, diffedit.dilated, diffedit.blurred):
        assert torch.equal(change(draw(2, 16, 16).abs(), 0), draw(2, 16, 16).abs())


def test_holes_are_filled_and_bays_are_not():
    """A square ring with a speck in it, the same with a gap, and the part of it that the border leaves open."""
    ring, inside = torch.zeros(2, 1, 40, 40)
    ring[:, 4:30, 4:30], ring[:, 6:28, 6:28], ring[:, 15, 15], inside[:, 4:30, 4:30] = 1, 0, 1, 1
    open_ring, bay = ring.clone(), ring[:, 6:, :]
    open_ring[:, 4:6, 10] = 0
    assert torch.equal(diffedit.filled(ring), inside) and torch.equal(diffedit.filled(open_ring), open_ring)
    assert torch.equal(diffedit.filled(bay), bay)
    assert torch.equal(diffedit.filled(torch.cat([ring, open_ring])), torch.cat([inside, open_ring]))
    assert_close(diffedit.filled(0.5 * ring), 0.5 * inside)
    left_open = diffedit.Cut(close=0.0).mask(ring, 1)[0]
    assert torch.equal(left_open, ring) and torch.equal(diffedit.Cut().mask(ring, 1)[0], inside)


def test_blur_keeps_the_middle_and_crosses_one_half_at_the_edge():
    mask = torch.zeros(1, 40, 40, dtype=torch.float64)
    mask[..., 20:] = 1
    soft = diffedit.blurred(mask, 6)
    assert_close(soft[..., 19] + soft[..., 20], mask[..., 20])
    assert_close(soft[..., :14], mask[..., :14])
    assert_close(soft[..., 26:], mask[..., 26:])
    assert 0.3 < soft[0, 0, 19] < 0.5


def test_a_hard_mask_frees_whole_cells_a_soft_one_shares():
    mask = torch.zeros(1, 16, 16)
    mask[:, 7, 7] = 1
    assert diffedit.cells(mask, 2, 2).tolist() == [[[1, 0], [0, 0]]]
    assert diffedit.cells(mask, 2, 2, soft=True).tolist() == [[[1 / 64, 0], [0, 0]]]


def test_levels_are_spread_evenly_and_one_is_the_middle():
    assert diffedit.probe_percents(0.3, 0.7, 1) == [0.5]
    assert diffedit.probe_percents(0.3, 0.7, 3) == pytest.approx([0.3, 0.5, 0.7])


@pytest.mark.parametrize("rule", diffedit.RULES)
def test_an_empty_mask_gives_the_image_a_full_one_the_ddim_edit(rule):
    x0, sigmas = draw(2, 4, 8, 8).double(), falling()
    states = encoded(wild, x0, sigmas)
    assert torch.equal(edited(states, sigmas, torch.zeros(1, 1, 1, 1), rule=rule), x0)
    plain = states[0]
    for now, goal in zip(sigmas, sigmas[1:]):
        plain = plain + (goal - now) * (plain - wild(plain, now * plain.new_ones(2))) / now
    assert torch.equal(edited(states, sigmas, torch.ones(1, 1, 1, 1), rule=rule), plain)


def seen_by_the_network(rule):
    """The states at which the network is asked off the mask, with the encoding (last is the image)."""
    sigmas, asked = falling(), []
    states = encoded(wild, draw(1, 4, 8, 8).double(), sigmas)
    edited(states, sigmas, half(), lambda x, sigma: asked.append(x[..., :4]) or wild(x + 1, sigma), rule=rule)
    return asked, [x[..., :4] for x in states], sigmas


def half(size=8):
    mask = torch.zeros(1, 1, size, size, dtype=torch.float64)
    mask[..., size // 2 :] = 1
    return mask


def test_off_the_mask_the_network_sees_its_levels_encoding():
    """A public implementation blends with the level before the step: the network sees an image noisier than its level."""
    asked, states, _ = seen_by_the_network("trajectory")
    assert all(torch.equal(x, state) for x, state in zip(asked, states))


def test_clean_mix_keeps_the_noise_of_the_first_encoding():
    asked, states, sigmas = seen_by_the_network("clean mix")
    noise = (states[0] - states[-1]) / sigmas[0]
    for x, sigma in zip(asked, sigmas):
        assert_close(x, states[-1] + sigma * noise)


@pytest.mark.parametrize("rule", diffedit.RULES)
def test_a_gray_mask_takes_its_share_of_every_step_once(rule):
    """Under a model that always predicts the same, what is left to change shrinks by 1 - mask * (the step's share of the noise)."""
    x0, target, sigmas, soft = draw(1, 4, 8, 8).double(), draw(1, 4, 8, 8, seed=1).double(), falling(), 0.5 * half()
    states = [x0 + sigma * draw(1, 4, 8, 8, seed=2).double() for sigma in sigmas]
    left = torch.stack([1 - soft * (now - goal) / now for now, goal in zip(sigmas, sigmas[1:])]).prod(0)
    found = edited(states, sigmas, soft, lambda x, sigma: target, rule=rule)
    assert_close(found, x0 + (1 - left) * (target - x0))
    assert torch.equal(found[..., :4], x0[..., :4])


def test_the_callback_sees_every_step_of_both_ways():
    seen, sigmas = [], falling(4)
    states = encoded(wild, draw(1, 4, 8, 8), sigmas.float(), show=lambda x, denoised: seen.append(len(seen)))
    edited(states, sigmas.float(), half().float(), show=lambda x, denoised: seen.append(len(seen)))
    assert seen == list(range(8))


@pytest.mark.parametrize("call, message", [
    (lambda: diffedit.cut(torch.zeros(1, 2, 2), 1.5), "threshold is 1.5; give 0 to 1"),
    (lambda: diffedit.cut(torch.zeros(1, 2, 2), math.nan), "threshold is nan"),
    (lambda: diffedit.cut(torch.zeros(1, 2, 2), -0.5), "threshold is -0.5; give 0 to 1, usually 0.25 to 0.5, or -1"),
    (lambda: diffedit.cells(torch.ones(1, 3, 8, 8), 4, 4), "The mask differs between 3 frames of a video, but DiffEdit takes one"),
    (lambda: diffedit.normalized(torch.zeros(1, 2, 2), "mean", 0.0), "clamp_ratio is 0.0; give a number above 0"),
    (lambda: diffedit.probe_percents(0.6, 0.4, 2), "start_percent 0.6 to end_percent 0.4; give 0 <= start <= end <= 1"),
    (lambda: diffedit.probe_percents(0.4, 0.6, 0), "0 probe levels; give 1"),
    (lambda: diffedit.sample_diffedit(wild, [], falling(3), None), "0 states for 4 sigmas"),
])  # fmt: skip
def test_impossible_values_are_refused_with_the_range(call, message):
    refused(message, call)


@pytest.mark.parametrize("knobs", [dict(dilate=3 / 64), dict(dilate=-3 / 64), dict(open=1 / 64), dict(close=3 / 64), dict(blur=6 / 64), {}])
def test_radii_mean_the_same_at_every_size(knobs):
    """Masks of one image at 64 and 512 pixels, whose latents have 8 x 8 cells; 3 pixels would be much of the small one."""
    heat = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = []
    for size in (64, 512):
        large = torch.nn.functional.interpolate(heat, (size, size), mode="bilinear")[:, 0]
        masks.append(diffedit.Cut(threshold=0.6, **knobs).mask(large, size / 8)[0])
    small = torch.nn.functional.adaptive_avg_pool2d(masks[1], 64)
    assert float((small - masks[0]).abs().mean()) < 0.05 and 0.05 < float(masks[0].mean()) < 0.97


def test_radii_in_pixels_are_refused():
    refused("dilate is 3; give a share of the image's shorter side, -0.5 to 0.5", diffedit.Cut, dilate=3)
    refused("close is nan; give a share", diffedit.Cut, close=float("nan"))
    assert diffedit.Cut().radius("close", (1024, 768), 8) == 12 and diffedit.Cut(close=0.0).radius("close", (1024, 768), 8) == 0
    assert diffedit.Cut(dilate=-0.02).radius("dilate", (128, 256), 8) == -3
