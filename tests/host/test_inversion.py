"""Inversions inside the real host: what all inverters and the Inversion Sampler share."""

import comfy.sample
import comfy.samplers
import node_helpers
import nodes
import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.inversion import InversionSampler

from compare import assert_close
from host import tiny, tiny_text
from host.sampling import Count

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, TARGET, EMPTY = (tiny.conditioning(i) for i in (1, 2, 3))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(family: str):
    """A tiny random model that is tame enough for trajectories; of one level, which takes half the time."""
    return tiny.unet(family, output_scale=0.05, **tiny.ONE_LEVEL)


@pytest.fixture(params=["eps", "v", "flow"])
def model(request):
    return smooth(request.param)


def image(batch: int = 1, *size: int) -> dict:
    return {"samples": 5 * draw(batch, 4, *(size or (8, 8)))}  # the spread of real latents


def invert(model, latent, steps=8, scheduler="normal", end_percent=0.0, source=SOURCE, **options):
    return DDIMInverter.execute(model, source, latent, steps, scheduler, end_percent, **options).args


def sample(model, inversion, cfg=1.0, branches="edit", **inputs):
    return InversionSampler.execute(model, inversion, cfg, branches, **inputs).args[0]["samples"]


def apart(a, b) -> float:
    return float((a - b).norm() / b.norm())


def test_the_way_back_gives_the_image_nearly_and_nearer_with_more_steps(model):
    latent = image()
    errors = [apart(sample(model, invert(model, latent, steps)[0]), latent["samples"]) for steps in (5, 40)]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.05


def test_the_trail_starts_at_ksamplers_first_sigma_and_ends_at_the_image(model):
    latent = image()
    inversion, *_, sigmas = invert(model, latent)
    assert_close(sigmas, comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 8))
    assert_close(inversion.trajectory.states[-1][0], model.model.process_latent_in(latent["samples"]))


def test_an_inversion_up_to_a_percent_starts_at_its_sigma_and_keeps_the_steps(model):
    inversion = invert(model, image(), end_percent=0.5)[0]
    scale = noise_levels.noise_scale(model)
    assert inversion.trajectory.sigmas[0] == pytest.approx(scale.sigma(0.5)) and inversion.trajectory.steps == 8


def test_each_step_evaluates_once_without_guidance_and_twice_with(model):
    count = Count(model)
    inversion = invert(count.model, image())[0]
    assert count.rows == inversion.evaluations == 8
    sample(count.model, inversion, 4.0, positive=TARGET, negative=EMPTY)
    assert count.rows == 8 + 16


def test_every_part_of_a_combined_conditioning_counts_where_it_is_active():
    count, late = Count(smooth("eps")), [[TARGET[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    whole, part = (invert(count.model, image(), source=SOURCE + more)[0].evaluations for more in (TARGET, late))
    assert whole == 16 and count.rows == whole + part and 8 < part < 16


def test_a_batch_is_its_images_one_by_one(model):
    latent = image(3)
    together = sample(model, invert(model, latent)[0], 3.0, positive=TARGET, negative=EMPTY)
    alone = [sample(model, invert(model, {"samples": x[None]})[0], 3.0, positive=TARGET, negative=EMPTY) for x in latent["samples"]]
    assert_close(together, torch.cat(alone), atol=1e-3, rtol=1e-3)


def test_two_inversions_in_a_row_are_the_same_and_the_model_is_as_before(model):
    latent, noise = image(), draw(1, 4, 8, 8, seed=5)

    def predicted():
        return comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", SOURCE, EMPTY, latent["samples"], disable_pbar=True, seed=1)

    before, first = predicted(), invert(model, latent)[0]
    sample(model, first, 4.0, positive=TARGET, negative=EMPTY)
    second = invert(model, latent)[0]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first.trajectory.states, second.trajectory.states))
    assert torch.equal(before, predicted())


@pytest.mark.parametrize("start", [torch.zeros(1, 4, 8, 8), draw(1, 4, 8, 8, seed=9)], ids=["empty latent", "some latent"])
def test_the_noise_brings_the_start_into_a_stock_sampler_whatever_its_latent_is(model, start):
    inversion, _, noise, sigmas = invert(model, image())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    result = guider.sample(
        noise.generate_noise({"samples": start}), start, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0
    )
    assert_close(result, sample(model, inversion), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["eps", "v"])
def test_the_noisy_latent_does_so_without_added_noise(family):
    model = smooth(family)
    inversion, latent, _, sigmas = invert(model, image())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    start = latent["samples"]
    result = guider.sample(torch.zeros_like(start), start, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    assert_close(result, sample(model, inversion), atol=1e-4, rtol=1e-4)


def test_the_direct_source_is_the_image_and_the_edit_is_as_without_it(model):
    latent = image(2)
    inversion = invert(model, latent)[0]
    options = dict(positive=TARGET, negative=EMPTY)
    edit = sample(model, inversion, 7.5, **options)
    both = sample(model, inversion, 7.5, "direct", **options)
    assert both.shape[0] == 4
    assert_close(both[:2], latent["samples"], atol=1e-6, rtol=1e-6)
    assert_close(both[2:], edit, atol=1e-3, rtol=1e-3)


def test_the_source_branch_is_the_replay_under_the_source(model):
    inversion = invert(model, image())[0]
    both = sample(model, inversion, 3.0, "source and edit", positive=TARGET, negative=EMPTY)
    assert_close(both[:1], sample(model, inversion, 3.0, negative=EMPTY), atol=1e-4, rtol=1e-4)
    assert_close(both[1:], sample(model, inversion, 3.0, positive=TARGET, negative=EMPTY), atol=1e-4, rtol=1e-4)


def dressed(what: str) -> tuple:
    """A model, a latent, a source and a target that cannot share one batch."""
    if what == "guidance":
        model, clip = tiny_text.denoiser("flux"), tiny_text.clip("flux")
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "a dog")]
        guided = [node_helpers.conditioning_set_values(c, {"guidance": g}) for c, g in zip(prompts, (1.0, 3.5))]
        return model, {"samples": draw(2, 16, 8, 8)}, *guided
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    targets = {
        "control": nodes.ControlNetApply().apply_controlnet(TARGET, tiny.controlnet(), hint, 0.5)[0],
        "parts": TARGET + EMPTY,
        "tokens": tiny.conditioning(4, tokens=154),
    }
    return tiny.unet("eps", output_scale=0.05), image(2), SOURCE, targets[what]  # which the ControlNet fits


