from functools import partial

import comfy.sample
import comfy.samplers
import pytest
import torch
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.guidance import sdedit
from controlled_diffusion.nodes.sdedit import SDEditSampler

from compare import assert_close
from host import tiny
from host.sampling import families, half_mask
from host.tiny import conditioning
from host.video import tiny_video_model, tiny_video_vae, video_conditioning

EMPTY, CAT = conditioning(0), conditioning(1)
pytestmark = pytest.mark.usefixtures("inference_mode")
model = families(partial(tiny.unet, output_scale=0.1))
SETTINGS = dict(seed=3, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", strength=0.5, strength_unit="percent", process="VP",
                repeats=1)  # fmt: skip


def guide(batch=1, seed=5):
    return {"samples": torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))}


def edit(model, guide, prompts=(CAT, EMPTY), **knobs):
    """(latent samples, image, noisy start, report) of the node with a few steps."""
    latent, image, start, report = SDEditSampler.execute(model, *prompts, guide, **SETTINGS | knobs).args
    return latent["samples"], image, start["samples"], report


def test_strength_zero_returns_the_guide_and_the_report_says_so(model):
    original = guide()
    result, _, start, report = edit(model, original, strength=0.0)
    assert torch.equal(result, original["samples"]) and torch.equal(start, original["samples"]) and "no step was run" in report
    report, kind = edit(model, guide(), repeats=2)[3], "the model's flow" if model.model.model_type.name == "FLOW" else "VP"
    assert report.startswith(f"{kind}: start at sigma ") and "50.0 % of the noise scale" in report and report.endswith("4 steps x 2")


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "ddim", "uni_pc"])
def test_unmasked_it_is_the_hosts_img2img_from_the_same_sigmas(model, sampler):
    start = guide(2)
    levels = sdedit.sigmas(model, 0.5, "percent", "VP", 4, "normal")
    noise = comfy.sample.prepare_noise(start["samples"], 3)
    given = 3.0, comfy.samplers.sampler_object(sampler), levels, CAT, EMPTY, start["samples"]
    host = comfy.sample.sample_custom(model, noise, *given, disable_pbar=True, seed=3)
    assert torch.equal(edit(model, start, sampler_name=sampler)[0], host)


def test_every_scheduler_starts_at_the_same_noise_level(model):
    scale = noise_levels.noise_scale(model)
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        levels = sdedit.sigmas(model, 0.4, "percent", "VP", 6, scheduler)
        assert float(levels[0]) == pytest.approx(scale.sigma(0.6), rel=1e-5), scheduler
        assert levels[-1] == 0 and len(levels) - 1 == 6, (scheduler, len(levels))


def test_the_noisy_start_is_the_guide_at_the_level_asked_for(model):
    original = guide()
    _, _, start, _ = edit(model, original)
    noise = comfy.sample.prepare_noise(original["samples"], 3)
    sigma = float(sdedit.sigmas(model, 0.5, "percent", "VP", 4, "normal")[0])
    clean = model.model.process_latent_in(original["samples"])
    flow = model.model.model_type.name == "FLOW"
    expected = (1 - sigma) * clean + sigma * noise if flow else clean + sigma * noise
    assert_close(start, model.model.process_latent_out(expected))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_what_the_mask_freezes_is_the_original_bit_for_bit(model, sampler, repeats):
    painted, original = guide(seed=5), guide(seed=6)
    result = edit(model, painted, original=original, mask=half_mask(), sampler_name=sampler, repeats=repeats)[0]
    assert torch.equal(result[..., :3], original["samples"][..., :3])
    assert not torch.allclose(result[..., 5:], painted["samples"][..., 5:], atol=1e-2)


def test_masks_of_zero_of_one_and_of_a_latent(model):
    painted, plain = guide(), edit(model, guide())[0]
    assert torch.equal(edit(model, painted, mask=torch.zeros(1, 64, 64))[0], painted["samples"])
    assert torch.equal(edit(model, painted, mask=torch.ones(1, 64, 64))[0], plain)
    assert torch.equal(edit(model, {**painted, "noise_mask": half_mask()})[0], edit(model, painted, mask=half_mask())[0])


def test_repeats_go_on_from_the_last_result_with_the_next_seed(model):
    once = edit(model, guide())[0]
    again = edit(model, {"samples": once}, seed=4)[0]
    assert torch.equal(edit(model, guide(), repeats=2)[0], again)


def test_pixels_outside_the_mask_are_the_images_own(model, vae):
    """And so are all of an image that is not noised."""
    before = torch.rand(1, 64, 64, 3)
    _, image, _, _ = edit(model, before, vae=vae, mask=half_mask())
    assert torch.equal(image[:, :, :32], before[:, :, :32])
    assert not torch.allclose(image[:, :, 40:], before[:, :, 40:], atol=1e-2)
    assert torch.equal(edit(model, before, vae=vae, strength=0.0)[1], before)


