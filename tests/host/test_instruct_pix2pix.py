"""InstructPix2Pix guidance on ComfyUI's own 8-channel UNet, beside ComfyUI's DualCFGGuider and CFG."""

import comfy.sample
import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Constant, Ramp, Schedule
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.instruct_pix2pix import InstructionChannels, InstructPix2PixGuider, InstructPix2PixPatch

from checks import refused
from compare import assert_close
from host.sampling import STEPS, Count, Hooks, cfg_guider, dual_guider, families, half_mask, ksampler, latent, run, sigmas_of, watched
from host.tiny import conditioning
from host.tiny_editors import instruct_pix2pix

EMPTY, SNOW, DOG = (conditioning(i) for i in range(3))
ROUNDING = dict(atol=1e-4, rtol=1e-4)
pytestmark = pytest.mark.usefixtures("inference_mode")


def image(batch: int = 1, *shape: int, seed: int = 5) -> dict:
    """A random LATENT to edit."""
    return {"samples": torch.randn(batch, 4, *(shape or (8, 8)), generator=torch.Generator().manual_seed(seed))}


IMAGE = image()


any_editor = families(instruct_pix2pix)


@pytest.fixture
def editor():
    return instruct_pix2pix()


def ours(model, text=7.5, image=1.5, image_input=IMAGE, **inputs):
    return InstructPix2PixGuider.execute(model, SNOW, EMPTY, text, image, image_input, **inputs).args[0]


def seeing(conditioning, latent=IMAGE):
    return node_helpers.conditioning_set_values(conditioning, {"concat_latent_image": latent["samples"]})


def host_dual(model, text=7.5, image=1.5, latent=IMAGE):
    """The paper's arrangement of ComfyUI's DualCFGGuider."""
    return dual_guider(model, seeing(SNOW, latent), seeing(EMPTY, latent), EMPTY, text, image)


def as_channels(model, text=7.5, image=1.5, previous=(), **inputs):
    made, unconditional, *_ = InstructionChannels.execute(model, SNOW, EMPTY, text, image, IMAGE, previous=previous, **inputs).args
    return MultiCFG(model, unconditional, made)


SCALES = (7.5, 1.5), (3.0, 3.0), (7.5, 1.0), (1.0, 1.5), (0.0, 1.5), (7.5, 0.0), (1.0, 1.0), (2.0, -1.0)


@pytest.mark.parametrize("text, image", SCALES)
@pytest.mark.parametrize("made", [ours, as_channels], ids=["guider", "channels"])
def test_it_is_the_hosts_dual_cfg_in_the_papers_arrangement(any_editor, made, text, image):
    assert_close(run(made(any_editor, text, image)), run(host_dual(any_editor, text, image)), **ROUNDING)


def test_the_two_channels_are_dual_cfg_bitwise(any_editor):
    """One step at a time, so that equal predictions are compared and not sampling that amplifies a rounding."""
    sigmas = sigmas_of(any_editor)[:2]
    theirs = run(host_dual(any_editor), sigmas=sigmas)
    assert torch.equal(run(as_channels(any_editor), sigmas=sigmas), theirs)


NEUTRAL = [*((s, 4.0, 1.0) for s in ("euler", "heun", "dpmpp_2m", "euler_ancestral")), ("euler", 3.0, 3.0), ("euler", 1.0, 1.0)]


@pytest.mark.parametrize("sampler, text, image", NEUTRAL)
def test_neutral_and_equal_scales_are_cfg_bitwise(any_editor, sampler, text, image):
    """Image scale 1: from the image to the edit. Equal scales: from nothing to the edit. Both 1: the edit alone."""
    theirs = cfg_guider(any_editor, seeing(SNOW), seeing(EMPTY) if image == 1.0 else EMPTY, text)
    assert torch.equal(run(ours(any_editor, text, image), sampler=sampler), run(theirs, sampler=sampler))


def test_both_scales_act_and_a_blank_image_leaves_text_guidance(any_editor):
    blank = {"samples": torch.zeros_like(IMAGE["samples"])}
    assert_close(run(ours(any_editor, 4.0, 2.0, blank)), run(cfg_guider(any_editor, SNOW, EMPTY, 4.0)), **ROUNDING)
    first, *others = (run(ours(any_editor, *scales)) for scales in ((7.5, 1.5), (5.0, 1.5), (7.5, 2.5)))
    assert not any(torch.allclose(first, other, atol=1e-2) for other in others)


