"""Negative-prompt inversion in the real ComfyUI."""

from functools import partial

import pytest
import torch

from compare import assert_close
from host import inversions
from host.inversions import EMPTY, SOURCE, TARGET, apart, euler, image, on_positives, smooth
from host.sampling import families

pytestmark = pytest.mark.usefixtures("inference_mode")
CFG, STEPS = 5.0, 4
small = partial(smooth, scale=0.3)
model = families(small)


def invert(model, latent, **settings):
    return inversions.invert("negative-prompt", model, latent, **dict(steps=STEPS) | settings)


def ddim(model, latent):
    return inversions.invert("ddim", model, latent, steps=STEPS)[0]


def sample(model, inversion, cfg=CFG, **inputs):
    return inversions.sample(model, inversion, cfg, **inputs)


def test_under_the_source_cfg_has_no_effect(model):
    latent = image()
    inversion, *_, negative = invert(model, latent)
    once, guided = sample(model, inversion, 1.0), sample(model, inversion, 7.5)
    assert torch.equal(once, guided) and torch.equal(negative[0][0], SOURCE[0][0])
    plain = ddim(model, latent)
    assert torch.equal(once, sample(model, plain, 1.0))


def test_it_extrapolates_where_asked_to():
    model = small("flow")
    off, found = invert(model, image())[0], invert(model, image(), extrapolate=True)[0]
    assert found.method.extrapolate and not off.method.extrapolate
    assert not torch.equal(found.trajectory.states[0][0], off.trajectory.states[0][0])


@pytest.mark.parametrize("guidance", ["plain", "Uni-Edit"])
def test_under_the_source_a_step_costs_one_evaluation(guidance):
    model, rows = small("eps"), []
    model.model.diffusion_model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    inversion = invert(model, image(), guidance=guidance)[0]
    assert sum(rows) == inversion.evaluations == STEPS
    sample(model, inversion, 7.5)
    assert sum(rows) == 2 * STEPS
    sample(model, inversion, 7.5, positive=TARGET)
    assert sum(rows) == 4 * STEPS and "sampler_pre_cfg_function" not in model.model_options, "the model keeps the direction"


def test_with_a_node_on_positives_cfg_has_an_effect():
    model = on_positives(small("eps"))
    inversion, _, noise, sigmas, negative = invert(model, image())
    blank = torch.zeros(1, 4, 8, 8)
    made = euler(model, blank, noise.generate_noise({"samples": blank}), sigmas, CFG, negative=negative)
    assert_close(sample(model, inversion), made, atol=1e-3, rtol=1e-3)
    assert apart(sample(model, inversion), sample(model, inversion, 1.0)) > 0.1


def test_an_edit_is_guidance_away_from_the_source():
    model, latent = small("flow"), image()
    edit = sample(model, invert(model, latent)[0], positive=TARGET)
    assert torch.equal(edit, sample(model, ddim(model, latent), positive=TARGET, negative=SOURCE))


def test_interpolation_leads_to_the_empty_prompt():
    model = small("v")
    latent = image()
    plain = ddim(model, latent)
    whole, half = (invert(model, latent, interpolation=share, negative=EMPTY)[0] for share in (1.0, 0.5))
    assert_close(sample(model, whole), sample(model, plain, negative=EMPTY))
    assert half.null[0][0].norm() == pytest.approx(float(SOURCE[0][0].norm()), rel=0.05)
    assert not torch.equal(half.null[0][1]["pooled_output"], SOURCE[0][1]["pooled_output"])


def test_uni_edit_fuses_and_corrects_by_region(model):
    """A single step is that of the paper: both prompts' own steps, fused and corrected by where they differ."""
    latent, w = image(2), 5.0
    source, target = (sample(model, invert(model, latent, steps=1)[0], 1.0, positive=prompt) for prompt in (SOURCE, TARGET))
    g = target - source
    size = g.abs().mean(1, keepdim=True)
    low, high = (pick(size, (1, 2, 3), keepdim=True) for pick in (torch.amin, torch.amax))
    m = (size - low) / (high - low)
    made = sample(model, invert(model, latent, steps=1, guidance="Uni-Edit")[0], w, positive=TARGET)
    assert_close(made, m * target + (1 - m) * source + w * (1 + m) * g, atol=1e-3, rtol=1e-3)
    assert apart(made, sample(model, invert(model, latent, steps=1)[0], w, positive=TARGET)) > 1e-3


@pytest.mark.parametrize("kind", ["l0", "l1"])
def test_proximal_guidance_is_between_none_and_all(kind):
    model, latent = small("v" if kind == "l0" else "flow"), image()

    def edited(quantile, cfg=CFG, **more):
        given = dict(guidance=f"proximal {kind}", quantile=quantile) | more
        return sample(model, invert(model, latent, **given)[0], cfg, positive=TARGET)

    every, back = edited(0.0), sample(model, invert(model, latent)[0])
    assert torch.equal(every, edited(0.5, guidance="plain"))
    assert_close(edited(1.0, 3.0), edited(1.0, 9.0))
    assert_close(edited(1.0), back, atol=1e-4, rtol=1e-4)
    assert 0 < apart(edited(0.7), back) < apart(every, back)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_fixed_point_iterations_are_nearly_exact(family):
    model, latent = smooth(family), image()
    plain, near = (invert(model, latent, fixed_point_iterations=k)[0] for k in (0, 10))
    assert apart(sample(model, near), latent["samples"]) < apart(sample(model, plain), latent["samples"]) / 10
