"""InstructPix2Pix guidance on the host's own 8-channel UNet, beside the host's DualCFGGuider and CFG."""

import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Constant, Ramp, Schedule
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.instruct_pix2pix import InstructionChannels, InstructPix2PixGuider, InstructPix2PixPatch

from compare import assert_close
from host.sampling import STEPS, Count, cfg_guider, dual_guider, ksampler, latent, run, sigmas_of
from host.tiny import conditioning
from host.tiny_editors import instruct_pix2pix

EMPTY, SNOW, DOG = (conditioning(i) for i in range(3))
ROUNDING = dict(atol=1e-4, rtol=1e-4)
pytestmark = pytest.mark.usefixtures("inference_mode")


def image(batch: int = 1, *shape: int, seed: int = 5) -> dict:
    """A random LATENT to edit."""
    return {"samples": torch.randn(batch, 4, *(shape or (8, 8)), generator=torch.Generator().manual_seed(seed))}


IMAGE = image()


@pytest.fixture(params=["eps", "v", "flow"])
def any_editor(request):
    return instruct_pix2pix(request.param)


@pytest.fixture
def editor():
    return instruct_pix2pix()


def ours(model, text=7.5, image=1.5, image_input=IMAGE, **inputs):
    return InstructPix2PixGuider.execute(model, SNOW, EMPTY, text, image, image_input, **inputs).args[0]


def seeing(conditioning, latent=IMAGE):
    return node_helpers.conditioning_set_values(conditioning, {"concat_latent_image": latent["samples"]})


def host_dual(model, text=7.5, image=1.5, latent=IMAGE):
    """The paper's arrangement of the host's DualCFGGuider."""
    return dual_guider(model, seeing(SNOW, latent), seeing(EMPTY, latent), EMPTY, text, image)


def as_channels(model, text=7.5, image=1.5, previous=(), **inputs):
    made, unconditional, *_ = InstructionChannels.execute(model, SNOW, EMPTY, text, image, IMAGE, previous=previous, **inputs).args
    return MultiCFG(model, unconditional, made)


SCALES = pytest.mark.parametrize(
    "text, image", [(7.5, 1.5), (3.0, 3.0), (7.5, 1.0), (1.0, 1.5), (0.0, 1.5), (7.5, 0.0), (1.0, 1.0), (2.0, -1.0)]
)


@SCALES
@pytest.mark.parametrize("made", [ours, as_channels], ids=["guider", "channels"])
def test_it_is_the_hosts_dual_cfg_in_the_papers_arrangement(any_editor, made, text, image):
    assert_close(run(made(any_editor, text, image)), run(host_dual(any_editor, text, image)), **ROUNDING)


def test_the_two_channels_are_dual_cfg_bitwise(any_editor):
    """One step at a time, so that equal predictions are compared and not sampling that amplifies a rounding."""
    sigmas = sigmas_of(any_editor)[:2]
    theirs = run(host_dual(any_editor), sigmas=sigmas)
    assert torch.equal(run(as_channels(any_editor), sigmas=sigmas), theirs)


@pytest.mark.parametrize(
    "sampler, text, image",
    [*((s, 4.0, 1.0) for s in ("euler", "heun", "dpmpp_2m", "euler_ancestral")), ("euler", 3.0, 3.0), ("euler", 1.0, 1.0)],
)
def test_neutral_and_equal_scales_are_cfg_bitwise(any_editor, sampler, text, image):
    """Image scale 1: from the image to the edit. Equal scales: from nothing to the edit. Both 1: the edit alone."""
    theirs = cfg_guider(any_editor, seeing(SNOW), seeing(EMPTY) if image == 1.0 else EMPTY, text)
    assert torch.equal(run(ours(any_editor, text, image), sampler=sampler), run(theirs, sampler=sampler))


def test_a_blank_image_leaves_plain_text_guidance(any_editor):
    blank = {"samples": torch.zeros_like(IMAGE["samples"])}
    assert_close(run(ours(any_editor, 4.0, 2.0, blank)), run(cfg_guider(any_editor, SNOW, EMPTY, 4.0)), **ROUNDING)


def test_both_scales_change_the_result(any_editor):
    results = [run(ours(any_editor, *scales)) for scales in ((7.5, 1.5), (5.0, 1.5), (7.5, 2.5))]
    assert not torch.allclose(results[0], results[1], atol=1e-2) and not torch.allclose(results[0], results[2], atol=1e-2)