ROWS = (7.5, 1.5, 3), (1.0, 1.5, 3), (7.5, 0.0, 3), (3.0, 3.0, 2), (7.5, 1.0, 2), (0.0, 1.5, 2), (1.0, 1.0, 1), (0.0, 1.0, 1), (0.0, 0.0, 1)


@pytest.mark.parametrize("text, image, rows", ROWS)
def test_only_needed_rows_are_evaluated_in_one_call(editor, text, image, rows):
    count = Count(editor)
    run(ours(count.model, text, image))
    assert (count.rows, count.calls) == (rows * STEPS, STEPS)


HALVED, OFF = Schedule(Constant(0.5)), Schedule(Constant(0.0))
SCHEDULED = [
    (7.5, 2.0, dict(image_schedule=HALVED), 2),
    (6.0, 3.0, dict(text_schedule=HALVED), 2),
    (2.0, 2.0, dict(text_schedule=HALVED, image_schedule=HALVED), 1),
    (7.5, 1.5, dict(text_schedule=OFF), 2),
    (7.5, 1.5, dict(text_schedule=Schedule(end=0.5)), None),  # some steps of 2, some of 3
]


@pytest.mark.parametrize("text, image, schedules, rows", SCHEDULED)
def test_rows_are_saved_where_schedules_make_scales_equal(editor, text, image, schedules, rows):
    count = Count(editor)
    run(ours(count.model, text, image, **schedules))
    assert count.rows == rows * STEPS if rows else 2 * STEPS < count.rows < 3 * STEPS


def test_schedules_of_guider_and_channels_agree_and_act(any_editor):
    schedules = dict(text_schedule=Schedule(Ramp(1.5, 0.5)), image_schedule=Schedule(Ramp(0.5, 2.0, axis="log_snr")))
    scheduled = run(ours(any_editor, **schedules))
    assert_close(scheduled, run(as_channels(any_editor, **schedules)), **ROUNDING)
    assert not torch.allclose(scheduled, run(ours(any_editor)), atol=1e-2)


def test_the_patch_makes_a_ksampler_do_the_same(any_editor):
    model, positive, negative, empty = InstructPix2PixPatch.execute(any_editor, SNOW, EMPTY, 1.5, IMAGE).args
    assert_close(ksampler(model, positive, negative, 7.5, empty["samples"]), run(ours(any_editor)), **ROUNDING)
    model, positive, negative, _ = InstructPix2PixPatch.execute(any_editor, SNOW, EMPTY, 1.0, IMAGE).args  # changes nothing
    assert torch.equal(ksampler(model, positive, negative, 4.0), ksampler(any_editor, seeing(SNOW), seeing(EMPTY), 4.0))


def test_further_channels_ride_along(any_editor):
    dog = Channel(DOG, 2.0, null=EMPTY)
    model = MultiCFGWrapper([dog]).install(any_editor)
    for scales in ((7.5, 1.5), (3.0, 3.0)):
        assert_close(run(ours(model, *scales)), run(as_channels(any_editor, *scales, (dog,))), **ROUNDING)
    together = run(as_channels(any_editor, previous=(dog,)))
    assert not any(torch.allclose(together, run(made(any_editor)), atol=1e-2) for made in (ours, as_channels))


def test_every_image_of_a_batch_is_edited_as_if_alone(any_editor):
    both = image(2)
    edited = run(ours(any_editor, image_input=both), latent(2))
    assert_close(edited, run(host_dual(any_editor, latent=both), latent(2)), **ROUNDING)
    assert not torch.allclose(edited[:1], run(ours(any_editor, image_input={"samples": both["samples"][1:]})), atol=1e-2)
    assert_close(edited[:1], run(ours(any_editor, image_input={"samples": both["samples"][:1]})), **ROUNDING)
    assert run(ours(any_editor), latent(3)).shape[0] == 3
    wide = image(1, 12, 10)  # is scaled as ComfyUI does
    assert_close(run(ours(any_editor, image_input=wide)), run(host_dual(any_editor, latent=wide)), **ROUNDING)


