"""DDIM inversion and Inversion Sampler in the real ComfyUI."""

import comfy.sample
import comfy.samplers
import node_helpers
import nodes
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.conditionings import marked
from controlled_diffusion.nodes.host.prompts import encoded

from compare import assert_close
from host import tiny, tiny_text
from host.editing import ON_MARKED
from host.inversions import EDIT, EMPTY, SOURCE, TARGET, apart, euler, image, invert, sample, smooth
from host.sampling import Count, families, watched
from host.video import tiny_video_model, video_conditioning

pytestmark = pytest.mark.usefixtures("inference_mode")
model = families(smooth)


def ddim(model, latent, steps=8, **options):
    return invert("ddim", model, latent, steps=steps, **options)


def test_more_steps_are_closer_to_the_image(model):
    latent = image()
    errors = [apart(sample(model, ddim(model, latent, steps)[0]), latent["samples"]) for steps in (5, 40)]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.05


def test_trajectory_goes_from_ksamplers_sigma_to_the_image(model):
    """Or from the sigma of end_percent. The method travels with the inversion."""
    latent = image()
    inversion, *_, sigmas = ddim(model, latent)
    assert_close(sigmas, comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 8))
    assert_close(inversion.trajectory.states[-1][0], model.model.process_latent_in(latent["samples"]))
    part, scale = ddim(model, image(), end_percent=0.5)[0], noise_levels.noise_scale(model)
    assert part.trajectory.sigmas[0] == pytest.approx(scale.sigma(0.5)) and part.trajectory.steps == 8
    assert inversion.method == part.method == DDIM()


def test_evaluations_are_counted(model):
    count = Count(model)
    inversion = ddim(count.model, image())[0]
    assert count.rows == inversion.evaluations == 8
    sample(count.model, inversion, 4.0, **EDIT)
    assert count.rows == 8 + 16


