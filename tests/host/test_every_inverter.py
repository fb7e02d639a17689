"""What holds for every inverter in the real ComfyUI, whatever its method, and with LoRA and ControlNet on the model."""

import gc
import weakref

import comfy.model_management
import comfy.samplers
import comfy.sd
import nodes
import pytest
import torch

from compare import assert_close
from host import tiny
from host.inversions import EDIT, EMPTY, SOURCE, apart, flow_edit, half_mask, image, interrupting, invert, sample, smooth
from host.sampling import run

pytestmark = pytest.mark.usefixtures("inference_mode")
SETTINGS = {
    "ddim fixed point": dict(fixed_point_iterations=4, acceleration="anderson", steps=4),
    "ddim midpoint": dict(fixed_point_iterations=3, order=2, steps=4),
    "edit-friendly": dict(cfg=3.5, steps=4),
    "null-text": dict(cfg=5.0, inner_steps=1, early_stop=0.0, steps=3),
    "negative-prompt": dict(guidance="Uni-Edit", steps=4),
}
CASES = [
    *((name, family) for name in ("ddim", "ddim fixed point", "ddim midpoint", "edit-friendly") for family in ("eps", "v", "flow")),
    *(("edict", "eps"), ("bdia", "v"), ("o-belm", "flow"), ("rf-inversion", "flow"), ("null-text", "v"), ("negative-prompt", "v")),
]


def encode(name: str, model, latent=None, **more):
    return invert(name.split(" ", maxsplit=1)[0], model, latent, **SETTINGS.get(name, {}) | more)[0]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    """The name of a method and a model of a family."""
    return request.param[0], smooth(request.param[1])


def test_a_batch_is_its_images(case):
    name, model = case
    latent = image(2)
    together, alone = encode(name, model, latent), [encode(name, model, {"samples": x[None]}) for x in latent["samples"]]
    for cfg in (1.0, 4.0):
        assert_close(sample(model, together, cfg, **EDIT), torch.cat([sample(model, i, cfg, **EDIT) for i in alone]), atol=2e-3, rtol=2e-3)
    if "residuals" in together.trajectory.extras:
        residuals = torch.cat([i.trajectory.extras["residuals"] for i in alone], 1)
        assert_close(together.trajectory.extras["residuals"], residuals, atol=1e-5, rtol=0.5)


def test_nothing_keeps_the_model_after_an_edit(case):
    """No circle of references; see the same test of the trainers."""
    name, model = case
    gc.collect()
    gc.disable()
    try:
        own = model.clone()
        gone = weakref.ref(own)
        inversion = encode(name, own)
        sample(own, inversion, 4.0, **EDIT)
        del own, inversion
        assert gone() is None
    finally:
        gc.enable()


def test_runs_repeat_and_the_model_is_unchanged(case):
    name, model = case
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    before, first = run(guider), encode(name, model)
    edit, again = sample(model, first, 4.0, **EDIT), encode(name, model)
    assert all(torch.equal(a, b) for one, two in zip(first.trajectory.states, again.trajectory.states) for a, b in zip(one, two))
    assert torch.equal(sample(model, again, 4.0, **EDIT), edit)
    assert torch.equal(run(guider), before)


def test_outside_the_mask_the_image_is_kept(case):
    name, model = case
    latent = image(2)
    edited = sample(model, encode(name, model, latent), 5.0, mask=half_mask(), **EDIT)
    assert_close(edited[..., 4:], latent["samples"][..., 4:], atol=1e-5, rtol=1e-5)
    assert apart(edited[..., :4], latent["samples"][..., :4]) > 1e-3