def test_the_image_enters_unscaled_and_its_absence_as_zeros(any_editor):
    """What stands beside the noisy latent in the first call, (rows, 4, h, w)."""
    seen = []
    run(ours(watched(any_editor, lambda args: seen.append(args["c"]["c_concat"].clone()))))
    shown = [row for row in seen[0] if row.any()]
    assert len(seen[0]) == 3 and len(shown) == 2 and all(torch.equal(row, IMAGE["samples"][0]) for row in shown)


def test_an_image_is_encoded_as_the_hosts_own_node_does(editor, vae):
    image = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(1))
    positive, negative, theirs = InstructPixToPixConditioning.execute(SNOW, EMPTY, image, vae).args
    guider, empty, _ = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 4.0, 1.0, image, vae).args
    assert torch.equal(empty["samples"], theirs["samples"])
    assert torch.equal(run(guider, empty["samples"]), run(cfg_guider(editor, positive, negative, 4.0), theirs["samples"]))


def test_images_that_the_conditionings_carry_already_are_taken(any_editor):
    """A negative may carry another than the positive."""
    for negative in (EMPTY, seeing(EMPTY)):
        carried = InstructPix2PixGuider.execute(any_editor, seeing(SNOW), negative, 7.5, 1.5).args
        assert torch.equal(run(carried[0], carried[1]["samples"]), run(ours(any_editor)))
    blurred = seeing(EMPTY, image(seed=6))
    guider = InstructPix2PixGuider.execute(any_editor, SNOW, blurred, 4.0, 1.0, IMAGE).args[0]
    assert torch.equal(run(guider), run(cfg_guider(any_editor, seeing(SNOW), blurred, 4.0)))


def test_the_image_is_compared_with_its_unconditional(any_editor):
    guider = dual_guider(any_editor, seeing(SNOW), seeing(EMPTY), DOG, 7.5, 1.5)
    for unconditional in (DOG, seeing(DOG)):
        assert_close(run(ours(any_editor, unconditional=unconditional)), run(guider), **ROUNDING)


@pytest.mark.parametrize("image", [1.0, 1.0 + 1e-7, 4.0], ids=["neutral", "three rows", "equal scales"])
def test_other_nodes_cfg_functions_act_on_the_instruction(any_editor, image):
    alone, beside = Hooks(any_editor), Hooks(any_editor)
    expected = run(cfg_guider(alone.model, seeing(SNOW), EMPTY if image == 4.0 else seeing(EMPTY), 4.0))
    assert_close(run(ours(beside.model, 4.0, image)), expected, **ROUNDING)
    assert beside.calls == alone.calls == dict.fromkeys(alone.calls, STEPS)


def post_cfg(model, guider, sigmas) -> list[dict]:
    """What a node's post-CFG function is given, call by call."""
    seen, watched = [], model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    run(guider(watched), sigmas=sigmas)
    return seen


def test_post_cfg_functions_see_the_equation_and_its_parts(any_editor):
    (seen,) = post_cfg(any_editor, ours, sigmas_of(any_editor)[:2])
    sigmas = torch.tensor([float(seen["sigma"].max()), 0.0])
    nothing = post_cfg(any_editor, lambda model: cfg_guider(model, EMPTY, EMPTY, 1.0), sigmas)[0]["cond_denoised"]
    image, edit = seen["uncond_denoised"], seen["cond_denoised"]
    assert seen["cond_scale"] == 7.5
    assert_close(seen["denoised"], nothing + 1.5 * (image - nothing) + 7.5 * (edit - image), **ROUNDING)


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


def test_a_model_without_image_or_a_scale_of_nan_is_refused(any_model, editor):
    with pytest.raises(ValueError, match=r"BaseModel cannot be shown an image: .* Load an instruction-tuned model \(InstructPix2Pix"):
        ours(any_model)
    with pytest.raises(ValueError, match="text_scale is nan"):
        ours(editor, float("nan"))
    with pytest.raises(ValueError, match="image_scale is inf"):
        InstructPix2PixPatch.execute(editor, SNOW, EMPTY, float("inf"), IMAGE)