def test_active_parts_of_a_conditioning_are_counted():
    count, late = Count(smooth("eps")), [[TARGET[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    whole, part = (ddim(count.model, image(), source=SOURCE + more)[0].evaluations for more in (TARGET, late))
    assert whole == 16 and count.rows == whole + part and 8 < part < 16


@pytest.mark.parametrize("start", [torch.zeros(1, 4, 8, 8), image()["samples"] / 5], ids=["empty latent", "some latent"])
def test_noise_and_noisy_latent_serve_a_stock_sampler(model, start):
    inversion, latent, noise, sigmas = ddim(model, image())
    wanted = sample(model, inversion)
    assert_close(euler(model, start, noise.generate_noise({"samples": start}), sigmas), wanted, atol=1e-4, rtol=1e-4)
    if model.model.model_type.name != "FLOW":
        assert_close(euler(model, latent["samples"], torch.zeros(1, 4, 8, 8), sigmas), wanted, atol=1e-4, rtol=1e-4)


def dressed(what: str) -> tuple:
    """A model, a latent, a source and a target that cannot share one batch."""
    if what == "guidance":
        model, clip = tiny_text.denoiser("flux"), tiny_text.clip("flux")
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "a dog")]
        guided = [node_helpers.conditioning_set_values(c, {"guidance": g}) for c, g in zip(prompts, (1.0, 3.5))]
        return model, image(2, 16), *guided
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    control = nodes.ControlNetApply().apply_controlnet(TARGET, tiny.controlnet(), hint, 0.5)[0]
    targets = {"control": control, "parts": TARGET + EMPTY, "tokens": tiny.conditioning(4, tokens=154)}
    return tiny.unet("eps", output_scale=0.05), image(2), SOURCE, targets[what]  # which the ControlNet fits


@pytest.mark.parametrize("what", ["guidance", "control", "parts", "tokens"])
def test_each_branch_keeps_what_belongs_to_its_own_conditioning(what):
    model, latent, source, target = dressed(what)
    inversion = ddim(model, latent, 3, source=source)[0]
    alone = torch.cat([sample(model, inversion, positive=c) for c in (source, target)])
    assert_close(sample(model, inversion, 1.0, "source and edit", positive=target), alone, atol=1e-4, rtol=1e-4)
    assert_close(sample(model, inversion, 1.0, "direct", positive=target), torch.cat([latent["samples"], alone[2:]]), atol=1e-4, rtol=1e-4)
    plain = node_helpers.conditioning_set_values(source, {k: v for k, v in target[0][1].items() if k != "pooled_output"})
    assert what in ("parts", "tokens") or apart(sample(model, inversion, positive=plain), alone[:2]) > 1e-3


@pytest.mark.parametrize("name", ON_MARKED)
def test_attention_nodes_on_the_target_leave_the_source_alone(clip, name):
    model, source = smooth("eps"), encoded(clip, "a blue circle")
    inversion = ddim(model, image(), 2, source=source)[0]
    patched, target = ON_MARKED[name](model, clip)
    alone = torch.cat([sample(model, inversion), sample(patched, inversion, positive=target)])
    assert_close(sample(patched, inversion, 1.0, "source and edit", positive=target), alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="source and target differ in what attention nodes do, and each is predicted separately"):
        sample(patched, inversion, 1.0, "direct", positive=target, value_end=0.5)


def test_every_image_may_have_a_target_of_its_own():
    model, latent = smooth("v"), image(2)
    inversion, target = ddim(model, latent, 4)[0], [[torch.cat([tiny.conditioning(i)[0][0] for i in (4, 5)]), {}]]
    edit, own = sample(model, inversion, positive=target), sample(model, inversion)
    for branches, source in (("source and edit", own), ("direct", latent["samples"])):
        assert_close(sample(model, inversion, 1.0, branches, positive=target), torch.cat([source, edit]), atol=1e-4, rtol=1e-4)


def test_marked_rows_are_branches():
    """As P2P Attention Patch marks them: the source's rows, then those of each target."""
    model, latent = smooth("v"), image(2)
    inversion, other = ddim(model, latent, 4)[0], tiny.conditioning(4)
    rows = torch.cat([c[0][0].expand(2, -1, -1) for c in (SOURCE, TARGET, other)])
    alone = [sample(model, inversion, positive=c) for c in (SOURCE, TARGET, other)]
    together = sample(model, inversion, 1.0, "source and edit", positive=marked([[rows, {}]], "token", 3))
    assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    for wrong in ([[rows, {}]], marked([[rows, {}]], "token", 2), marked([[rows[:2], {}]], "token", 2)):
        with pytest.raises(ValueError, match=r"but 2 images were inverted; .* this inversion at the input 'latent'"):
            sample(model, inversion, 1.0, "direct", positive=wrong)
    with pytest.raises(ValueError, match="need branches 'direct' or 'source and edit'"):
        sample(model, inversion, positive=marked([[rows, {}]], "token", 3))


@pytest.mark.parametrize("images, rows, branches", [(3, 2, "direct"), (3, 2, "edit"), (1, 2, "edit"), (2, 4, "edit"), (2, 3, "direct")])
def test_rows_for_other_images_are_refused(images, rows, branches):
    model = smooth("eps")
    inversion, target = ddim(model, image(images), 2)[0], [[TARGET[0][0].repeat(rows, 1, 1), {}]]
    with pytest.raises(ValueError, match=f"positive has {rows} rows, but {images} image.* P2P Attention Patch"):
        sample(model, inversion, 1.0, branches, positive=target)


def test_what_does_not_fit_the_inversion_is_refused(model):
    """Another model, guidance without a negative, a conditioning that is not active."""
    with pytest.raises(ValueError, match=r"made with BaseModel .*eps.* but the model is BaseModel .*flow"):
        sample(smooth("flow"), ddim(smooth("eps"), image())[0])
    with pytest.raises(ValueError, match=r"cfg is 7\.5, which needs a negative"):
        sample(model, ddim(model, image())[0], 7.5)
    late = [[SOURCE[0][0], {**SOURCE[0][1], "start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match="positive conditioning is not active at sigma"):
        ddim(model, image(), source=late)


def test_another_noise_schedule_is_refused_where_it_asks_for_other_timesteps():
    """A shift only chooses other sigmas; those of an inversion are its own."""
    plain, zero = smooth("v"), ModelSamplingDiscrete().patch(smooth("v"), "v_prediction", zsnr=True)[0]
    for one, other in ((plain, zero), (zero, plain)):
        with pytest.raises(ValueError, match=r"made with BaseModel \(SD15, v\) under another noise schedule: at its sigma .* got timestep \d+ and its input"):
            sample(other, ddim(one, image())[0])
    flow, shifted = smooth("flow"), ModelSamplingSD3().patch(smooth("flow"), 3.0)[0]
    inversion = ddim(flow, image())[0]
    assert torch.equal(sample(shifted, inversion), sample(flow, inversion))
    assert ddim(shifted, image())[0].trajectory.sigmas != inversion.trajectory.sigmas


def test_an_image_is_encoded(vae):
    model, image = smooth("eps"), torch.rand(1, 72, 64, 3, generator=torch.Generator().manual_seed(0))
    inversion = ddim(model, image, 4, vae=vae)[0]
    assert inversion.trajectory.states[-1][0].shape == (1, 4, 9, 8)
    assert_close(inversion.trajectory.states[-1][0], model.model.process_latent_in(vae.encode(image)).float())


@pytest.mark.parametrize("size, near", [((70, 64), "64 x 64"), ((64, 100), "96 x 64"), ((5, 64), "64 x 8")])
def test_a_size_that_the_vae_would_crop_is_refused(vae, size, near):
    with pytest.raises(ValueError, match=rf"'image' is {size[1]} x {size[0]} pixels, but this VAE takes multiples of 8 .* to {near}\."):
        ddim(smooth("eps"), torch.zeros(1, *size, 3), vae=vae)


def test_the_direct_source_is_the_pivot_at_every_step():
    model, seen = smooth("eps"), []
    inversion = ddim(model, image())[0]
    sample(watched(model, lambda args: seen.append(args["input"][:1].clone())), inversion, 1.0, "direct", positive=TARGET)
    assert len(seen) == 8 and all(torch.equal(x, state[0]) for x, state in zip(seen, inversion.trajectory.states))


def test_aligned_the_image_comes_back_and_edits_are_alike(model):
    count, latent = Count(model), image(2)["samples"]
    inversion = ddim(count.model, {"samples": latent})[0]
    assert apart(sample(model, inversion, align=True), latent) < apart(sample(model, inversion), latent) / 20
    before, edit = count.rows, sample(count.model, inversion, 4.0, align=True, **EDIT)
    assert count.rows - before == 2 * 16 and apart(edit, sample(model, inversion, 4.0, **EDIT)) > 1e-4
    assert_close(sample(model, inversion, 4.0, "direct", align=True, **EDIT), torch.cat([latent, edit]), atol=1e-3, rtol=1e-3)


def test_an_inversion_that_cannot_be_aligned_is_refused_at_once():
    count = Count(smooth("eps"))
    inversion = invert("bdia", count.model, steps=2)[0]
    before = count.rows
    with pytest.raises(ValueError, match="an inversion by 'bdia' cannot be aligned"):
        sample(count.model, inversion, align=True)
    assert count.rows == before


def test_video_latents_are_aligned_and_edited_by_region():
    model, latent = tiny_video_model(), torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    source, target = (video_conditioning(i) for i in (1, 2))
    inversion = invert("negative-prompt", model, {"samples": latent}, source, steps=2, guidance="Uni-Edit")[0]
    assert apart(sample(model, inversion, 5.0, align=True), latent) < 1e-4
    assert apart(sample(model, inversion, 5.0, align=True, positive=target), latent) > 1e-3


OPTIONS = [*(dict(fixed_point_iterations=10, acceleration=a) for a in ("picard", "anderson")), dict(fixed_point_iterations=10, order=2)]


@pytest.mark.parametrize("options, gain", zip(OPTIONS, (100, 500, 500)), ids=["picard", "anderson", "midpoint"])
def test_fixed_point_iterations_bring_the_image_back(model, options, gain):
    latent, order = image(), options.get("order", 1)
    plain, near = (apart(sample(model, ddim(model, latent, 12, **o)[0]), latent["samples"]) for o in (dict(order=order), options))
    assert near < max(plain / gain, 2e-6)


def test_midpoint_steps_beat_as_many_evaluations_of_ddim(model):
    latent = image()
    one, two = (apart(sample(model, ddim(model, latent, n, order=o)[0]), latent["samples"]) for n, o in ((20, 1), (10, 2)))
    assert two < one / 2


def test_evaluations_of_the_options_are_counted(model):
    for options, up, down in ((dict(order=2), 12, 12), (dict(fixed_point_iterations=3, tolerance=0.0), 24, 6)):
        count = Count(model)
        inversion = ddim(count.model, image(), 6, **options)[0]
        converged = 0 if "order" in options else 2  # steps that may end earlier, where nothing changes any more to the last bit
        taken = count.rows
        assert taken == inversion.evaluations and up - converged <= taken <= up
        sample(count.model, inversion)
        assert count.rows == taken + down
    loose = ddim(model, image(), 6, fixed_point_iterations=10, tolerance=0.05)[0]
    assert loose.evaluations < 6 * 11


def test_without_options_the_result_is_that_of_ddim(model):
    a, b = (ddim(model, image(), **o)[0].trajectory for o in ({}, dict(order=1, fixed_point_iterations=0, acceleration="picard")))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a.states, b.states)) and b.extras == {}
