from dataclasses import replace

import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Guider_Basic
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.host.conditionings import same_conditioning
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.host.noise_levels import noise_scale

from compare import assert_close
from host.sampling import STEPS, Count, Hooks, cfg_guider, dual_guider, half_mask, ksampler, latent, run, watched
from host.tiny import conditioning
from host.video import tiny_video_model, video_conditioning

EMPTY, CAT, DOG, SKY = (conditioning(i) for i in range(4))
pytestmark = pytest.mark.usefixtures("inference_mode")


def basic(model, conditioning):
    guider = Guider_Basic(model)
    guider.set_conds(conditioning)
    return guider


def multi(model, *channels, unconditional=EMPTY, **rules):
    return MultiCFG(model, unconditional, channels, Rules(**rules))


def patched(model, *channels, **rules):
    return MultiCFGWrapper(channels, Rules(**rules)).install(model)


@pytest.mark.parametrize("weight", [1.0, 4.5])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_one_channel_is_cfg_bitwise(any_model, weight, sampler):
    ours = run(multi(any_model, Channel(CAT, weight)), sampler=sampler)
    assert torch.equal(ours, run(cfg_guider(any_model, CAT, EMPTY, weight), sampler=sampler))


def test_one_channel_through_the_patch_is_cfg(any_model):
    base = ksampler(any_model, CAT, EMPTY, 3.0)
    assert torch.equal(ksampler(patched(any_model, Channel(DOG, 0.0)), CAT, EMPTY, 3.0), base)
    assert_close(ksampler(patched(any_model, Channel(CAT, 3.0)), EMPTY, EMPTY, 1.0), base, atol=1e-4, rtol=1e-4)


def test_guider_and_patch_agree(any_model):
    channels = Channel(DOG, 2.0), Channel(SKY, 1.5, negative=True)
    ours = run(multi(any_model, Channel(CAT, 4.0), *channels))
    assert_close(ours, ksampler(patched(any_model, *channels), CAT, EMPTY, 4.0))


def test_a_negative_of_cfg_minus_1_is_ksamplers_negative(any_model):
    plain = ksampler(any_model, CAT, DOG, 4.0)
    negative = Channel(DOG, 3.0, negative=True)
    for ours in (run(multi(any_model, Channel(CAT, 4.0), negative)), ksampler(patched(any_model, negative), CAT, EMPTY, 4.0)):
        assert_close(ours, plain, atol=5e-3, rtol=1e-3)


def test_channels_equal_the_hosts_dual_cfg_regular_and_nested(any_model):
    for nested in (False, True):
        theirs = dual_guider(any_model, CAT, DOG, EMPTY, 3.0, 2.0, nested=nested)
        ours = multi(any_model, Channel(DOG, 2.0), Channel(CAT, 6.0 if nested else 3.0, null=DOG))
        assert_close(run(ours), run(theirs), atol=5e-3, rtol=1e-3)


def test_perpendicular_channels_equal_the_hosts_perp_neg(any_model):
    theirs = Guider_PerpNeg(any_model)
    theirs.set_conds(CAT, DOG, EMPTY)
    theirs.set_cfg(5.0, 0.8)
    ours = multi(any_model, Channel(CAT, 5.0, priority=1), Channel(DOG, 5.0 * 0.8, negative=True), conflict="perpendicular")
    assert_close(run(ours), run(theirs), atol=5e-3, rtol=1e-3)


def test_the_order_of_channels_changes_nothing(any_model):
    a, b, c = Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(SKY, 1.0, negative=True)
    first = run(multi(any_model, a, b, c))
    for order in ((b, a, c), (c, b, a)):
        assert_close(run(multi(any_model, *order)), first, atol=1e-4, rtol=1e-4)


COPY = [[CAT[0][0].clone(), {k: v.clone() for k, v in CAT[0][1].items()}]]