@pytest.mark.parametrize(
    "positive, image, message",
    [
        (SNOW, None, r"'positive' carries no image \(concat_latent_image\) and 'image' is not connected"),
        (seeing(SNOW), IMAGE, r"'positive' already carries an image \(concat_latent_image\), and 'image' is connected as well"),
        (SNOW, torch.rand(1, 64, 64, 3), "'image' is an IMAGE, which needs the vae"),
        (SNOW, {"samples": torch.zeros(1, 16, 8, 8)}, "latent has 16 channels, but SD15_instructpix2pix .* takes 4"),
        ([[torch.zeros(1, 77, 768), {}]], IMAGE, "positive has text features of width 768, but SD15_instructpix2pix takes 64"),
    ],
    ids=["no image", "two images", "no vae", "channels", "width"],
)
def test_wrong_input_is_refused_with_the_next_step(editor, positive, image, message):
    for node, scales in ((InstructPix2PixGuider, (7.5, 1.5)), (InstructPix2PixPatch, (1.5,)), (InstructionChannels, (7.5, 1.5))):
        with pytest.raises(ValueError, match=message):
            node.execute(editor, positive, EMPTY, *scales, image)


def test_a_conditioning_out_of_its_range_pulls_to_no_zero_image(any_editor):
    """The host predicts an all-zero image for it; with equal scales too it must drop out instead."""
    late = node_helpers.conditioning_set_values(SNOW, {"start_percent": 0.999, "end_percent": 1.0})
    sigmas = sigmas_of(any_editor)[:2]
    gone = InstructPix2PixGuider.execute(any_editor, late, EMPTY, 3.0, 3.0, IMAGE).args[0]
    assert_close(run(gone, sigmas=sigmas), run(ours(any_editor, 0.0, 3.0), sigmas=sigmas), **ROUNDING)


def test_a_mask_shows_the_network_the_images_own_noise_outside(any_editor):
    """At every step, in every row; and what is sampled is the image there. All three nodes give the same latent."""
    seen = []
    model = watched(any_editor, lambda args: seen.append(args["input"][..., :4]))
    guider, masked, _ = InstructPix2PixGuider.execute(model, SNOW, EMPTY, 4.0, 1.5, IMAGE, mask=half_mask()).args
    given = RandomNoise.execute(7).args[0], guider, KSamplerSelect.execute("euler").args[0], sigmas_of(model), masked
    made = SamplerCustomAdvanced.execute(*given).args[0]["samples"]
    assert_close(made[..., :4], IMAGE["samples"][..., :4], atol=1e-5, rtol=1e-5)
    assert (made - IMAGE["samples"])[..., 4:].abs().max() > 0.1
    clean, noise = model.model.process_latent_in(IMAGE["samples"]), comfy.sample.prepare_noise(IMAGE["samples"], 7)
    sampling = model.get_model_object("model_sampling")
    for sigma, rows in zip(sigmas_of(model), seen):
        noised = sampling.noise_scaling(sigma[None], noise.clone(), clean)[..., :4]
        assert len(rows) == 3 and all(torch.equal(row, noised[0]) for row in rows)
    for node, scales in ((InstructPix2PixPatch, (1.5,)), (InstructionChannels, (4.0, 1.5))):
        other = node.execute(any_editor, SNOW, EMPTY, *scales, IMAGE, mask=half_mask()).args[3]
        assert other.keys() == masked.keys() and all(torch.equal(other[k], masked[k]) for k in masked)


def test_a_mask_frees_every_cell_that_it_touches(editor):
    """ComfyUI's own scaling of a mask to the latent would freeze a thing as thin as half a cell."""
    thin = torch.zeros(2, 64, 64)
    thin[0, 9, 9] = thin[1, :, 63] = 1
    found = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 4.0, 1.5, image(2), mask=thin).args[1]["noise_mask"]
    assert found.shape == (2, 1, 8, 8) and found[0].nonzero().tolist() == [[0, 1, 1]] and bool(found[1, 0, :, 7].all()) and found.sum() == 9
    whole = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 4.0, 1.5, image(1, 12, 10), mask=torch.ones(1, 64, 64)).args[1]["noise_mask"]
    assert whole.shape == (1, 1, 12, 10) and bool(whole.all())  # nothing was painted in Load Image, and the mask inverted
    refused("The mask holds 3 images", InstructPix2PixGuider.execute, editor, SNOW, EMPTY, 4.0, 1.5, image(2), mask=torch.ones(3, 64, 64))


def test_the_scales_are_drawn(editor):
    for sigmas in (None, sigmas_of(editor)):
        drawn = InstructPix2PixGuider.execute(editor, SNOW, EMPTY, 7.5, 1.5, IMAGE, sigmas=sigmas).args[2]
        assert drawn.shape[-1] == 3 and drawn.std() > 0