@pytest.mark.parametrize(
    "text, image, rows",
    [(7.5, 1.5, 3), (1.0, 1.5, 3), (7.5, 0.0, 3), (3.0, 3.0, 2), (7.5, 1.0, 2), (0.0, 1.5, 2), (1.0, 1.0, 1), (0.0, 1.0, 1), (0.0, 0.0, 1)],
)
def test_only_needed_rows_are_evaluated_in_one_call(editor, text, image, rows):
    count = Count(editor)
    run(ours(count.model, text, image))
    assert (count.rows, count.calls) == (rows * STEPS, STEPS)


def test_rows_are_saved_where_schedules_make_scales_equal(editor):
    halved = Schedule(Constant(0.5))
    for text, image, schedules, rows in (
        (7.5, 2.0, dict(image_schedule=halved), 2),
        (6.0, 3.0, dict(text_schedule=halved), 2),
        (2.0, 2.0, dict(text_schedule=halved, image_schedule=halved), 1),
        (7.5, 1.5, dict(text_schedule=Schedule(Constant(0.0))), 2),
    ):
        count = Count(editor)
        run(ours(count.model, text, image, **schedules))
        assert count.rows == rows * STEPS
    count = Count(editor)
    run(ours(count.model, 7.5, 1.5, text_schedule=Schedule(end=0.5)))
    assert 2 * STEPS < count.rows < 3 * STEPS


def test_schedules_of_guider_and_channels_agree_and_act(any_editor):
    schedules = dict(text_schedule=Schedule(Ramp(1.5, 0.5)), image_schedule=Schedule(Ramp(0.5, 2.0, axis="log_snr")))
    scheduled = run(ours(any_editor, **schedules))
    assert_close(scheduled, run(as_channels(any_editor, **schedules)), **ROUNDING)
    assert not torch.allclose(scheduled, run(ours(any_editor)), atol=1e-2)


def test_the_patch_makes_a_ksampler_do_the_same(any_editor):
    model, positive, negative, empty = InstructPix2PixPatch.execute(any_editor, SNOW, EMPTY, 1.5, IMAGE).args
    assert_close(ksampler(model, positive, negative, 7.5, empty["samples"]), run(ours(any_editor)), **ROUNDING)


def test_the_patch_at_image_scale_one_changes_nothing(any_editor):
    model, positive, negative, _ = InstructPix2PixPatch.execute(any_editor, SNOW, EMPTY, 1.0, IMAGE).args
    assert torch.equal(ksampler(model, positive, negative, 4.0), ksampler(any_editor, seeing(SNOW), seeing(EMPTY), 4.0))


@pytest.mark.parametrize("made", [ours, as_channels], ids=["guider", "channels"])
def test_further_channels_ride_along(any_editor, made):
    dog = Channel(DOG, 2.0, null=EMPTY)
    together = run(as_channels(any_editor, previous=(dog,)))
    if made is ours:
        assert_close(run(ours(MultiCFGWrapper([dog]).install(any_editor))), together, **ROUNDING)
        assert_close(
            run(ours(MultiCFGWrapper([dog]).install(any_editor), 3.0, 3.0)), run(as_channels(any_editor, 3.0, 3.0, (dog,))), **ROUNDING
        )
    assert not torch.allclose(together, run(made(any_editor)), atol=1e-2)


def test_every_image_of_a_batch_is_edited_as_if_alone(any_editor):
    both = image(2)
    edited = run(ours(any_editor, image_input=both), latent(2))
    assert_close(edited, run(host_dual(any_editor, latent=both), latent(2)), **ROUNDING)
    assert not torch.allclose(edited[:1], run(ours(any_editor, image_input={"samples": both["samples"][1:]})), atol=1e-2)
    assert_close(edited[:1], run(ours(any_editor, image_input={"samples": both["samples"][:1]})), **ROUNDING)
    assert run(ours(any_editor), latent(3)).shape[0] == 3


def test_an_image_of_another_size_is_scaled_as_the_host_does(any_editor):
    wide = image(1, 12, 10)
    assert_close(run(ours(any_editor, image_input=wide)), run(host_dual(any_editor, latent=wide)), **ROUNDING)


