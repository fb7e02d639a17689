"""The exact inversions in the real ComfyUI: what comes back, and what is warned of."""

import logging

import comfy.samplers
import pytest
import torch
from controlled_diffusion.inversion.method import replay
from controlled_diffusion.nodes.host import sampling
from controlled_diffusion.nodes.host.inversion import exact
from controlled_diffusion.nodes.host.inversion.replay import on_device
from controlled_diffusion.nodes.inputs.checks import with_checks
from controlled_diffusion.nodes.inversion import InversionSampler

from checks import refused
from compare import assert_close
from host import tiny
from host.inversions import EMPTY, TARGET, apart, image, invert, sample, smooth
from host.sampling import Count, families

pytestmark = pytest.mark.usefixtures("inference_mode")
model = families(smooth)


@pytest.fixture(params=["edict", "bdia", "o-belm"])
def method(request):
    return request.param


@pytest.fixture(params=[("edict", "eps"), ("bdia", "v"), ("o-belm", "flow")], ids="-".join)
def pair(request):
    """Each method with one family, where the family makes no difference."""
    method, family = request.param
    return method, smooth(family)


def lost(model, inversion) -> float:
    """The relative latent error of the reconstruction at the inversion's own guidance, in the precision of the states."""

    def loop(guider, derivative, clean, show):
        return replay(inversion.method, derivative, on_device(inversion.trajectory, clean.device), show=show)

    guider = sampling.Guidance(model, inversion.source, inversion.null, inversion.cfg)
    clean, sigmas = inversion.trajectory.states[-1][0], inversion.trajectory.sigmas
    return apart(sampling.run(guider, clean.float(), sigmas, loop, {"back": len(sigmas) - 1}).result.cpu(), clean)


def check_round_trip(method, model, steps, cfg, end_percent=0.0):
    for precision, bound in (("float32", 1e-5), ("float64", 1e-10)):
        found = invert(method, model, steps=steps, cfg=cfg, precision=precision, end_percent=end_percent)[0]
        assert found.trajectory.states[0][0].dtype == getattr(torch, precision)
        assert lost(model, found) < bound, (steps, precision)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_round_trip_is_exact(method, model, cfg):
    check_round_trip(method, model, 10, cfg)
    check_round_trip(method, model, 7, cfg, end_percent=0.3)


def test_networks_in_bfloat16_give_the_image_back(pair):
    """The states keep their own precision. Their noise is another than in float32: what the network rounds grows on the way up."""
    method, model = pair
    model.model.diffusion_model.to(torch.bfloat16).dtype = torch.bfloat16
    found = invert(method, model, steps=10, cfg=3.0)[0]
    assert found.trajectory.states[0][0].dtype == torch.float64 and lost(model, found) < 1e-10


# Any two values of method, family, steps and cfg meet in one of these.
MANY = [
    *[("edict", "eps", 20, 3.0), ("edict", "v", 50, 1.0), ("edict", "flow", 100, 1.0)],
    *[("bdia", "eps", 50, 1.0), ("bdia", "v", 100, 3.0), ("bdia", "flow", 20, 1.0)],
    *[("o-belm", "eps", 100, 1.0), ("o-belm", "v", 20, 1.0), ("o-belm", "flow", 50, 3.0)],
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family", "steps", "cfg"), MANY)
def test_many_steps_are_exact(method, family, steps, cfg):
    check_round_trip(method, smooth(family), steps, cfg)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_is_exact(method, scheduler):
    model = smooth("eps")
    assert lost(model, invert(method, model, steps=9, scheduler=scheduler)[0]) < 1e-10


def test_cfg_and_negative_of_the_inversion_are_needed(method, model):
    latent = image()
    inversion = invert(method, model, latent, cfg=3.0)[0]
    assert (inversion.cfg, inversion.null) == (3.0, EMPTY)
    assert apart(sample(model, inversion, 3.0), latent["samples"]) < 1e-6
    assert apart(sample(model, inversion, 3.0, negative=TARGET), latent["samples"]) > 1e-3
    assert apart(sample(model, inversion, 1.0), latent["samples"]) > 1e-3


def test_a_batch_comes_back_and_another_prompt_is_another_image(pair):
    method, model = pair
    inversion = invert(method, model, image())[0]
    assert apart(sample(model, inversion, positive=TARGET), image()["samples"]) > 1e-3
    assert lost(model, invert(method, model, image(4))[0]) < 1e-10


def test_evaluations_are_counted_and_the_outputs_are_right(method):
    """The noisy latent is the first state."""
    count = Count(smooth("eps"))
    inversion, latent, _, sigmas, *_ = invert(method, count.model, steps=8, cfg=3.0)
    assert count.rows == inversion.evaluations == (32 if method == "edict" else 16)
    sample(count.model, inversion, 3.0)
    assert count.rows - inversion.evaluations == (32 if method == "edict" else 14)  # the pair of the others holds one step
    assert_close(count.model.model.process_latent_in(latent["samples"]), inversion.trajectory.states[0][0].float())
    assert sigmas.tolist() == pytest.approx(inversion.trajectory.sigmas)


def test_rescale_adapts_the_setting_to_the_steps():
    model = smooth("eps")
    assert invert("edict", model, steps=8)[0].method.p == pytest.approx(0.93 ** (50 / 8))
    assert invert("edict", model, steps=8, rescale=False)[0].method.p == 0.93
    assert invert("bdia", model, steps=8, gamma=0.96)[0].method.gamma == pytest.approx(0.96 ** (50 / 8))
    assert invert("bdia", model, steps=8, rescale=False)[0].method.gamma == 0.94


def test_float64_is_refused_on_devices_without_it():
    model = smooth("eps")
    assert exact.dtype_for(model, "highest") == torch.float64
    model.load_device = torch.device("mps")
    assert exact.dtype_for(model, "highest") == exact.dtype_for(model, "float32") == torch.float32
    with pytest.raises(ValueError, match="precision is float64, which this device"):
        exact.dtype_for(model, "float64")


def test_strong_noise_is_warned_of_and_divergence_refused(caplog):
    """A wild model makes wild noise: the warning says what a user can do."""
    model = smooth("eps")
    with caplog.at_level(logging.WARNING):
        invert("o-belm", model, steps=8)
        assert "The noise" not in caplog.text
        found = invert("edict", tiny.unet("eps", output_scale=60.0), steps=4)[0]
    assert "The noise that edict found is" in caplog.text and "choose the scheduler karras" in caplog.text
    assert exact.drift(model, found) > exact.DRIFT
    with pytest.raises(ValueError, match=r"diverged \(NaN or inf\)"):
        invert("edict", tiny.unet("eps", output_scale=1e38), steps=4)


def test_cfg_minus_one_is_as_the_inversion_was_made():
    model = smooth("eps")
    inversion = invert("edict", model, cfg=3.0, steps=4)[0]
    made = with_checks(InversionSampler).execute(model=model, inversion=inversion, cfg=-1.0, branches="edit")
    assert torch.equal(made.args[0]["samples"], sample(model, inversion, 3.0))
    assert made.ui["text"] == ("cfg 3, as the inversion was made",)
    refused("^cfg is -0.5; give a finite number from 0 to 100, or -1 for auto.$", with_checks(InversionSampler).execute, model=model,
            inversion=inversion, cfg=-0.5, branches="edit")  # fmt: skip
