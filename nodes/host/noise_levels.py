"""The noise levels of a model: its continuous axis, and the sigmas of schedulers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property

import comfy.samplers
import comfy.utils
import torch

from ...guidance.schedules import NoiseScale
from ...guidance.sdedit import sigmas_from

KEY = "controlled_diffusion.noise_scale"


def is_flow(model_sampling) -> bool:
    """Whether a model is a flow model."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def noise_scale(model) -> NoiseScale:
    """The continuous noise axis of a MODEL. Inside a sampling run use `run_noise_scale`, which is made once."""
    return scale_of(model.get_model_object("model_sampling"))


def run_noise_scale(guider) -> NoiseScale:
    """The noise axis of a running guider's model; kept in the options of the run, which ComfyUI clones for each run."""
    options = guider.model_options
    if KEY not in options:
        options[KEY] = noise_scale(guider.model_patcher)
    return options[KEY]


class Level:
    """The timestep (B,) of a prediction. Its `sigma`, the largest, is read where something depends on it: reading waits for the GPU.

    `percent` is that of the sampling by the noise axis of its model, as ranges read it.
    """

    def __init__(self, timestep: torch.Tensor | None = None, scale: NoiseScale | None = None):
        self.timestep, self.scale = timestep, scale

    @cached_property
    def sigma(self) -> float:
        return float(self.timestep.max())

    @cached_property
    def percent(self) -> float:
        return self.scale.range_percent(self.sigma)

    def at(self, timestep: torch.Tensor) -> Level:
        """This one where it is of that very tensor."""
        return self if timestep is self.timestep else Level(timestep, self.scale)


def scale_of(model_sampling) -> NoiseScale:
    """The noise axis from ComfyUI's own percent_to_sigma."""
    percents = [i / 500 for i in range(1, 500)]
    model_sampling = copy.deepcopy(model_sampling).cpu()  # the same to the last digit wherever the model is, and no waiting for a GPU
    if type(model_sampling).percent_to_sigma is comfy.model_sampling.ModelSamplingDiscrete.percent_to_sigma:
        inner = model_sampling.sigma(torch.tensor([(1.0 - p) * 999.0 for p in percents])).tolist()
    else:
        inner = [float(model_sampling.percent_to_sigma(p)) for p in percents]
    sigmas = [float(model_sampling.sigma_max), *inner, max(float(model_sampling.sigma_min), 1e-6)]
    falling = [sigmas[0]]
    for sigma in sigmas[1:]:
        falling.append(min(sigma, falling[-1] * (1 - 1e-7)))
    return NoiseScale(tuple(falling), is_flow(model_sampling))


def grid_of(model, scheduler: str) -> Callable[[int], list[float]]:
    """The falling sigmas of a scheduler, to 0, by the number of steps."""
    sampling = model.get_model_object("model_sampling")
    return lambda steps: comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist()


def levels(model, scheduler: str, steps: int, end_percent: float) -> tuple[float, ...]:
    """Falling sigmas to 0: those of KSampler, or of `steps` steps from a later percent of the sampling."""
    grid = grid_of(model, scheduler)
    return tuple(grid(steps) if end_percent == 0.0 else sigmas_from(noise_scale(model).sigma(end_percent), steps, grid))


def skip_steps(sigmas: tuple[float, ...], skip: float) -> tuple[float, ...]:
    """Falling sigmas without the first of their steps, a share `skip` of them; one step always stays."""
    steps = len(sigmas) - 1
    return sigmas[min(round(skip * steps), steps - 1) :]


def noise_deviation(sampling) -> float:
    """The standard deviation of the noise of a model, 1 for nearly all."""
    return getattr(sampling, "noise_scale", 1.0)