def concat_of(guider) -> torch.Tensor:
    """What stands beside the noisy latent in the first call, (rows, 4, h, w), and the kinds of rows."""
    seen = []

    def look(apply_model, args):
        seen.append((args["c"]["c_concat"].clone(), args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    guider.model_patcher.set_model_unet_function_wrapper(look)
    guider.model_options = guider.model_patcher.model_options
    run(guider)
    return seen[0][0]


def test_the_image_enters_unscaled_and_its_absence_as_zeros(any_editor):
    rows = concat_of(ours(any_editor.clone()))
    shown = [r for r in rows if r.any()]
    assert len(rows) == 3 and len(shown) == 2
    assert all(torch.equal(r, IMAGE["samples"][0]) for r in shown)


def test_an_image_is_encoded_as_the_hosts_own_node_does(editor, vae):
    image = torch.rand(1, 67, 70, 3, generator=torch.Generator().manual_seed(1))
    positive, negative, theirs = InstructPixToPixConditioning.execute(SNOW, EMPTY, image, vae).args
    guider, empty, _ = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 4.0, 1.0, image, vae).args
    assert torch.equal(empty["samples"], theirs["samples"])
    assert torch.equal(run(guider, empty["samples"]), run(cfg_guider(editor, positive, negative, 4.0), theirs["samples"]))


def test_an_image_that_the_conditioning_carries_already_is_taken(any_editor):
    for negative in (EMPTY, seeing(EMPTY)):
        carried = InstructPix2PixGuider.execute(any_editor, seeing(SNOW), negative, 7.5, 1.5).args
        assert torch.equal(run(carried[0], carried[1]["samples"]), run(ours(any_editor)))


def test_a_negative_that_carries_an_image_of_its_own_keeps_it(any_editor):
    blurred = image(seed=6)
    guider = InstructPix2PixGuider.execute(any_editor, SNOW, seeing(EMPTY, blurred), 4.0, 1.0, IMAGE).args[0]
    assert torch.equal(run(guider), run(cfg_guider(any_editor, seeing(SNOW), seeing(EMPTY, blurred), 4.0)))


def test_the_image_is_compared_with_its_unconditional(any_editor):
    guider = dual_guider(any_editor, seeing(SNOW), seeing(EMPTY), DOG, 7.5, 1.5)
    for unconditional in (DOG, seeing(DOG)):
        assert_close(run(ours(any_editor, unconditional=unconditional)), run(guider), **ROUNDING)


class Watch:
    """Another node's CFG functions; they count their calls, keep what they saw, and change the result."""

    def __init__(self, model):
        self.calls, self.seen = {"pre": 0, "cfg": 0, "post": 0}, []
        self.model = model.clone()
        self.model.set_model_sampler_pre_cfg_function(self.pre)
        self.model.set_model_sampler_cfg_function(self.cfg)
        self.model.set_model_sampler_post_cfg_function(self.post)

    def pre(self, args):
        self.calls["pre"] += 1
        return [args["conds_out"][0] * 1.01, *args["conds_out"][1:]]

    def cfg(self, args):
        self.calls["cfg"] += 1
        return args["uncond"] + 1.1 * args["cond_scale"] * (args["cond"] - args["uncond"])

    def post(self, args):
        self.calls["post"] += 1
        self.seen.append(args)
        return args["denoised"] * 0.99


@pytest.mark.parametrize("image", [1.0, 1.0 + 1e-7, 4.0], ids=["neutral", "three rows", "equal scales"])
def test_other_nodes_cfg_functions_act_on_the_instruction(any_editor, image):
    alone, beside = Watch(any_editor), Watch(any_editor)
    expected = run(cfg_guider(alone.model, seeing(SNOW), EMPTY if image == 4.0 else seeing(EMPTY), 4.0))
    assert_close(run(ours(beside.model, 4.0, image)), expected, **ROUNDING)
    assert beside.calls == alone.calls == {"pre": STEPS, "cfg": STEPS, "post": STEPS}


def test_post_cfg_functions_see_the_equation_and_its_parts(any_editor):
    watch = Watch(any_editor)
    watch.model.model_options.pop("sampler_cfg_function")
    watch.model.model_options.pop("sampler_pre_cfg_function")
    run(ours(watch.model), sigmas=sigmas_of(any_editor)[:2])
    (seen,) = watch.seen
    nothing = comfy_prediction(any_editor, EMPTY, seen)
    image, edit = seen["uncond_denoised"], seen["cond_denoised"]
    assert seen["cond_scale"] == 7.5
    assert_close(seen["denoised"], nothing + 1.5 * (image - nothing) + 7.5 * (edit - image), **ROUNDING)


def comfy_prediction(model, conditioning, seen: dict) -> torch.Tensor:
    """The host's denoised prediction with one conditioning where a hook was called."""
    asked = []

    def keep(args):
        asked.append(args["cond_denoised"])
        return args["denoised"]

    probe = model.clone()
    probe.set_model_sampler_post_cfg_function(keep)
    run(cfg_guider(probe, conditioning, EMPTY, 1.0), sigmas=torch.tensor([float(seen["sigma"].max()), 0.0]))
    return asked[0]


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "CFGOverride"), reason="this ComfyUI has no CFG Override")
def test_cfg_override_is_a_text_scale(any_editor):
    overridden = nodes_custom_sampler.CFGOverride.execute(any_editor, 3.0, 0.0, 1.0).args[0]
    for text, image in ((7.5, 1.5), (7.5, 3.0), (1.5, 1.5)):
        assert torch.equal(run(ours(overridden, text, image)), run(ours(any_editor, 3.0, image)))


