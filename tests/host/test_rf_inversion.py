"""RF-Inversion in the real ComfyUI."""

import logging

import pytest
import torch
from controlled_diffusion.nodes.as_flow import ModelSamplingAsFlow
from controlled_diffusion.nodes.host import noise_levels

from compare import assert_close
from host import inversions, tiny
from host.inversions import EDIT, apart, image, sample
from host.sampling import Count

pytestmark = pytest.mark.usefixtures("inference_mode")
STEPS = 8


@pytest.fixture
def model():
    return tiny.unet("flow", output_scale=0.2)


def invert(model, latent=None, **settings):
    return inversions.invert("rf-inversion", model, latent, **dict(steps=STEPS) | settings)[0]


def edited(model, **settings):
    return sample(model, invert(model, **settings), 5.0, **EDIT)


@pytest.mark.parametrize("end_percent", [0.0, 0.5])
def test_gamma_one_is_the_straight_line_to_the_seeds_noise(model, end_percent):
    trajectory = invert(model, gamma=1.0, end_percent=end_percent, seed=4).trajectory
    noise, sigma = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)), trajectory.sigmas[0]
    assert (abs(sigma - 1) < 1e-6) == (end_percent == 0)
    assert_close(trajectory.states[0][0], (1 - sigma) * trajectory.states[-1][0] + sigma * noise, atol=1e-5, rtol=1e-5)


def test_gamma_and_eta_zero_are_ddim_and_plain_sampling(model):
    ddim = inversions.invert("ddim", model, steps=STEPS)[0]
    own = invert(model, gamma=0.0, eta=0.0)
    assert_close(own.trajectory.states[0][0], ddim.trajectory.states[0][0], atol=1e-5, rtol=1e-5)
    assert_close(sample(model, own, 5.0, **EDIT), sample(model, ddim, 5.0, **EDIT), atol=1e-4, rtol=1e-4)


def test_longer_and_stronger_pulls_keep_more_of_the_image(model):
    def change(**knobs):
        return apart(edited(model, **knobs), image()["samples"])

    assert change(eta=1.0, eta_end_percent=1.0) < 1e-5, "under any prompt"
    assert change(eta_end_percent=0.8) < change(eta_end_percent=0.4) < change(eta=0.0)
    assert change(eta=0.9) < change(eta=0.4)
    assert change(eta_end_percent=0.8) < change(eta_end_percent=0.8, decay=2.0)
    assert change(eta_start_percent=0.4, eta_end_percent=0.8) > change(eta_end_percent=0.8)


@pytest.mark.parametrize(("kind", "scheduler", "steps", "edge"), [("eps", "simple", 20, 0.05), ("flow", "normal", 27, 0.73)])
def test_a_step_on_the_edge_of_the_percents_is_within(kind, scheduler, steps, edge):
    """As in the ranges of other nodes, however its sigma is rounded."""
    model = ModelSamplingAsFlow.execute(tiny.unet(kind)).args[0]
    sigmas, scale = noise_levels.levels(model, scheduler, steps, 0.0), noise_levels.noise_scale(model)
    settings = dict(steps=steps, scheduler=scheduler, eta_end_percent=edge)
    found = inversions.invert("rf-inversion", model, **settings)[0]
    on = [found.method.pull(i, found.trajectory) > 0 for i in range(steps)]
    assert on == [scale.range_percent(sigma) <= edge for sigma in sigmas[:-1]] and edge in map(scale.range_percent, sigmas)


def test_the_percents_are_those_of_the_sampling(model):
    inversion = invert(model, eta_start_percent=0.2, eta_end_percent=0.6)
    scale = noise_levels.noise_scale(model)
    on = [inversion.method.pull(i, inversion.trajectory) > 0 for i in range(STEPS)]
    assert on == [0.2 - 1e-6 <= scale.percent(s) <= 0.6 + 1e-6 for s in inversion.trajectory.sigmas[:-1]]
    assert 0 < sum(on) < STEPS


def test_one_evaluation_a_step(model):
    count = Count(model)
    inversion = invert(count.model)
    assert count.rows == inversion.evaluations == STEPS
    sample(count.model, inversion, 5.0, **EDIT)
    assert count.rows == 3 * STEPS


@pytest.mark.parametrize("family", ["eps", "v", "another prediction"])
def test_eps_and_v_models_are_refused(family):
    """Those that cannot become flow models are not told to."""
    advice = r" with it\.$" if family == "another prediction" else " with it, or make it one with Model"
    message = rf"RF-Inversion needs a flow model .* is BaseModel \(SD15, {family}\)\. Use DDIM Inverter or Edit-Friendly Inverter{advice}"
    model = tiny.unet("eps" if family == "another prediction" else family)
    if family == "another prediction":
        model.add_object_patch("model_sampling", type("Another", (torch.nn.Module,), {})())
    with pytest.raises(ValueError, match=message):
        invert(model)


def test_an_eta_that_never_acts_is_warned_of(model, caplog):
    with caplog.at_level(logging.WARNING):
        invert(model, eta_end_percent=0.4)
        assert "never acts" not in caplog.text
        invert(model, eta_end_percent=0.4, end_percent=0.5)
    assert "eta 0.9 never acts: no step begins between eta_start_percent 0 and eta_end_percent 0.4" in caplog.text
