"""Short runs of ComfyUI's sampling for tests, and a count of what the network evaluates."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

STEPS = 4


def latent(batch: int = 1, *shape: int) -> torch.Tensor:
    return torch.zeros(batch, 4, *(shape or (8, 8)))


def sigmas_of(model, steps: int = STEPS, scheduler: str = "normal") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def half_mask(size: int = 64) -> torch.Tensor:
    """A MASK of the right half."""
    mask = torch.zeros(1, size, size)
    mask[..., size // 2 :] = 1
    return mask


def cfg_guider(model, positive, negative, cfg: float):
    """ComfyUI's CFG."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def dual_guider(model, first, second, negative, *scales: float, nested: bool = False):
    """ComfyUI's DualCFGGuider."""
    guider = Guider_DualCFG(model)
    guider.set_conds(first, second, negative)
    guider.set_cfg(*scales, nested=nested)
    return guider


def run(guider, empty: torch.Tensor | None = None, sampler: str = "euler", seed: int = 7, sigmas: torch.Tensor | None = None, noise_mask=None):
    """What a guider samples from noise; the latent."""
    empty = latent() if empty is None else empty
    sigmas = sigmas_of(guider.model_patcher) if sigmas is None else sigmas
    noise = comfy.sample.prepare_noise(empty, seed)
    return guider.sample(noise, empty, comfy.samplers.sampler_object(sampler), sigmas, noise_mask, disable_pbar=True, seed=seed)


def ksampler(model, positive, negative, cfg: float, empty: torch.Tensor | None = None, sampler: str = "euler", seed: int = 7):
    """What KSampler samples with the same noise and sigmas as `run`."""
    empty = latent() if empty is None else empty
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, sampler, "normal", positive, negative, empty, disable_pbar=True, seed=seed)


def families(make):
    """A fixture: what `make` gives for each family of models in turn."""
    return pytest.fixture(params=["eps", "v", "flow"])(lambda request: make(request.param))


def watched(model, look):
    """The model, whose network shows `look` what it is given."""

    def evaluate(apply_model, args):
        look(args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(evaluate)
    return patched


def with_options_seen(model, look):
    """The model, whose network shows `look` the transformer options that it is given."""
    patched = model.clone()
    patched.add_wrapper_with_key("diffusion_model", "spy", lambda executor, *a, **k: (look(a[-1]), executor(*a, **k))[1])
    return patched


class Count:
    """Counts forward passes of a model by rows of the network's batch and by calls."""

    def __init__(self, model):
        self.model, self.rows, self.calls = watched(model, self._count), 0, 0

    def _count(self, args):
        self.rows += args["input"].shape[0]
        self.calls += 1


class Hooks:
    """Another node's CFG functions of every kind; each counts its calls, and but for `calc` they change the result."""

    def __init__(self, model):
        self.calls, self.model = dict.fromkeys(("pre", "cfg", "post", "calc"), 0), model.clone()
        self.model.set_model_sampler_pre_cfg_function(self.pre)
        self.model.set_model_sampler_cfg_function(self.cfg)
        self.model.set_model_sampler_post_cfg_function(self.post)
        self.model.set_model_sampler_calc_cond_batch_function(self.calc)

    def pre(self, args):
        self.calls["pre"] += 1
        return [args["conds_out"][0] * 1.01, *args["conds_out"][1:]]

    def cfg(self, args):
        self.calls["cfg"] += 1
        return args["uncond"] + 1.1 * args["cond_scale"] * (args["cond"] - args["uncond"])

    def post(self, args):
        self.calls["post"] += 1
        assert args["cond"] is not None and args["uncond_denoised"] is not None
        return args["denoised"] * 0.99

    def calc(self, args):
        self.calls["calc"] += 1
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])
