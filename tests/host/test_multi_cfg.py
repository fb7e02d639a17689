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
from host.sampling import STEPS, Count, cfg_guider, dual_guider, ksampler, latent, run
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


def test_a_channel_of_weight_zero_leaves_the_unconditional(any_model):
    assert torch.equal(run(multi(any_model, Channel(CAT, 0.0))), run(basic(any_model, EMPTY)))


def test_one_channel_through_the_patch_is_cfg(any_model):
    base = ksampler(any_model, CAT, EMPTY, 3.0)
    assert torch.equal(ksampler(patched(any_model, Channel(DOG, 0.0)), CAT, EMPTY, 3.0), base)
    assert_close(ksampler(patched(any_model, Channel(CAT, 3.0)), EMPTY, EMPTY, 1.0), base, atol=1e-4, rtol=1e-4)


def test_guider_and_patch_agree(any_model):
    channels = Channel(DOG, 2.0), Channel(SKY, 1.5, negative=True)
    ours = run(multi(any_model, Channel(CAT, 4.0), *channels))
    assert_close(ours, ksampler(patched(any_model, *channels), CAT, EMPTY, 4.0))


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


def test_every_channel_costs_one_row_and_the_whole_step_one_call(eps_model):
    count = Count(eps_model)
    run(multi(count.model, Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(SKY, 1.0, negative=True)))
    assert (count.rows, count.calls) == (4 * STEPS, STEPS)


@pytest.mark.parametrize(
    "channels, rows",
    [
        ((Channel(CAT, 3.0), Channel(DOG, 0.0)), 2),
        ((Channel(CAT, 3.0), Channel(CAT, 2.0, interval=Schedule(end=1.0))), 2),
        ((Channel(CAT, 1.0),), 1),
        ((Channel(CAT, 0.0),), 1),
        ((Channel(CAT, 3.0), Channel(DOG, 2.0, null=CAT), Channel(SKY, 1.0, null=DOG)), 4),
        ((Channel(DOG, 1.0, negative=True),), 2),
    ],
    ids=["weight 0", "equal conditionings", "cfg 1", "no guidance", "nulls that are channels", "negative alone"],
)
def test_nothing_is_evaluated_twice_or_for_nothing(eps_model, channels, rows):
    count = Count(eps_model)
    run(multi(count.model, *channels))
    assert count.rows == rows * STEPS


def test_a_copy_of_a_conditioning_is_recognised_as_equal(eps_model):
    count = Count(eps_model)
    copy = [[CAT[0][0].clone(), {k: v.clone() for k, v in CAT[0][1].items()}]]
    run(multi(count.model, Channel(CAT, 3.0), Channel(copy, 1.0)))
    assert count.rows == 2 * STEPS


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


def test_a_primary_out_of_range_leaves_the_unconditional(any_model):
    late = node_helpers.conditioning_set_values(CAT, {"start_percent": 0.999, "end_percent": 1.0})
    assert_close(run(multi(any_model, Channel(late, 3.0, interval=Schedule(end=0.9)))), run(basic(any_model, EMPTY)))


def test_all_conditionings_out_of_range_are_refused(eps_model):
    never = node_helpers.conditioning_set_values(EMPTY, {"start_percent": 0.999, "end_percent": 1.0})
    with pytest.raises(ValueError, match="No conditioning is active at sigma"):
        run(multi(eps_model, Channel(never, 3.0), unconditional=never))


