"""The exact inversions inside the real host: what comes back, and what is refused."""

import logging

import comfy.samplers
import pytest
import torch
from controlled_diffusion.inversion.method import replay
from controlled_diffusion.nodes.bdia import BDIAInverter
from controlled_diffusion.nodes.belm import BELMInverter
from controlled_diffusion.nodes.edict import EDICTInverter
from controlled_diffusion.nodes.host import sampling
from controlled_diffusion.nodes.host.inversion import exact
from controlled_diffusion.nodes.host.inversion.replay import _on
from controlled_diffusion.nodes.inversion import InversionSampler

from compare import assert_close
from host import tiny
from host.sampling import Count

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, TARGET, EMPTY = (tiny.conditioning(i) for i in (1, 2, 3))
NODES = {"edict": EDICTInverter, "bdia": BDIAInverter, "o-belm": BELMInverter}
SETTINGS = {"edict": dict(p=0.93, rescale=True), "bdia": dict(gamma=0.96, rescale=True), "o-belm": {}}


def smooth(family: str):
    """A tiny random model that is tame enough for trajectories; of one level, which takes half the time."""
    return tiny.unet(family, output_scale=0.05, **tiny.ONE_LEVEL)


@pytest.fixture(params=["eps", "v", "flow"])
def model(request):
    return smooth(request.param)


@pytest.fixture(params=list(NODES))
def method(request):
    return request.param


@pytest.fixture(params=[("edict", "eps"), ("bdia", "v"), ("o-belm", "flow")], ids="-".join)
def pair(request):
    """Each method with one family, where the family makes no difference."""
    method, family = request.param
    return method, smooth(family)


def image(batch: int = 1) -> dict:
    return {"samples": 5 * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))}  # the spread of real latents


def invert(method, model, latent, steps=8, cfg=1.0, precision="highest", scheduler="normal", end_percent=0.0, source=SOURCE, **settings):
    negative = settings.pop("negative", None if cfg == 1.0 else EMPTY)
    knobs = SETTINGS[method] | settings
    return (
        NODES[method]
        .execute(
            model=model,
            source=source,
            image=latent,
            steps=steps,
            scheduler=scheduler,
            end_percent=end_percent,
            cfg=cfg,
            precision=precision,
            negative=negative,
            **knobs,
        )
        .args
    )


def sample(model, inversion, cfg=1.0, branches="edit", **inputs):
    return InversionSampler.execute(model, inversion, cfg, branches, **inputs).args[0]["samples"]


def apart(a, b) -> float:
    return float((a - b).norm() / b.norm())


def lost(model, inversion) -> float:
    """The relative latent error of the way back at the inversion's own guidance, in the precision of the states."""

    def loop(guider, derivative, clean, show):
        return replay(inversion.method, derivative, _on(inversion.trajectory, clean.device), show=show)

    guider = sampling.Guidance(model, inversion.source, inversion.null, inversion.cfg)
    clean, sigmas = inversion.trajectory.states[-1][0], inversion.trajectory.sigmas
    return apart(sampling.run(guider, clean.float(), sigmas, loop, len(sigmas) - 1).result.cpu(), clean)


def check_round_trip(method, model, steps, cfg, end_percent=0.0):
    for precision, bound in (("float32", 1e-5), ("float64", 1e-10)):
        found = invert(method, model, image(), steps, cfg, precision, end_percent=end_percent)[0]
        assert found.trajectory.states[0][0].dtype == getattr(torch, precision)
        assert lost(model, found) < bound, (steps, precision)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_image_comes_back_to_the_last_digits(method, model, cfg):
    check_round_trip(method, model, 10, cfg)
    check_round_trip(method, model, 7, cfg, end_percent=0.3)


