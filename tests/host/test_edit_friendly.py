"""Edit-friendly inversion inside the real host."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from controlled_diffusion.nodes.edit_friendly import EditFriendlyInverter
from controlled_diffusion.nodes.inversion import InversionSampler

from compare import assert_close
from host import tiny
from host.sampling import Count
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, TARGET, EMPTY = (tiny.conditioning(i) for i in (1, 2, 3))
STEPS = 6


@pytest.fixture(params=["eps", "v", "flow"])
def model(request):
    return tiny.unet(request.param, output_scale=0.2)


def image(batch: int = 1) -> dict:
    return {"samples": 5 * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))}


def invert(model, given=None, source=SOURCE, negative=EMPTY, **knobs):
    settings = defaults(EditFriendlyInverter) | dict(steps=STEPS, scheduler="normal", skip=0) | knobs
    return EditFriendlyInverter.execute(model, source, image() if given is None else given, negative=negative, **settings).args[0]


def sample(model, inversion, cfg=1.0, branches="edit", **inputs):
    return InversionSampler.execute(model, inversion, cfg, branches, **inputs).args[0]["samples"]


def apart(a, b) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("skip", [0, 2, STEPS - 1])
def test_the_same_prompt_and_cfg_give_the_image_back(model, cfg, skip):
    back = sample(model, invert(model, cfg=cfg, skip=skip), cfg, positive=SOURCE, negative=EMPTY)
    assert apart(back, image()["samples"]) < 1e-6
    assert apart(sample(model, invert(model, cfg=cfg, skip=skip), 7.5, positive=TARGET, negative=EMPTY), back) > 1e-4


def test_without_prompts_the_inversions_own_are_used(model):
    assert apart(sample(model, invert(model, cfg=3.5), 3.5), image()["samples"]) < 1e-6


def test_the_hosts_ancestral_sampler_with_these_noise_maps_gives_the_image_but_for_its_last_step(model):
    """The host as oracle: `euler_ancestral`, handed the noise maps one after the other."""
    inversion = invert(model, cfg=3.5)
    trajectory = inversion.trajectory
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    guider.set_cfg(3.5)
    sampler = comfy.samplers.ksampler("euler_ancestral")
    left = iter(trajectory.extras["noise_maps"])
    sampler.extra_options = {"noise_sampler": lambda sigma, after: next(left)}  # a new one: the host shares its default among all samplers
    start, first = trajectory.states[0][0], torch.tensor(trajectory.sigmas[:1])
    sampling = model.get_model_object("model_sampling")
    gain = sampling.noise_scaling(first, torch.ones(1), torch.zeros(1), True)
    got = guider.sample(start / gain, torch.zeros_like(start), sampler, torch.tensor(trajectory.sigmas), disable_pbar=True, seed=0)
    expected = trajectory.states[-1][0] - trajectory.extras["noise_maps"][-1]  # the host's last step adds nothing
    assert_close(model.model.process_latent_in(got), expected, atol=1e-3, rtol=1e-3)


def test_skip_leaves_out_the_noisiest_steps_and_keeps_the_states_of_the_others(model):
    whole, part = (invert(model, skip=s).trajectory for s in (0, 2))
    assert part.sigmas == whole.sigmas[2:]
    assert_close(part.states[0][0], whole.states[2][0], atol=1e-4, rtol=1e-4)
    assert part.extras["noise_maps"].shape[0] == STEPS - 2


def test_more_skipped_steps_keep_more_of_the_image(model):
    options = dict(positive=TARGET, negative=EMPTY)
    changes = [apart(sample(model, invert(model, skip=s), 5.0, **options), image()["samples"]) for s in (1, 4, 5)]
    assert changes[0] > changes[1] > changes[2]


def test_seeds_differ_and_repeat(model):
    first, again, other = (invert(model, seed=s).trajectory.extras["noise_maps"] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)


def test_a_batch_is_its_images_one_by_one(model):
    given = image(2)
    options = dict(positive=TARGET, negative=EMPTY)
    together = sample(model, invert(model, given, cfg=3.5), 5.0, **options)
    alone = [sample(model, invert(model, {"samples": x[None]}, cfg=3.5), 5.0, **options) for x in given["samples"]]
    assert_close(together, torch.cat(alone), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("branches", ["source and edit", "direct"])
def test_the_source_branch_comes_back_beside_the_edit(model, branches):
    given = image(2)
    both = sample(model, invert(model, given, cfg=3.5), 3.5, branches, positive=TARGET, negative=EMPTY)
    assert both.shape[0] == 4 and apart(both[:2], given["samples"]) < 1e-4
    edit = sample(model, invert(model, given, cfg=3.5), 3.5, positive=TARGET, negative=EMPTY)
    assert_close(both[2:], edit, atol=1e-3, rtol=1e-3)


def test_off_the_mask_the_image_stays(model):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    edited = sample(model, invert(model), 5.0, positive=TARGET, negative=EMPTY, mask=mask)
    assert_close(edited[:, :, 4:], image()["samples"][:, :, 4:], atol=1e-5, rtol=1e-5)
    assert apart(edited[:, :, :4], image()["samples"][:, :, :4]) > 1e-3


def test_evaluations_are_one_a_step_and_two_with_guidance(model):
    for cfg, rows in ((1.0, STEPS - 1), (3.5, 2 * (STEPS - 1))):
        count = Count(model)
        inversion = invert(count.model, cfg=cfg, skip=1)
        assert count.rows == inversion.evaluations == rows
        sample(count.model, inversion, cfg)
        assert count.rows == 2 * rows


def test_video_latents_come_back():
    from host.video import tiny_video_model, video_conditioning

    given = {"samples": torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    model, source = tiny_video_model(), video_conditioning(1)
    inversion = invert(model, given, source, negative=None, steps=3)
    assert inversion.trajectory.extras["noise_maps"].shape == (3, 1, 16, 3, 8, 8)
    assert apart(sample(model, inversion), given["samples"]) < 1e-5


def test_it_stops_within_a_step_when_the_user_cancels(model):
    patched, calls = model.clone(), []

    def cancel(apply_model, args):
        calls.append(1)
        comfy.model_management.interrupt_current_processing()
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched.set_model_unet_function_wrapper(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert(patched)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(skip=STEPS), f"skip is {STEPS} of {STEPS} steps; give 0 .none. to {STEPS - 1}"),
        (dict(cfg=3.5, negative=None), r"cfg is 3\.5, which needs a negative"),
        (dict(source=[]), "source is an empty conditioning"),
        (dict(negative=[]), "negative is an empty conditioning"),
        (dict(given=torch.rand(1, 64, 64, 3)), "'image' is an IMAGE, which needs the vae"),
        (dict(end_percent=1.0), r"end_percent is 1\.0"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(model, knobs, message):
    with pytest.raises(ValueError, match=message):
        invert(model, **knobs)
