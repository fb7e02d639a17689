"""Short runs of the host's sampling for tests, and a count of what the network evaluates."""

import comfy.sample
import comfy.samplers
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


def run(guider, empty: torch.Tensor | None = None, sampler: str = "euler", seed: int = 7, sigmas: torch.Tensor | None = None):
    """What a guider samples from noise; the latent."""
    empty = latent() if empty is None else empty
    sigmas = sigmas_of(guider.model_patcher) if sigmas is None else sigmas
    noise = comfy.sample.prepare_noise(empty, seed)
    return guider.sample(noise, empty, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=seed)


def ksampler(model, positive, negative, cfg: float, empty: torch.Tensor | None = None, sampler: str = "euler", seed: int = 7):
    """What KSampler samples with the same noise and sigmas as `run`."""
    empty = latent() if empty is None else empty
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, sampler, "normal", positive, negative, empty, disable_pbar=True, seed=seed)


class Count:
    """Counts forward passes of a model by rows of the network's batch and by calls."""

    def __init__(self, model):
        self.model, self.rows, self.calls = model.clone(), 0, 0
        self.model.set_model_unet_function_wrapper(self._count)

    def _count(self, apply_model, args):
        self.rows += args["input"].shape[0]
        self.calls += 1
        return apply_model(args["input"], args["timestep"], **args["c"])
