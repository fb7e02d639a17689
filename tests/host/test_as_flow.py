"""Eps and v models as flow models in the real ComfyUI."""

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from controlled_diffusion.nodes.as_flow import ModelSamplingAsFlow
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.host.noise_levels import scale_of

from compare import assert_close
from host import tiny
from host.sampling import Count, cfg_guider, latent, run

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, EMPTY = tiny.conditioning(1), tiny.conditioning(2)
STEPS = 6


@pytest.fixture(params=["eps", "v"])
def base(request):
    return tiny.unet(request.param, output_scale=0.2)


def as_flow(model):
    return ModelSamplingAsFlow.execute(model).args[0]


def guider(model):
    return cfg_guider(model, SOURCE, EMPTY, 3.0)


class Ask(comfy.samplers.Sampler):
    """What the model predicts of a state, within a run."""

    def __init__(self, x, sigma):
        self.x, self.sigma = x, sigma

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        return model_wrap(self.x.to(noise.device), self.sigma.to(noise.device), **extra_args)


def predicted(model, x, sigma):
    """The denoised latent, as the VAE takes it, of states x (B, ...) at sigma (B,)."""
    return guider(model).sample(latent(len(x)), latent(len(x)), Ask(x, sigma), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)


def sampling(model):
    return model.get_model_object("model_sampling")


@pytest.mark.parametrize("percent", [0.0, 0.1, 0.5, 0.95])
def test_the_prediction_is_that_of_the_model_as_it_was(base, percent):
    sigma = torch.full((2,), min(sampling(base).percent_to_sigma(percent), float(sampling(base).sigma_max)))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * sigma[0] + 1
    s = sigma / (1 + sigma)
    found = predicted(as_flow(base), x * (1 - s[0]), s)
    assert_close(found, predicted(base, x, sigma), atol=5e-4, rtol=1e-4)
    assert not torch.allclose(found, predicted(base, 0.8 * x, sigma), atol=1e-2)


@pytest.mark.parametrize("scheduler", ["normal", "karras", "beta"])
def test_it_samples_the_same_image_along_the_same_levels(base, scheduler):
    """Karras and the like have levels of their own for a flow model; what counts is that the levels are the same."""
    sigmas = comfy.samplers.calculate_sigmas(sampling(base), scheduler, STEPS)[1:]  # at its first level the host adds sqrt(1 + sigma^2)
    expected = run(guider(base), sigmas=sigmas)
    assert_close(run(guider(as_flow(base)), sigmas=sigmas / (1 + sigmas)), expected, atol=1e-3, rtol=1e-3)


def test_buffers_of_the_sampling_below_go_to_it(base):
    """A host that loads dynamically puts buffers back under the names that they had when it took them, whatever stands there now."""
    flow = as_flow(base)
    comfy.model_management.load_models_gpu([flow])
    own, below = flow.model.model_sampling, flow.get_model_object("model_sampling").base
    before = below.sigmas
    assert own is flow.get_model_object("model_sampling") and not dict(own.named_buffers())
    for name in ("sigmas", "log_sigmas"):
        comfy.utils.set_attr_buffer(flow.model, f"model_sampling.{name}", 2 * getattr(below, name))
    assert torch.equal(below.sigmas, 2 * before) and torch.equal(own.sigmas, 2 * before / (1 + 2 * before))


def test_schedulers_that_count_timesteps_give_the_same_levels(base):
    for scheduler in ("normal", "simple", "ddim_uniform", "sgm_uniform", "beta"):
        sigmas, own = (comfy.samplers.calculate_sigmas(sampling(m), scheduler, STEPS) for m in (base, as_flow(base)))
        assert_close(own, sigmas / (1 + sigmas), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_falls_from_below_one_to_zero(scheduler):
    sigmas = comfy.samplers.calculate_sigmas(sampling(as_flow(tiny.unet("eps"))), scheduler, 10)
    assert 0.85 < sigmas[0] < 1.0 and sigmas[-1] == 0.0 and (sigmas.diff() < 0).all()


def test_percents_are_those_of_the_model_as_it_was(base):
    own, was = sampling(as_flow(base)), sampling(base)
    assert own.percent_to_sigma(0.0) == 1.0 and own.percent_to_sigma(1.0) == 0.0
    for percent in (0.1, 0.5, 0.9):
        assert own.percent_to_sigma(percent) == pytest.approx(was.percent_to_sigma(percent) / (1 + was.percent_to_sigma(percent)))
    scale = scale_of(own)
    assert scale.flow and scale.sigma(0.0) == pytest.approx(float(own.sigma_max))


def test_noise_enters_as_in_a_flow_model_and_leaves_again(base):
    own, s = sampling(as_flow(base)), torch.tensor([0.75])
    assert isinstance(own, comfy.model_sampling.CONST)
    x0, noise = torch.full((1, 4, 2, 2), 8.0), torch.full((1, 4, 2, 2), 4.0)
    assert_close(own.noise_scaling(s, noise, x0), torch.full((1, 4, 2, 2), 5.0))
    assert_close(own.inverse_noise_scaling(s, own.noise_scaling(s, torch.zeros_like(noise), x0)), x0)


def test_above_its_last_level_the_network_is_asked_at_that(base):
    own, top = sampling(as_flow(base)), sampling(as_flow(base)).sigma_max
    for sigma in (top.view(1), torch.ones(1)):
        assert own.timestep(sigma) == 999
        assert_close(own.calculate_input(sigma, torch.ones(1)), 1 / (top**2 + (1 - top) ** 2).sqrt().view(1))


def test_video_latents_are_converted():
    x, own = torch.ones(2, 16, 3, 8, 8), sampling(as_flow(tiny.unet("eps")))
    assert_close(own.calculate_denoised(torch.tensor([0.5, 0.75]), x, x)[:, 0, 0, 0, 0], torch.tensor([1.0, 1.0]))


def test_the_model_handed_in_and_its_wrappers_are_as_before(base):
    before, flow = sampling(base), as_flow(base)
    first, made = run(guider(base)), run(guider(flow))
    assert sampling(base) is before
    assert torch.equal(run(guider(base)), first) and torch.equal(run(guider(flow)), made)
    count = Count(base)
    run(guider(as_flow(count.model)))
    assert count.rows > 0, "the wrappers of other nodes are lost"


def test_other_model_sampling_nodes_before_it_count():
    zero = ModelSamplingDiscrete().patch(tiny.unet("eps"), "v_prediction", zsnr=True)[0]
    flow = as_flow(zero)
    assert sampling(flow).base is sampling(zero)
    assert float(sampling(flow).sigma_max) == pytest.approx(float(sampling(zero).sigma_max) / (1 + float(sampling(zero).sigma_max)))
    assert torch.isfinite(run(guider(flow))).all()


def test_flow_models_come_back_as_they_are_and_the_node_says_so(base):
    for model in (tiny.unet("flow"), as_flow(base)):
        with progress.node_text() as text:
            assert as_flow(model) is model
        assert text.lines == ["nothing changed: BaseModel (SD15, flow) is a flow model already"]


def test_models_that_predict_neither_eps_nor_v_are_refused(base):
    for kind in ("x0", "img_to_img"):
        with pytest.raises(ValueError, match="only models that predict eps or v can become flow models"):
            as_flow(ModelSamplingDiscrete().patch(base, kind, zsnr=False)[0])