def test_a_gray_mask_blends_once(model, vae):
    """ComfyUI's sampling blends the latent by it; the pixels do not do so again."""
    before = torch.rand(1, 64, 64, 3)
    latent, image, _, _ = edit(model, before, vae=vae, mask=0.5 * half_mask())
    assert_close(image[:, :, 48:], vae.decode(latent)[:, :, 48:])
    assert torch.equal(image[:, :, :32], before[:, :, :32])


def test_an_image_that_the_vae_would_cut_is_refused(eps_model, vae):
    odd = torch.rand(1, 71, 67, 3)
    for name, knobs in (("guide", dict(image=odd)), ("original", dict(image=torch.rand(1, 64, 64, 3), original=odd))):
        with pytest.raises(ValueError, match=rf"'{name}' is 67 x 71 pixels, but this VAE takes multiples of 8 .* to 64 x 64\."):
            edit(eps_model, knobs.pop("image"), vae=vae, **knobs)


def test_ve_runs_its_steps_in_equal_ratios(model):
    levels = {p: sdedit.sigmas(model, 0.5, "percent", p, 5, "normal") for p in ("VP", "VE")}
    assert len(levels["VE"]) == 6
    if model.model.model_type.name == "FLOW":
        assert torch.equal(levels["VP"], levels["VE"])
    else:
        ratios = levels["VE"][1:-1] / levels["VE"][:-2]
        assert_close(ratios, ratios[:1].expand_as(ratios))


def video(batch=1):
    return {"samples": torch.randn(batch, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


def edit_video(given, **knobs):
    """As `edit`, with a tiny video model."""
    prompts = video_conditioning(1), video_conditioning(0)
    return edit(tiny_video_model(), given, prompts, **dict(steps=2, cfg=2.0, scheduler="simple") | knobs)[:2]


def test_video_latents_are_edited_frame_by_frame_under_one_mask():
    painted = video()
    result = edit_video(painted, mask=half_mask())[0]
    assert result.shape == painted["samples"].shape
    assert torch.equal(result[..., :3], painted["samples"][..., :3])
    assert not torch.allclose(result[..., 5:], painted["samples"][..., 5:], atol=1e-2)


def changed(result, before):
    """For every video, which of its frames changed."""
    return [[not torch.equal(a, b) for a, b in zip(*pair)] for pair in zip(result, before)]


def test_every_video_of_a_batch_has_its_own_mask():
    painted, vae = video(2), tiny_video_vae()
    result, image = edit_video(painted, mask=torch.cat([torch.ones(1, 64, 64), torch.zeros(1, 64, 64)]), vae=vae)
    assert changed(result.movedim(2, 1), painted["samples"].movedim(2, 1)) == [[True] * 3, [False] * 3]
    assert changed(image.reshape(2, 9, 64, 64, 3), vae.decode(painted["samples"])) == [[True] * 9, [False] * 9]


@pytest.mark.parametrize("shape", [(1, 1, 3, 8, 8), (1, 1, 3, 1, 1), (3, 64, 64), (9, 64, 64)], ids=str)
def test_a_mask_may_hold_an_image_for_each_frame_of_a_video(shape):
    """As ComfyUI's video nodes set them beside a first frame."""
    painted, vae, mask = video(), tiny_video_vae(), torch.ones(shape)
    still = 5 if 9 in shape else 1  # images: the first frame of the latent is one
    mask.view(-1, *shape[-2:])[:still] = 0
    given = dict(guide={**painted, "noise_mask": mask}) if mask.ndim == 5 else dict(guide=painted, mask=mask)
    result, image = edit_video(given.pop("guide"), vae=vae, **given)
    assert changed(result.movedim(2, 1), painted["samples"].movedim(2, 1)) == [[False, still == 1, True]]
    assert changed(image[None], vae.decode(painted["samples"])) == [[i >= still for i in range(9)]]


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(mask=torch.ones(3, 8, 8)), "mask holds 3 images but the guide 1"),
        (dict(original={"samples": torch.zeros(1, 4, 16, 8)}), "Guide and original differ in size"),
        (dict(original=guide(3), guide=guide(2)), "Guide holds 2 images and original 3"),
        (dict(guide={"samples": torch.ones(1, 16, 8, 8)}), "latent has 16 channels, but BaseModel .* takes 4"),
        (dict(strength=1.2), "strength is 1.2 percent; give 0"),
        (dict(guide=torch.rand(1, 64, 64, 3)), "'guide' is an IMAGE, which needs the vae"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(eps_model, knobs, message):
    with pytest.raises(ValueError, match=message):
        edit(eps_model, **({"guide": guide()} | knobs))
