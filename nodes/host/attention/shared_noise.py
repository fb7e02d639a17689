"""The same noise for several rows of a batch, step by step, in stochastic samplers of ComfyUI."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import comfy.k_diffusion.sampling as samplers
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler


def _functions(*names: str) -> frozenset[Callable]:
    """ComfyUI's sampler functions of these names; older versions do not have all."""
    return frozenset(getattr(samplers, f"sample_{name}") for name in names if hasattr(samplers, f"sample_{name}"))


PLAIN = _functions(  # draw independent noise at every step; all others a Brownian path, which is right for every sampler
    "euler_ancestral", "euler_ancestral_RF", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpm_2_ancestral_RF", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_RF", "dpmpp_2s_ancestral_cfg_pp", "ddpm", "lcm", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "er_sde", "seeds_2", "seeds_3", "exp_heun_2_x0_sde", "sa_solver", "sa_solver_pece",
)  # fmt: skip
ON_GPU = _functions("dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde_gpu")  # draw their path on the GPU


def _own_noise(function: Callable, x: torch.Tensor, sigmas: torch.Tensor, seed: int | None) -> Callable:
    """The noise that a sampler function would draw for x by itself."""
    if function in PLAIN:
        return default_noise_sampler(x, seed=seed)
    return BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=function not in ON_GPU)


def with_shared_noise(sampler, first: torch.Tensor, times: int, sigmas: torch.Tensor, seed: int | None):
    """A sampler that adds to every row of a batch of `times` the rows of `first` (B, ...) what it would add to these alone.

    Samplers that draw no noise, or draw it by themselves, come back as they are.
    """
    if not isinstance(sampler, comfy.samplers.KSAMPLER) or "noise_sampler" not in inspect.signature(sampler.sampler_function).parameters:
        return sampler
    given, drawn = sampler.extra_options.get("noise_sampler"), None

    def noise(sigma, sigma_next):
        nonlocal drawn
        if given is None and drawn is None:
            drawn = _own_noise(sampler.sampler_function, first, sigmas, seed)
        one = (given or drawn)(sigma, sigma_next)[: len(first)]
        return one.repeat(times, *[1] * (one.ndim - 1))

    shared = copy.copy(sampler)
    shared.extra_options = {**sampler.extra_options, "noise_sampler": noise}
    return shared