@pytest.mark.parametrize(
    "channels, rows",
    [
        ((Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(SKY, 1.0, negative=True)), 4),
        ((Channel(CAT, 3.0), Channel(DOG, 0.0)), 2),
        ((Channel(CAT, 3.0), Channel(CAT, 2.0, interval=Schedule(end=1.0))), 2),
        ((Channel(CAT, 3.0), Channel(COPY, 1.0)), 2),
        ((Channel(CAT, 1.0),), 1),
        ((Channel(CAT, 0.0),), 1),
        ((Channel(CAT, 3.0), Channel(DOG, 2.0, null=CAT), Channel(SKY, 1.0, null=DOG)), 4),
        ((Channel(DOG, 1.0, negative=True),), 2),
    ],
    ids=["all", "weight 0", "equal conditionings", "a copy", "cfg 1", "no guidance", "nulls that are channels", "negative alone"],
)
def test_nothing_is_evaluated_twice_or_for_nothing(eps_model, channels, rows):
    """A step is one call."""
    count = Count(eps_model)
    run(multi(count.model, *channels))
    assert (count.rows, count.calls) == (rows * STEPS, STEPS)


@pytest.mark.parametrize("seed", [5, 6])
def test_tensors_in_lists_and_tuples_are_compared_by_value(seed):
    """The host keeps GLIGEN's boxes and reference latents so."""
    model = object()

    def dressed(seed):
        box, seen = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(seed))
        return [{"gligen": ("position", model, [(box, 2, 2, 0, 0)]), "reference_latents": [seen]}]

    assert same_conditioning(dressed(5), dressed(seed)) == (seed == 5)


def test_a_channel_outside_its_interval_costs_nothing(eps_model):
    count = Count(eps_model)
    run(multi(count.model, Channel(CAT, 3.0), Channel(DOG, 2.0, interval=Schedule(end=0.5))))
    assert 2 * STEPS < count.rows < 3 * STEPS


def test_a_channel_out_of_range_drops_out(any_model):
    """The host predicts an all-zero image for it; a channel must drop out instead."""
    late = node_helpers.conditioning_set_values(DOG, {"start_percent": 0.99, "end_percent": 1.0})
    count = Count(any_model)
    ours = run(multi(count.model, Channel(CAT, 3.0), Channel(late, 50.0, interval=Schedule(end=0.9))))
    assert torch.equal(ours, run(cfg_guider(any_model, CAT, EMPTY, 3.0)))
    assert count.rows == 2 * STEPS


def test_without_a_primary_the_unconditional_is_left(any_model):
    """Its weight is 0, or it is out of range."""
    late = node_helpers.conditioning_set_values(CAT, {"start_percent": 0.999, "end_percent": 1.0})
    wanted = run(basic(any_model, EMPTY))
    assert torch.equal(run(multi(any_model, Channel(CAT, 0.0))), wanted)
    assert_close(run(multi(any_model, Channel(late, 3.0, interval=Schedule(end=0.9)))), wanted)


