"""Today's instruction editors take the image as reference latents; they get the same two scales."""

import node_helpers
import pytest
import torch
from comfy.model_base import IP2P
from comfy_extras.nodes_edit_model import ReferenceLatent
from controlled_diffusion.nodes.host.guidance.diffedit import MaskSettings, MaskTarget
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.host.inversion.flow_edit import EditPath
from controlled_diffusion.nodes.host.sampling import TwoPrompts
from controlled_diffusion.nodes.instruct_pix2pix import InstructionChannels, InstructPix2PixGuider, InstructPix2PixPatch

from compare import assert_close
from host import tiny
from host.sampling import STEPS, Count, cfg_guider, dual_guider, half_mask, ksampler, run, sigmas_of
from host.tiny_editors import EDITORS, chroma, editor, image_for, instruct_pix2pix, instruction

EMPTY, SNOW, BARE = (instruction(i) for i in range(3))
ROUNDING = dict(atol=1e-4, rtol=1e-4)
pytestmark = pytest.mark.usefixtures("inference_mode")
each_editor = pytest.mark.parametrize("name", EDITORS)


def seeing(conditioning, image):
    return ReferenceLatent.execute(conditioning, image).args[0]


def host_dual(model, latent, text=4.0, image=1.5, nothing=EMPTY):
    return dual_guider(model, seeing(SNOW, latent), seeing(EMPTY, latent), nothing, text, image)


def ours(model, latent, text=4.0, image=1.5, **inputs):
    return InstructPix2PixGuider.execute(model, SNOW, EMPTY, text, image, latent, **inputs).args[0]


@each_editor
def test_guider_channels_and_patch_are_the_equation(name):
    model, image = editor(name), image_for(name)
    empty = torch.zeros_like(image["samples"])
    expected = run(host_dual(model, image), empty)
    assert expected.isfinite().all()
    assert_close(run(ours(model, image), empty), expected, **ROUNDING)
    channels, unconditional, *_ = InstructionChannels.execute(model, SNOW, EMPTY, 4.0, 1.5, image).args
    assert_close(run(MultiCFG(model, unconditional, channels), empty), expected, **ROUNDING)
    patched, positive, negative, sized = InstructPix2PixPatch.execute(model, SNOW, EMPTY, 1.5, image).args
    assert_close(ksampler(patched, positive, negative, 4.0, sized["samples"]), expected, **ROUNDING)
    two = torch.zeros(2, *empty.shape[1:])
    assert_close(run(ours(model, image), two), run(host_dual(model, image), two), **ROUNDING)


@each_editor
def test_the_image_has_a_handle_of_its_own(name):
    model, image, other = editor(name), image_for(name), image_for(name, seed=6)
    empty = torch.zeros_like(image["samples"])
    neutral = run(ours(model, image, image=1.0), empty)
    assert torch.equal(neutral, run(cfg_guider(model, seeing(SNOW, image), seeing(EMPTY, image), 4.0), empty))
    stronger = run(ours(model, image, image=6.0), empty)
    assert (stronger - neutral).abs().max() > 0.05
    assert (stronger - run(ours(model, other, image=6.0), empty)).abs().max() > 0.05


@each_editor
def test_no_prediction_is_made_for_nothing(name):
    model, latent = editor(name), image_for(name)
    empty = torch.zeros_like(latent["samples"])
    for text, image, rows in ((4.0, 1.5, 3), (3.0, 3.0, 2), (4.0, 1.0, 2), (0.0, 1.5, 2), (1.0, 1.0, 1)):
        count = Count(model)
        run(ours(count.model, latent, text, image), empty)
        assert count.rows == rows * STEPS


@each_editor
def test_an_image_that_the_encoder_put_in_is_taken(name):
    """As TextEncodeQwenImageEdit and ReferenceLatent do; the null is a prompt that the image did not color."""
    model, image = editor(name), image_for(name)
    method = {"reference_latents_method": "index"}
    positive, negative = (node_helpers.conditioning_set_values(seeing(c, image), method) for c in (SNOW, EMPTY))
    guider, empty, _ = InstructPix2PixGuider.execute(model, positive, negative, 4.0, 1.5, unconditional=BARE).args
    assert empty["samples"].shape == image["samples"].shape and not empty["samples"].any()
    theirs = dual_guider(model, positive, negative, BARE, 4.0, 1.5)
    assert_close(run(guider, empty["samples"]), run(theirs, empty["samples"]), **ROUNDING)


