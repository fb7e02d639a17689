import itertools
import math

import pytest
import torch
from controlled_diffusion.guidance.directions import projected
from controlled_diffusion.guidance.multi_cfg import Channel, GuidanceTerm, Rules, combine, rescaled, resolve, term
from controlled_diffusion.guidance.schedules import CfgPlusPlus, NoiseScale, Schedule
from torch.testing import assert_close

from checks import draw, refused


def predictions(count):
    return [draw(2, 4, 8, 8, seed=i) for i in range(count)]


def two_pushes():
    """A push and one across to it."""
    high = draw(2, 4, 8, 8)
    return high, projected(draw(2, 4, 8, 8, seed=1), high)


def test_one_channel_is_classifier_free_guidance_bit_for_bit():
    base, cond = predictions(2)
    assert torch.equal(combine(base, [term(cond - base, 7.5)]), base + (cond - base) * 7.5)
    halves = combine(base, [term(cond - base, 2.0), term(cond - base, 2.0)])
    assert_close(halves, combine(base, [term(cond - base, 4.0)]))
    assert Channel(None, 3.0, negative=True).strength(1.0, None) == -3.0
    assert_close(combine(base, [term(cond - base, -3.0)]), base - 3.0 * (cond - base))


def test_every_channel_is_compared_with_its_own_null():
    base, a, b, null = predictions(4)
    assert_close(combine(base, [term(a - base, 2.0), term(b - null, 3.0)]), base + 2 * (a - base) + 3 * (b - null))


@pytest.mark.parametrize("rule", ["sum", "project", "perpendicular"])
def test_the_order_of_equal_priorities_changes_nothing_at_all(rule):
    base, *conds = predictions(5)
    terms = [term(c - base, w) for c, w in zip(conds, (7.0, -2.5, 0.3, 11.0))]
    results = [combine(base, list(order), Rules(rule)) for order in itertools.permutations(terms)]
    assert all(torch.equal(results[0], r) for r in results)


def test_a_mask_limits_a_push_to_its_region():
    base, cond = predictions(2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    result = combine(base, [term(cond - base, 5.0, mask)])
    assert torch.equal(result[..., 4:], base[..., 4:])
    assert torch.equal(result[..., :4], (base + (cond - base) * 5.0)[..., :4])


def test_project_removes_exactly_the_opposing_part():
    high, across = two_pushes()
    terms = [GuidanceTerm(high, 1), GuidanceTerm(0.3 * high + across, 0)]
    assert_close(resolve(terms, "project"), resolve(terms, "sum"))  # nothing conflicts
    assert_close(resolve([GuidanceTerm(high, 1), GuidanceTerm(across - 0.7 * high, 0)], "project"), high + across)


def test_perpendicular_removes_the_component_of_any_sign():
    high, across = two_pushes()
    for share in (-0.7, 0.4):
        assert_close(resolve([GuidanceTerm(high, 1), GuidanceTerm(across + share * high, 0)], "perpendicular"), high + across)


def test_conflicts_are_settled_for_each_sample_of_a_batch_alone():
    high, low = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    both = resolve([GuidanceTerm(high, 1), GuidanceTerm(low, 0)], "perpendicular")
    for i in range(2):
        assert_close(both[i : i + 1], resolve([GuidanceTerm(high[i : i + 1], 1), GuidanceTerm(low[i : i + 1], 0)], "perpendicular"))


def test_the_cap_limits_the_rms_of_large_terms_only():
    base, cond = predictions(2)
    capped = combine(base, [term(cond - base, 10.0)], Rules(norm_cap=0.5)) - base
    assert_close(capped.flatten(1).square().mean(1).sqrt(), torch.full((2,), 0.5), atol=1e-5, rtol=1e-5)
    assert_close(combine(base, [term(cond - base, 0.01)], Rules(norm_cap=5.0)), combine(base, [term(cond - base, 0.01)]))


def test_rescale_1_gives_the_positives_deviation_0_is_off():
    base, cond = predictions(2)
    terms = [term(cond - base, 9.0)]
    full = combine(base, terms, Rules(rescale=1.0), [cond])
    assert_close(full.flatten(1).std(1), cond.flatten(1).std(1))
    assert torch.equal(combine(base, terms, Rules(), [cond]), combine(base, terms))
    half = rescaled(combine(base, terms), [cond], 0.5)
    assert_close(half, 0.5 * full + 0.5 * combine(base, terms))


def test_video_latents_are_mixed_like_images():
    base, cond, mask = draw(1, 4, 3, 8, 8), draw(1, 4, 3, 8, 8, seed=1), torch.ones(1, 1, 1, 8, 8)
    frames = combine(base, [term(cond - base, 2.0, mask)])
    assert_close(frames[:, :, 1], combine(base[:, :, 1], [term(cond[:, :, 1] - base[:, :, 1], 2.0)]))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    refused(r"'sky' is (nan|inf); give a finite number", Channel, None, weight, name="sky")


def test_a_cfg_plus_plus_weight_above_1_is_refused():
    shape = Schedule(CfgPlusPlus((4.0, 1.0, 0.0)))
    with pytest.raises(ValueError, match=r"'sky' is 4\.0, but under .* cfg\+\+ it is lambda, from 0 to 1\. Set it to 0\.2 to 1"):
        Channel(None, 4.0, schedule=shape, name="sky")
    assert Channel(None, 1.0, schedule=shape).strength(4.0, NoiseScale((10.0, 1.0, 0.1))) == pytest.approx(4 / 3)


@pytest.mark.parametrize("rules, message", [
    (dict(conflict="loudest"), "'loudest'; choose one of sum, project, perpendicular"),
    (dict(norm_cap=-1.0), "norm_cap is -1.0"),
    (dict(rescale=1.5), "rescale is 1.5"),
    (dict(norm_cap=math.nan), "norm_cap is nan"),
])  # fmt: skip
def test_unknown_rules_are_refused(rules, message):
    refused(message, Rules, **rules)


@pytest.mark.parametrize("mask", [torch.full((1, 4, 4), 1.5), torch.full((1, 4, 4), math.nan), torch.zeros(0, 4, 4)])
def test_a_mask_that_is_none_is_refused_by_the_channels_name(mask):
    refused("The mask of channel 'sky' has the shape", Channel, None, 1.0, mask=mask, name="sky")
