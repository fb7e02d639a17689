"""The same noise for several rows of a batch, step by step, in stochastic samplers of the host."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler


def _draws_plain_noise(function: Callable) -> bool:
    """Whether a sampler function, or one that it calls, takes the host's plain noise where it is given none."""
    own = inspect.unwrap(function)
    names = getattr(getattr(own, "__code__", None), "co_names", ())
    called = (getattr(own, "__globals__", {}).get(n) for n in names)
    inner = (getattr(getattr(inspect.unwrap(f), "__code__", None), "co_names", ()) for f in called if inspect.isfunction(f))
    return "default_noise_sampler" in names or any("default_noise_sampler" in n for n in inner)


def _own_noise(function: Callable, x: torch.Tensor, sigmas: torch.Tensor, seed: int | None) -> Callable:
    """The noise that a sampler function would draw for x by itself.

    Where it is not the plain one it is a Brownian path, which is right for every sampler.
    """
    if _draws_plain_noise(function):
        return default_noise_sampler(x, seed=seed)
    on_cpu = not getattr(function, "__name__", "").endswith("_gpu")
    return BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=on_cpu)


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