def test_a_schedule_acts_on_primary_and_other_channels_alike(any_model):
    fade = Schedule(Ramp(2.0, 0.0))
    primary = run(multi(any_model, Channel(CAT, 2.0, schedule=fade), Channel(DOG, 1.0)))
    other = run(multi(any_model, Channel(DOG, 1.0), Channel(CAT, 2.0, schedule=fade)))
    assert_close(primary, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(primary, run(multi(any_model, Channel(CAT, 2.0), Channel(DOG, 1.0))), atol=1e-2)


def test_a_mask_of_any_size_limits_a_channel(any_model):
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    one_step = torch.tensor([float(noise_scale(any_model).sigmas[0]), 0.0])
    masked = run(multi(any_model, Channel(CAT, 4.0, mask=left)), sigmas=one_step)
    inside = run(cfg_guider(any_model, CAT, EMPTY, 4.0), sigmas=one_step)
    outside = run(cfg_guider(any_model, CAT, EMPTY, 0.0), sigmas=one_step)
    assert_close(masked[..., :4], inside[..., :4], atol=1e-4, rtol=1e-4)
    assert_close(masked[..., 4:], outside[..., 4:], atol=1e-4, rtol=1e-4)


def test_a_mask_for_another_batch_is_refused(eps_model):
    with pytest.raises(ValueError, match="mask holds 3 images but 2 are sampled"):
        run(multi(eps_model, Channel(CAT, 4.0, mask=torch.ones(3, 8, 8))), latent(2))


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


def test_a_guider_without_negative_needs_a_null(flow_model):
    with pytest.raises(ValueError, match="Channel 'dog' has no null"):
        run(basic(patched(flow_model, Channel(DOG, 2.0, name="dog")), CAT))
    assert torch.isfinite(run(basic(patched(flow_model, Channel(DOG, 2.0, null=EMPTY)), CAT))).all()


def test_rules_need_a_negative_to_measure_against(flow_model):
    with pytest.raises(ValueError, match=r"Conflict 'project', norm_cap 0.0 and rescale 0.0 measure against the negative"):
        run(basic(patched(flow_model, Channel(DOG, 2.0, null=EMPTY), conflict="project"), CAT))


class Hooks:
    """Another node's hooks of every kind; each counts its calls and the CFG ones change the result."""

    def __init__(self, model):
        self.calls = dict.fromkeys(("pre", "cfg", "post", "calc"), 0)
        self.model = model.clone()
        self.model.set_model_sampler_pre_cfg_function(self.pre)
        self.model.set_model_sampler_cfg_function(self.cfg)
        self.model.set_model_sampler_post_cfg_function(self.post)
        self.model.set_model_sampler_calc_cond_batch_function(self.calc)

    def pre(self, args):
        self.calls["pre"] += 1
        return [args["conds_out"][0] * 1.01, *args["conds_out"][1:]]

    def cfg(self, args):
        self.calls["cfg"] += 1
        return args["uncond"] + 1.1 * args["cond_scale"] * (args["cond"] - args["uncond"])

    def post(self, args):
        self.calls["post"] += 1
        assert args["cond"] is not None and args["uncond_denoised"] is not None
        return args["denoised"] * 0.99

    def calc(self, args):
        self.calls["calc"] += 1
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])


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

    def look(n, context, value, extra_options):
        seen.add(tuple(sorted(extra_options["cond_or_uncond"])))
        return n, context, value

    def wrapper(apply_model, args):
        seen.add(tuple(sorted(args["cond_or_uncond"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    watched = model.clone()
    watched.set_model_attn2_patch(look)
    watched.set_model_unet_function_wrapper(wrapper)
    run(guide(watched))
    return seen


def test_other_nodes_see_the_indices_of_cfg_guider(eps_model):
    """Patches that look up row types by index 0 and 1 break on longer lists."""
    everywhere = torch.ones(1, 8, 8)
    cat, dog, sky = Channel(CAT, 3.0), Channel(DOG, 2.0), Channel(SKY, 2.0, negative=True)
    assert indices_seen(eps_model, lambda m: multi(m, cat, dog, sky)) == {(0, 0, 1, 1)}
    assert indices_seen(eps_model, lambda m: multi(m, Channel(CAT, 3.0, mask=everywhere), Channel(DOG, 2.0, mask=everywhere))) == {
        (0, 0, 1)
    }
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
    model, (empty, cat) = tiny_video_model(), map(video_conditioning, range(2))
    left = torch.zeros(1, 32, 32)
    left[..., :16] = 1
    one_step = torch.tensor([1.0, 0.0])
    video = torch.zeros(1, 16, 3, 8, 8)
    masked = run(MultiCFG(model, empty, [Channel(cat, 4.0, mask=left)]), video, sigmas=one_step)
    inside, outside = (run(cfg_guider(model, cat, empty, w), video, sigmas=one_step) for w in (4.0, 0.0))
    assert_close(masked[..., :4], inside[..., :4], atol=1e-4, rtol=1e-4)
    assert_close(masked[..., 4:], outside[..., 4:], atol=1e-4, rtol=1e-4)


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


def test_a_conditioning_of_another_model_is_refused_by_name(eps_model):
    foreign = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(ValueError, match="Channel 'sky' has text features of width 768, but BaseModel takes 64"):
        multi(eps_model, Channel(foreign, 1.0, name="sky"))
    with pytest.raises(ValueError, match="The null of channel 'sky' has text features of width 768"):
        patched(eps_model, Channel(CAT, 1.0, null=foreign, name="sky"))
    with pytest.raises(ValueError, match="The unconditional is an empty conditioning"):
        multi(eps_model, Channel(CAT, 1.0), unconditional=[])