@each_editor
def test_a_mask_keeps_the_rest_of_the_image(name):
    """Each image of a batch in its own mask; the same as ComfyUI's noise mask on the image's latent."""
    model, image = editor(name), image_for(name, batch=2)
    side = image["samples"].shape[-1]
    mask = torch.cat([half_mask(8 * side), half_mask(8 * side).flip(-1)])
    channels, nothing, _, masked = InstructionChannels.execute(model, SNOW, EMPTY, 4.0, 1.5, image, mask=mask).args
    made = run(MultiCFG(model, nothing, channels), masked["samples"], noise_mask=masked["noise_mask"])
    right = torch.arange(side) >= side // 2
    for one, source, inside in zip(made, image["samples"], (right, ~right)):
        assert_close(one[..., ~inside], source[..., ~inside], atol=1e-5, rtol=1e-5)
        assert (one - source)[..., inside].abs().max() > 0.05


def test_several_reference_images_stay_together():
    model, first, second = editor("flux"), image_for("flux"), image_for("flux", seed=6)
    positive, negative = (seeing(seeing(c, first), second) for c in (SNOW, EMPTY))
    empty = torch.zeros_like(first["samples"])
    theirs = dual_guider(model, positive, negative, EMPTY, 4.0, 1.5)
    guider = InstructPix2PixGuider.execute(model, positive, EMPTY, 4.0, 1.5).args[0]
    assert_close(run(guider, empty), run(theirs, empty), **ROUNDING)


def test_the_reference_may_have_another_size_than_the_result():
    model, image = editor("flux"), {"samples": torch.randn(1, 16, 12, 10, generator=torch.Generator().manual_seed(1))}
    empty, sigmas = torch.zeros(1, 16, 8, 8), sigmas_of(model)
    assert_close(run(ours(model, image), empty, sigmas=sigmas), run(host_dual(model, image), empty, sigmas=sigmas), **ROUNDING)


def heat(model, latent, texts, settings):
    """What DiffEdit Mask sees of an instruction: the image with one text against the image with another."""
    image = latent["samples"]
    values = {"concat_latent_image": image} if isinstance(model.model, IP2P) else {"reference_latents": [image]}
    source, target = (node_helpers.conditioning_set_values(text, values) for text in texts)
    return MaskTarget(model, None, latent).heat(TwoPrompts(model, source, target, source, 1.0), settings)


@pytest.mark.parametrize("settings", [MaskSettings([0.2], 3, 1, False), EditPath(2, 3, 1, False)], ids=["levels", "path"])
@pytest.mark.parametrize("name", [*EDITORS, "instruct_pix2pix"])
def test_the_mask_of_an_instruction_sees_each_its_own_image(name, settings):
    """Several noises of several images are evaluated together, each with its image."""
    if name in EDITORS:
        model, both, texts = editor(name), image_for(name, batch=2)["samples"], (EMPTY, SNOW)
    else:
        both = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        model, texts = instruct_pix2pix(), (tiny.conditioning(0), tiny.conditioning(1))
    together = heat(model, {"samples": both, "batch_index": [0, 1]}, texts, settings)
    for i in (0, 1):
        alone = heat(model, {"samples": both[i : i + 1], "batch_index": [i]}, texts, settings)
        assert alone.any() and torch.allclose(alone[0], together[i], atol=1e-3 * float(alone.max()), rtol=1e-3)
    assert not torch.allclose(*together, rtol=0.05)
    assert not heat(model, {"samples": both}, (texts[0], texts[0]), settings).any()


def test_models_and_latents_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Chroma cannot be shown an image"):  # its network leaves references out
        ours(chroma(), image_for("flux"))
    with pytest.raises(ValueError, match=r"latent has 16 channels, but Flux2 .* takes 128"):
        ours(editor("flux2"), image_for("flux"))