@pytest.mark.parametrize("what", ["guidance", "control", "parts", "tokens"])
def test_each_branch_keeps_what_belongs_to_its_own_conditioning(what):
    model, latent, source, target = dressed(what)
    inversion = invert(model, latent, 3, source=source)[0]
    alone = torch.cat([sample(model, inversion, positive=c) for c in (source, target)])
    assert_close(sample(model, inversion, 1.0, "source and edit", positive=target), alone, atol=1e-4, rtol=1e-4)
    assert_close(sample(model, inversion, 1.0, "direct", positive=target), torch.cat([latent["samples"], alone[2:]]), atol=1e-4, rtol=1e-4)
    plain = node_helpers.conditioning_set_values(source, {k: v for k, v in target[0][1].items() if k != "pooled_output"})
    assert what in ("parts", "tokens") or apart(sample(model, inversion, positive=plain), alone[:2]) > 1e-3


def test_every_image_may_have_a_target_of_its_own():
    model, latent = smooth("v"), image(2)
    inversion, target = invert(model, latent, 4)[0], [[torch.cat([tiny.conditioning(i)[0][0] for i in (4, 5)]), {}]]
    edit = sample(model, inversion, positive=target)
    both = sample(model, inversion, 1.0, "source and edit", positive=target)
    assert_close(both, torch.cat([sample(model, inversion), edit]), atol=1e-4, rtol=1e-4)
    direct = sample(model, inversion, 1.0, "direct", positive=target)
    assert_close(direct, torch.cat([latent["samples"], edit]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("images, rows, branches", [(3, 2, "direct"), (3, 2, "edit"), (1, 2, "edit"), (2, 4, "edit"), (2, 3, "direct")])
def test_rows_for_other_images_are_refused(images, rows, branches):
    model = smooth("eps")
    inversion, target = invert(model, image(images), 2)[0], [[TARGET[0][0].repeat(rows, 1, 1), {}]]
    with pytest.raises(ValueError, match=f"positive has {rows} rows, but {images} image.* P2P Attention Patch"):
        sample(model, inversion, 1.0, branches, positive=target)


def test_what_lies_off_the_mask_is_the_image(model):
    latent, mask = image(2), torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    edited = sample(model, invert(model, latent)[0], 5.0, positive=TARGET, negative=EMPTY, mask=mask)
    assert_close(edited[:, :, 4:], latent["samples"][:, :, 4:], atol=1e-6, rtol=1e-6)
    assert apart(edited[:, :, :4], latent["samples"][:, :, :4]) > 0.01


def test_an_inversion_of_another_model_is_refused():
    inversion = invert(smooth("eps"), image())[0]
    with pytest.raises(ValueError, match=r"made with BaseModel .*eps.* but the model is BaseModel .*flow"):
        sample(smooth("flow"), inversion)


def test_guidance_without_a_negative_is_refused(model):
    with pytest.raises(ValueError, match=r"cfg is 7\.5, which needs a negative"):
        sample(model, invert(model, image())[0], 7.5)


def test_an_image_without_a_vae_is_refused(model):
    with pytest.raises(ValueError, match="'image' is an IMAGE, which needs the vae"):
        invert(model, torch.zeros(1, 64, 64, 3))


def test_a_conditioning_that_is_not_active_is_refused(model):
    late = [[SOURCE[0][0], {**SOURCE[0][1], "start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match="positive conditioning is not active at sigma"):
        invert(model, image(), source=late)


def test_an_image_is_encoded(vae):
    model, image = smooth("eps"), torch.rand(1, 72, 64, 3, generator=torch.Generator().manual_seed(0))
    inversion = invert(model, image, 4, vae=vae)[0]
    assert inversion.trajectory.states[-1][0].shape == (1, 4, 9, 8)
    assert_close(inversion.trajectory.states[-1][0], model.model.process_latent_in(vae.encode(image)).float())


@pytest.mark.parametrize("size, near", [((70, 64), "64 x 64"), ((64, 100), "96 x 64"), ((5, 64), "64 x 8")])
def test_an_image_that_the_vae_would_cut_is_refused_with_a_size_that_fits(vae, size, near):
    with pytest.raises(ValueError, match=rf"'image' is {size[1]} x {size[0]} pixels, but this VAE takes multiples of 8 .* to {near}\."):
        invert(smooth("eps"), torch.zeros(1, *size, 3), vae=vae)


def test_a_latent_of_another_models_vae_is_refused():
    message = r"has 16 channels, but BaseModel \(SD15, eps\) takes 4: another model's VAE made it"
    with pytest.raises(ValueError, match=message):
        invert(smooth("eps"), {"samples": draw(1, 16, 8, 8)})


def test_the_direct_source_stands_on_the_pivot_at_every_step():
    model, seen = smooth("eps"), []
    inversion = invert(model, image())[0]
    spy = model.clone()

    def see(apply_model, args):
        seen.append(args["input"][:1].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    spy.set_model_unet_function_wrapper(see)
    sample(spy, inversion, 1.0, "direct", positive=TARGET)
    assert len(seen) == 8 and all(torch.equal(x, carry[0]) for x, carry in zip(seen, inversion.trajectory.states))


def test_the_method_travels_with_the_inversion(model):
    assert invert(model, image())[0].method == DDIM()




OPTIONS = [
    dict(fixed_point_iterations=10, acceleration="picard"),
    dict(fixed_point_iterations=10, acceleration="anderson"),
    dict(fixed_point_iterations=10, order=2),
]


@pytest.mark.parametrize("options, gain", zip(OPTIONS, (100, 500, 500)), ids=["picard", "anderson", "midpoint"])
def test_fixed_point_iterations_bring_the_image_back(model, options, gain):
    latent, order = image(), options.get("order", 1)
    plain, near = (apart(sample(model, invert(model, latent, 12, **o)[0]), latent["samples"]) for o in (dict(order=order), options))
    assert near < max(plain / gain, 2e-6)


def test_midpoint_steps_come_nearer_than_as_many_evaluations_of_ddim(model):
    latent = image()
    ddim, midpoint = (apart(sample(model, invert(model, latent, n, order=o)[0]), latent["samples"]) for n, o in ((20, 1), (10, 2)))
    assert midpoint < ddim / 2


def test_evaluations_of_the_options_are_counted_on_both_ways(model):
    for options, up, down in ((dict(order=2), 12, 12), (dict(fixed_point_iterations=3, tolerance=0.0), 24, 6)):
        count = Count(model)
        inversion = invert(count.model, image(), 6, **options)[0]
        converged = 0 if "order" in options else 2  # steps that may end earlier, where nothing changes any more to the last bit
        taken = count.rows
        assert taken == inversion.evaluations and up - converged <= taken <= up
        sample(count.model, inversion)
        assert count.rows == taken + down
    loose = invert(model, image(), 6, fixed_point_iterations=10, tolerance=0.05)[0]
    assert loose.evaluations < 6 * 11


@pytest.mark.parametrize("options", OPTIONS[1:], ids=["anderson", "midpoint"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_batch_with_options_is_its_images_one_by_one(model, options, cfg):
    latent, edit = image(2), dict(positive=TARGET, negative=EMPTY)
    together = invert(model, latent, 5, **options)[0]
    alone = [invert(model, {"samples": x[None]}, 5, **options)[0] for x in latent["samples"]]
    assert_close(together.trajectory.extras["residuals"], torch.cat([i.trajectory.extras["residuals"] for i in alone], 1), atol=1e-5, rtol=0.5)
    assert_close(sample(model, together, cfg, **edit), torch.cat([sample(model, i, cfg, **edit) for i in alone]), atol=1e-3, rtol=1e-3)


def test_without_options_the_result_is_that_of_ddim(model):
    a, b = invert(model, image())[0], invert(model, image(), order=1, fixed_point_iterations=0, acceleration="picard")[0]
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a.trajectory.states, b.trajectory.states)) and b.trajectory.extras == {}


def test_the_direct_branch_keeps_the_source_with_residuals_in_the_trail(model):
    latent = image(2)
    both = sample(model, invert(model, latent, 5, **OPTIONS[1])[0], 7.5, "direct", positive=TARGET, negative=EMPTY)
    assert_close(both[:2], latent["samples"], atol=1e-6, rtol=1e-6)


def test_an_order_of_three_is_refused(model):
    with pytest.raises(ValueError, match="order is 3; give 1"):
        invert(model, image(), order=3)