def test_a_schedule_acts_on_primary_and_other_channels_alike(any_model):
    fade = Schedule(Ramp(2.0, 0.0))
    primary = run(multi(any_model, Channel(CAT, 2.0, schedule=fade), Channel(DOG, 1.0)))
    other = run(multi(any_model, Channel(DOG, 1.0), Channel(CAT, 2.0, schedule=fade)))
    assert_close(primary, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(primary, run(multi(any_model, Channel(CAT, 2.0), Channel(DOG, 1.0))), atol=1e-2)


def check_mask(model, empty, cat, latent, sigma, size=64):
    """A mask of the right half, in one step from a sigma."""
    once = torch.tensor([sigma, 0.0])
    masked = run(MultiCFG(model, empty, [Channel(cat, 4.0, mask=half_mask(size))]), latent, sigmas=once)
    inside, outside = (run(cfg_guider(model, cat, empty, weight), latent, sigmas=once) for weight in (4.0, 0.0))
    assert_close(masked[..., 4:], inside[..., 4:], atol=1e-4, rtol=1e-4)
    assert_close(masked[..., :4], outside[..., :4], atol=1e-4, rtol=1e-4)


def test_a_mask_of_any_size_limits_a_channel(any_model):
    check_mask(any_model, EMPTY, CAT, latent(), float(noise_scale(any_model).sigmas[0]))


def test_model_unchanged_and_runs_independent(any_model):
    before = ksampler(any_model, CAT, EMPTY, 3.0)
    options = repr(any_model.model_options), repr(any_model.wrappers)
    model = patched(any_model, Channel(DOG, 2.0), conflict="project", norm_cap=2.0)
    first = ksampler(model, CAT, EMPTY, 3.0)
    assert torch.equal(first, ksampler(model, CAT, EMPTY, 3.0))
    assert not torch.allclose(first, before)
    assert torch.equal(before, ksampler(any_model, CAT, EMPTY, 3.0))
    assert options == (repr(any_model.model_options), repr(any_model.wrappers))


def test_two_patches_on_one_model_add_up(any_model):
    both = patched(any_model, Channel(DOG, 2.0), Channel(SKY, 1.0))
    chained = patched(patched(any_model, Channel(DOG, 2.0)), Channel(SKY, 1.0))
    assert_close(ksampler(chained, CAT, EMPTY, 3.0), ksampler(both, CAT, EMPTY, 3.0), atol=1e-4, rtol=1e-4)


def test_channels_ride_on_a_guider_of_another_kind(any_model):
    theirs = dual_guider(patched(any_model, Channel(SKY, 1.5)), CAT, DOG, EMPTY, 3.0, 2.0, nested=True)
    ours = multi(any_model, Channel(DOG, 2.0), Channel(CAT, 6.0, null=DOG), Channel(SKY, 1.5))
    assert_close(run(theirs), run(ours), atol=5e-3, rtol=1e-3)


def test_without_a_negative_nulls_are_needed_and_rules_refused(flow_model):
    with pytest.raises(ValueError, match="Channel 'dog' has no null"):
        run(basic(patched(flow_model, Channel(DOG, 2.0, name="dog")), CAT))
    dog = Channel(DOG, 2.0, null=EMPTY)
    assert torch.isfinite(run(basic(patched(flow_model, dog), CAT))).all()
    with pytest.raises(ValueError, match=r"Conflict 'project', norm_cap 0.0 and rescale 0.0 measure against the negative"):
        run(basic(patched(flow_model, dog, conflict="project"), CAT))


def test_all_hooks_of_other_nodes_act_as_without_channels(any_model):
    alone, beside = Hooks(any_model), Hooks(any_model)
    expected = run(cfg_guider(alone.model, CAT, EMPTY, 3.0))
    assert_close(run(multi(beside.model, Channel(CAT, 3.0), Channel(DOG, 1e-12))), expected, atol=1e-4, rtol=1e-4)
    assert beside.calls == alone.calls == dict.fromkeys(alone.calls, STEPS)


def zeros(args):
    return [torch.zeros_like(args["input"]) for _ in args["conds"]]


def in_tiles(args):
    model, conds, x, *more = (args[k] for k in ("model", "conds", "input", "sigma", "model_options"))
    tiles = [comfy.samplers.calc_cond_batch(model, conds, tile, *more) for tile in x.chunk(2, -1)]
    return [torch.cat(pair, -1) for pair in zip(*tiles)]


@pytest.mark.parametrize("answer", [zeros, in_tiles])
def test_channels_are_evaluated_when_another_node_answers(eps_model, answer):
    model = eps_model.clone()
    model.set_model_sampler_calc_cond_batch_function(answer)
    theirs, wide = cfg_guider(model, CAT, EMPTY, 3.0), latent(1, 8, 16)
    weak, strong = (run(multi(model, Channel(CAT, 3.0), Channel(DOG, weight)), wide) for weight in (1e-12, 2.0))
    assert_close(weak, run(theirs, wide), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(strong, weak)


def indices_seen(model, guide) -> set[tuple[int, ...]]:
    """What a patch on attention and a wrapper of the model's function see as the kinds of rows, call by call."""
    seen = set()
    look = lambda given: seen.add(tuple(sorted(given["cond_or_uncond"])))  # noqa: E731
    model = watched(model, look)
    model.set_model_attn2_patch(lambda n, context, value, options: (look(options), (n, context, value))[1])
    run(guide(model))
    return seen


def test_other_nodes_see_the_indices_of_cfg_guider(eps_model):
    """Patches that look up row types by index 0 and 1 break on longer lists."""
    cat, dog, sky = Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(SKY, 2.0, negative=True)
    masked = [replace(channel, mask=torch.ones(1, 8, 8)) for channel in (cat, dog)]
    assert indices_seen(eps_model, lambda m: multi(m, cat, dog, sky)) == {(0, 0, 1, 1)}
    assert indices_seen(eps_model, lambda m: multi(m, *masked)) == {(0, 0, 1)}
    assert indices_seen(eps_model, lambda m: multi(m, Channel(CAT, 0.0))) == {(1,)}
    twice = patched(patched(eps_model, dog), sky)
    assert indices_seen(twice, lambda m: cfg_guider(m, CAT, EMPTY, 3.0)) == {(0, 0, 1, 1)}


def test_cfg_override_reaches_the_primary(eps_model):
    guider = multi(eps_model, Channel(CAT, 3.0))
    guider.set_cfg(5.0)
    assert torch.equal(run(guider), run(cfg_guider(eps_model, CAT, EMPTY, 5.0)))


@pytest.mark.parametrize("rules", [dict(conflict="project"), dict(conflict="perpendicular"), dict(norm_cap=100.0)])
def test_rules_change_nothing_where_nothing_conflicts(any_model, rules):
    ours = run(multi(any_model, Channel(CAT, 3.0), **rules))
    assert_close(ours, run(cfg_guider(any_model, CAT, EMPTY, 3.0)), atol=1e-4, rtol=1e-4)


def test_batches_and_wide_latents_are_guided_alike(any_model):
    both = run(multi(any_model, Channel(CAT, 3.0), Channel(DOG, 2.0)), latent(2, 8, 16))
    assert both.shape == (2, 4, 8, 16) and torch.isfinite(both).all()


def test_video_latents_are_guided_under_masks_too():
    check_mask(tiny_video_model(), video_conditioning(0), video_conditioning(1), torch.zeros(1, 16, 3, 8, 8), 1.0, size=32)


@pytest.mark.parametrize("length, overlap", [(3, 1), (1, 0)])
def test_in_context_windows_every_channel_sees_every_window(length, overlap):
    windows = dict(context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False)
    model = ContextWindowsManualNode.execute(tiny_video_model(), length, overlap, "standard_static", **windows).args[0]
    (empty, cat, dog), video, count = map(video_conditioning, range(3)), torch.zeros(1, 16, 6, 4, 4), Count(model)
    theirs, sigmas = dual_guider(model, cat, dog, empty, 3.0, 2.0), torch.tensor([1.0, 0.6, 0.0])
    expected, one, two = run(theirs, video, sigmas=sigmas), Channel(cat, 3.0, null=dog), Channel(dog, 2.0)
    assert_close(run(MultiCFG(count.model, empty, [two, one]), video, sigmas=sigmas), expected, atol=1e-4, rtol=1e-4)
    assert count.rows == 3 * count.calls
    patches = patched(model, one), patched(patched(model, Channel(cat, 1.5, null=dog)), Channel(cat, 1.5, null=dog))
    for model in patches:
        assert_close(run(cfg_guider(model, dog, empty, 2.0), video, sigmas=sigmas), expected, atol=1e-4, rtol=1e-4)


def test_conditionings_and_masks_that_do_not_fit_are_refused(eps_model):
    foreign = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(ValueError, match="Channel 'sky' has text features of width 768, but BaseModel takes 64"):
        multi(eps_model, Channel(foreign, 1.0, name="sky"))
    with pytest.raises(ValueError, match="The null of channel 'sky' has text features of width 768"):
        patched(eps_model, Channel(CAT, 1.0, null=foreign, name="sky"))
    with pytest.raises(ValueError, match="mask holds 3 images but 2 are sampled"):
        run(multi(eps_model, Channel(CAT, 4.0, mask=torch.ones(3, 8, 8))), latent(2))
    never = node_helpers.conditioning_set_values(EMPTY, {"start_percent": 0.999, "end_percent": 1.0})
    with pytest.raises(ValueError, match="No conditioning is active at sigma"):
        run(multi(eps_model, Channel(never, 3.0), unconditional=never))