def test_two_branches_are_the_source_and_the_edit(case):
    name, model = case
    latent = image(2)
    inversion = encode(name, model, latent)
    edit, own = sample(model, inversion, 5.0, **EDIT), sample(model, inversion, 5.0, negative=EMPTY)
    both, direct = (sample(model, inversion, 5.0, branches, **EDIT) for branches in ("source and edit", "direct"))
    assert_close(both, torch.cat([own, edit]), atol=1e-3, rtol=1e-3)
    assert_close(direct, torch.cat([latent["samples"], edit]), atol=1e-3, rtol=1e-3)
    assert_close(direct[:2], latent["samples"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("call", [1, 3])
def test_cancelled_it_stops_within_the_evaluation(case, call):
    name, model = case
    model, calls = interrupting(model, call)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        encode(name, model)
    assert len(calls) == call


def controlled(positive, negative):
    """Both under a ControlNet."""
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, tiny.controlnet(), hint, 0.2, 0.0, 1.0)


WITH_LORA = [
    ("ddim", "v", 1.0, dict(fixed_point_iterations=8)),
    *(("edict", "eps", 3.0, {}), ("bdia", "v", 3.0, {}), ("o-belm", "flow", 3.0, {}), ("edit-friendly", "eps", 3.0, dict(skip=0.2))),
]


@pytest.mark.parametrize("name, family, cfg, settings", WITH_LORA)
def test_the_image_comes_back_under_lora_and_controlnet(name, family, cfg, settings):
    model = tiny.unet(family, output_scale=0.05)
    assert next(model.model.diffusion_model.parameters()).is_inference()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    before, (source, negative) = run(guider), controlled(SOURCE, EMPTY)
    patched = comfy.sd.load_lora_for_models(model, None, tiny.lora(model), 1.0, 0)[0]
    guided = {} if cfg == 1.0 else dict(cfg=cfg, negative=negative)
    inversion = invert(name, patched, image(), source, steps=4, **guided, **settings)[0]

    def lost(model=patched, **prompts) -> float:
        prompts = dict(positive=source, negative=negative) | prompts
        return apart(sample(model, inversion, cfg, **prompts), image()["samples"])

    assert lost() < 1e-5
    assert lost(model) > 1e-4 and lost(positive=SOURCE, negative=EMPTY) > 1e-4, "LoRA or ControlNet does nothing"
    assert torch.equal(run(guider), before)


WIDE = [[torch.zeros(1, 77, 96), {}]]
PIXELS = torch.rand(1, 64, 64, 3)
BAD = [
    *((name, dict(latent=PIXELS), "'image' is an IMAGE, which needs the vae") for name in ("ddim", "edit-friendly")),
    *((name, dict(cfg=3.0, negative=WIDE), "negative has text features of width 96") for name in ("edict", "bdia", "o-belm", "null-text")),
    *((name, dict(cfg=3.5, negative=None), r"cfg is 3\.5, which needs a negative conditioning") for name in ("edict", "edit-friendly")),
    ("ddim", dict(latent=image(channels=16)), r"has 16 channels, but BaseModel \(SD15, flow\) takes 4: another model's VAE made it"),
    ("ddim", dict(order=3), "order is 3; give 1"),
    ("edict", dict(p=0.0), r"p is 0; give more than 0, up to 1, usually 0\.93"),
    ("edict", dict(p=0.5, steps=50), r"p is 0\.5, .* For 50 steps give 0\.892 to 1"),
    ("edict", dict(rescale=False, steps=200), r"p is 0\.93, .* For 200 steps give 0\.972 to 1, .* switch rescale on"),
    ("bdia", dict(gamma=0.0), "gamma is 0, which is DDIM and has no exact inverse"),
    ("bdia", dict(gamma=0.5, steps=50), r"gamma is 0\.5, .* For 50 steps give 0\.832 to 1"),
    *((name, dict(steps=1), "There is 1 step, but a method over three levels needs 2 or more") for name in ("bdia", "o-belm")),
    (
        "o-belm",
        dict(scheduler="linear_quadratic", steps=30, precision="float32", family="eps"),
        "Choose precision float64, or a scheduler like karras",
    ),
    ("rf-inversion", dict(gamma=1.5), r"gamma is 1\.5; give 0"),
    ("rf-inversion", dict(eta=2.0), "eta is 2; give 0"),
    (
        "rf-inversion",
        dict(eta_start_percent=0.6, eta_end_percent=0.2),
        r"eta_start_percent is 0\.6 and eta_end_percent 0\.2; give the start the smaller",
    ),
    ("null-text", dict(cfg=1.0), "cfg is 1: without guidance the negative has no effect, so there is nothing to optimize"),
    ("null-text", dict(start="empty"), "start is 'empty', which needs the negative"),
    ("null-text", dict(source=SOURCE * 2), "The source has 2 parts, but an embedding can start from one alone"),
    ("null-text", dict(start="empty", negative=EMPTY * 2), "The negative has 2 parts"),
    *(("null-text", {term: 1.0}, "needs the vae") for term in ("l1", "perceptual")),
    ("negative-prompt", dict(interpolation=0.5), "interpolation is 0.5, which needs the negative"),
    ("negative-prompt", dict(interpolation=0.5, negative=tiny.conditioning(3, tokens=154)), "77 and 154 tokens"),
    ("negative-prompt", dict(interpolation=0.5, negative=EMPTY * 2), "have 1 and 2 parts"),
    ("flow-edit", dict(n_max=33), "n_max is 33 and n_min 0; give shares of the steps"),
    ("flow-edit", dict(n_min=0.8), "n_max is 0.666667 and n_min 0.8"),
    ("flow-edit", dict(n_avg=0), "n_avg is 0; give 1"),
    ("flow-edit", dict(latent=PIXELS), "'image' is an IMAGE, which needs the vae"),
    ("flow-edit", dict(latent={"samples": torch.zeros(1, 4, 64)}), "'image' is a latent of 1 x 4 x 64, but that of images or a video"),
    ("flow-edit", dict(latent=image(channels=16)), "has 16 channels, but BaseModel"),
]


@pytest.mark.parametrize("name, settings, message", BAD)
def test_bad_input_is_refused_with_what_to_do(name, settings, message):
    settings = dict(settings)
    model = smooth(settings.pop("family", "flow"))
    with pytest.raises(ValueError, match=message):
        flow_edit(model, **settings) if name == "flow-edit" else invert(name, model, **settings)