def test_model_unchanged_and_runs_independent(any_editor):
    before, options = run(host_dual(any_editor)), repr((any_editor.model_options, any_editor.wrappers))
    guider = ours(any_editor)
    patched = InstructPix2PixPatch.execute(any_editor, SNOW, EMPTY, 2.5, IMAGE).args[0]
    first, other = run(guider), ksampler(patched, seeing(SNOW), seeing(EMPTY), 7.5)
    assert torch.equal(run(guider), first)
    assert torch.equal(ksampler(patched, seeing(SNOW), seeing(EMPTY), 7.5), other)
    assert torch.equal(run(host_dual(any_editor)), before)
    assert options == repr((any_editor.model_options, any_editor.wrappers))
    assert SNOW[0][1].keys() == EMPTY[0][1].keys() == {"pooled_output"}


def test_a_model_that_takes_no_image_is_refused_by_its_class(any_model):
    with pytest.raises(ValueError, match=r"BaseModel cannot be shown an image: .* Load an instruction-tuned model \(InstructPix2Pix"):
        ours(any_model)


@pytest.mark.parametrize(
    "positive, image, message",
    [
        (SNOW, None, r"'positive' carries no image \(concat_latent_image\) and 'image' is not connected"),
        (seeing(SNOW), IMAGE, r"'positive' already carries an image \(concat_latent_image\), and 'image' is connected as well"),
        (SNOW, torch.rand(1, 64, 64, 3), "'image' is an IMAGE, which needs the vae"),
        (SNOW, {"samples": torch.zeros(1, 16, 8, 8)}, "latent has 16 channels, but SD15_instructpix2pix .* takes 4"),
        ([[torch.zeros(1, 77, 768), {}]], IMAGE, "positive has text features of width 768, but SD15_instructpix2pix takes 64"),
        ([], IMAGE, "positive is an empty conditioning"),
    ],
    ids=["no image", "two images", "no vae", "channels", "width", "empty"],
)
def test_wrong_input_is_refused_with_the_next_step(editor, positive, image, message):
    for node, scales in ((InstructPix2PixGuider, (7.5, 1.5)), (InstructPix2PixPatch, (1.5,)), (InstructionChannels, (7.5, 1.5))):
        with pytest.raises(ValueError, match=message):
            node.execute(editor, positive, EMPTY, *scales, image)


def test_a_scale_that_is_no_number_is_refused(editor):
    with pytest.raises(ValueError, match="text_scale is nan"):
        ours(editor, float("nan"))
    with pytest.raises(ValueError, match="image_scale is inf"):
        InstructPix2PixPatch.execute(editor, SNOW, EMPTY, float("inf"), IMAGE)


def test_a_conditioning_out_of_its_range_pulls_to_no_zero_image(any_editor):
    """The host predicts an all-zero image for it; with equal scales too it must drop out instead."""
    late = node_helpers.conditioning_set_values(SNOW, {"start_percent": 0.999, "end_percent": 1.0})
    sigmas = sigmas_of(any_editor)[:2]
    gone = InstructPix2PixGuider.execute(any_editor, late, EMPTY, 3.0, 3.0, IMAGE).args[0]
    assert_close(run(gone, sigmas=sigmas), run(ours(any_editor, 0.0, 3.0), sigmas=sigmas), **ROUNDING)


def test_the_scales_are_drawn(editor):
    for sigmas in (None, sigmas_of(editor)):
        drawn = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 7.5, 1.5, IMAGE, sigmas=sigmas).args[2]
        assert drawn.shape[-1] == 3 and drawn.std() > 0