# Any two values of method, family, steps and cfg meet in one of these.
MANY = [
    *[("edict", "eps", 20, 3.0), ("edict", "v", 50, 1.0), ("edict", "flow", 200, 1.0)],
    *[("bdia", "eps", 50, 1.0), ("bdia", "v", 200, 3.0), ("bdia", "flow", 20, 1.0)],
    *[("o-belm", "eps", 200, 1.0), ("o-belm", "v", 20, 1.0), ("o-belm", "flow", 50, 3.0)],
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family", "steps", "cfg"), MANY)
def test_so_it_does_after_many_steps(method, family, steps, cfg):
    check_round_trip(method, smooth(family), steps, cfg)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_so_it_does_with_every_scheduler(method, scheduler):
    model = smooth("eps")
    assert lost(model, invert(method, model, image(), 9, scheduler=scheduler)[0]) < 1e-10


def test_the_sampler_gives_the_image_back_with_the_guidance_and_the_negative_of_the_inversion(method, model):
    latent = image()
    inversion = invert(method, model, latent, cfg=3.0)[0]
    assert (inversion.cfg, inversion.null) == (3.0, EMPTY)
    assert apart(sample(model, inversion, 3.0), latent["samples"]) < 1e-6
    assert apart(sample(model, inversion, 3.0, negative=TARGET), latent["samples"]) > 1e-3
    assert apart(sample(model, inversion, 1.0), latent["samples"]) > 1e-3


def test_another_prompt_makes_another_image(pair):
    method, model = pair
    latent = image()
    inversion = invert(method, model, latent)[0]
    assert apart(sample(model, inversion, positive=TARGET), latent["samples"]) > 1e-3


def test_evaluations_are_counted_and_shown(method):
    count = Count(smooth("eps"))
    inversion = invert(method, count.model, image(), 8, cfg=3.0)[0]
    assert count.rows == inversion.evaluations == (32 if method == "edict" else 16)
    sample(count.model, inversion, 3.0)
    assert count.rows - inversion.evaluations == (32 if method == "edict" else 14)  # the pair of the others holds one step


def test_a_batch_is_its_images_one_by_one(pair):
    method, model = pair
    latent = image(4)
    options = dict(positive=TARGET, negative=EMPTY)
    together = sample(model, invert(method, model, latent)[0], 3.0, **options)
    alone = [sample(model, invert(method, model, {"samples": x[None]})[0], 3.0, **options) for x in latent["samples"]]
    assert_close(together, torch.cat(alone), atol=1e-3, rtol=1e-3)


def test_a_batch_comes_back_too(pair):
    method, model = pair
    assert lost(model, invert(method, model, image(4))[0]) < 1e-10


def test_two_inversions_in_a_row_are_the_same(method):
    model = smooth("v")
    first, again = (invert(method, model, image(), cfg=3.0)[0] for _ in range(2))
    assert all(torch.equal(a, b) for one, two in zip(first.trajectory.states, again.trajectory.states) for a, b in zip(one, two))
    assert torch.equal(sample(model, first, 3.0), sample(model, again, 3.0))


def test_what_lies_off_the_mask_is_the_image(pair):
    method, model = pair
    latent, mask = image(2), torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    edited = sample(model, invert(method, model, latent)[0], 5.0, positive=TARGET, negative=EMPTY, mask=mask)
    assert_close(edited[:, :, 4:], latent["samples"][:, :, 4:], atol=1e-6, rtol=1e-6)
    assert apart(edited[:, :, :4], latent["samples"][:, :, :4]) > 1e-3


def test_the_direct_source_is_the_image_and_the_edit_is_as_without_it(pair):
    method, model = pair
    latent = image(2)
    inversion, options = invert(method, model, latent)[0], dict(positive=TARGET, negative=EMPTY)
    both = sample(model, inversion, 5.0, "direct", **options)
    assert_close(both[:2], latent["samples"], atol=1e-6, rtol=1e-6)
    assert_close(both[2:], sample(model, inversion, 5.0, **options), atol=1e-3, rtol=1e-3)


def test_the_method_travels_with_the_settings_that_its_steps_need():
    model = smooth("eps")
    assert invert("edict", model, image(), 8)[0].method.p == pytest.approx(0.93 ** (50 / 8))
    assert invert("edict", model, image(), 8, rescale=False)[0].method.p == 0.93
    assert invert("bdia", model, image(), 8)[0].method.gamma == pytest.approx(0.96 ** (50 / 8))
    assert invert("bdia", model, image(), 8, rescale=False)[0].method.gamma == 0.96


def test_the_noise_of_the_outputs_is_the_first_state_of_the_pair(method):
    model = smooth("eps")
    inversion, latent, _, sigmas = invert(method, model, image())
    assert_close(model.model.process_latent_in(latent["samples"]), inversion.trajectory.states[0][0].float())
    assert sigmas.tolist() == pytest.approx(inversion.trajectory.sigmas)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("edict", dict(p=0.0), r"p is 0; give more than 0, up to 1, usually 0\.93"),
        ("edict", dict(p=0.5, steps=50), r"p is 0\.5, .* For 50 steps give 0\.892 to 1"),
        ("edict", dict(p=0.93, rescale=False, steps=200), r"p is 0\.93, .* For 200 steps give 0\.972 to 1, .* switch rescale on"),
        ("bdia", dict(gamma=0.0), "gamma is 0, which is DDIM and has no exact inverse"),
        ("bdia", dict(gamma=0.5, steps=50), r"gamma is 0\.5, .* For 50 steps give 0\.832 to 1"),
        ("bdia", dict(steps=1), "There is 1 step, but a method over three levels needs 2 or more"),
        ("o-belm", dict(steps=1), "There is 1 step, but a method over three levels needs 2 or more"),
        (
            "o-belm",
            dict(scheduler="linear_quadratic", steps=30, precision="float32"),
            "Choose precision float64, or a scheduler like karras",
        ),
        ("edict", dict(cfg=3.0, negative=None), "cfg is 3, which needs a negative conditioning"),
        ("edict", dict(end_percent=1.0), "end_percent is 1.0; give 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_next_step(method, settings, message):
    with pytest.raises(ValueError, match=message):
        invert(method, smooth("eps"), image(), **settings)


def test_a_conditioning_of_another_model_is_refused(method):
    wide = [[torch.zeros(1, 77, 96), {}]]
    with pytest.raises(ValueError, match="negative has text features of width 96"):
        invert(method, smooth("eps"), image(), cfg=3.0, negative=wide)


def test_float64_is_refused_where_the_device_has_none_and_highest_falls_back():
    model = smooth("eps")
    assert exact.dtype_for(model, "highest") == torch.float64
    model.load_device = torch.device("mps")
    assert exact.dtype_for(model, "highest") == exact.dtype_for(model, "float32") == torch.float32
    with pytest.raises(ValueError, match="precision is float64, which this device"):
        exact.dtype_for(model, "float64")


def test_noise_that_is_none_is_told_and_numbers_that_are_none_refused(caplog):
    """A wild model makes wild noise: what is told is what a user can act on."""
    model = smooth("eps")
    with caplog.at_level(logging.WARNING):
        invert("o-belm", model, image())
        assert not caplog.records
        found = invert("edict", tiny.unet("eps", output_scale=60.0), image(), 4)[0]
    assert "The noise that edict found is" in caplog.text and "choose the scheduler karras" in caplog.text
    assert exact.drift(model, found) > exact.DRIFT
    with pytest.raises(ValueError, match="ran away to values that are no numbers"):
        invert("edict", tiny.unet("eps", output_scale=1e38), image(), 4)
