"""Inverts images inside ComfyUI's sampling, as a `Sampler` under its own CFG: loading, hooks, previews and cancelling are ComfyUI's.

States are in the model's own latent space, in float32 or float64, so that exact methods stay exact.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.model_management
import torch

from ....inversion.method import Method, Trajectory
from .. import noise_levels
from ..conditionings import check_conditionings
from ..latents import Padding, decoded, latent_of
from ..model_tag import ModelTag
from ..sampling import Guidance, run
from ..saved_tensors import map_tensors


@dataclass(frozen=True)
class Inversion:
    """An inverted batch of images: the value of the socket INVERSION.

    `trajectory` is in the model's own latent space, on the CPU. `source` is the CONDITIONING under which the images were inverted, `null`
    the negative CONDITIONING of the reconstruction (None: the user gives one), `cfg` the guidance scale at which sampling under `source`
    gives the images back. `evaluations` counts rows of the network's batch for one image. `text` is the source prompt where it is known, `padding` how
    the images were padded if they were.
    """

    method: Method
    trajectory: Trajectory
    source: list
    model: ModelTag
    null: list | None = None
    cfg: float = 1.0
    evaluations: int = 0
    seconds: float = 0.0
    text: str = ""
    padding: Padding | None = None

    def __post_init__(self):
        """Every tensor in one layout, as files keep them: in another, kernels round otherwise."""
        object.__setattr__(self, "padding", self.padding and Padding(*self.padding))  # a file has plain pairs
        for name in ("source", "null"):
            object.__setattr__(self, name, map_tensors(getattr(self, name), torch.Tensor.contiguous))
        object.__setattr__(self, "trajectory", self.trajectory.map(torch.Tensor.contiguous))

    @property
    def images(self) -> int:
        return self.trajectory.states[0][0].shape[0]

    def decoded(self, vae, samples: torch.Tensor) -> torch.Tensor:
        """The IMAGE of latent samples of these images, without what was padded."""
        image = decoded(vae, samples)
        return self.padding.cropped(image) if self.padding else image


def to_cpu(trajectory: Trajectory) -> Trajectory:
    """A trajectory on the CPU, without a graph."""
    return trajectory.map(lambda t: t.detach().cpu())


def levels(model, scheduler: str, steps: int, end_percent: float, **conditionings: list | None) -> tuple[float, ...]:
    """The falling sigmas of an inversion, after a check of the conditionings that are given."""
    check_conditionings(model, {name: c for name, c in conditionings.items() if c is not None})
    return noise_levels.levels(model, scheduler, steps, end_percent)


def invert(
    model, vae, image, source, method: Method, sigmas: Sequence[float], *, negative=None, cfg: float = 1.0, precision=torch.float32
) -> Inversion:
    """The inversion of a LATENT or IMAGE under the conditioning `source` by a method that needs nothing but predictions."""
    began, guider = time.perf_counter(), Guidance(model, source, negative, cfg)

    def loop(guider, derivative, clean, show):
        return to_cpu(method.encode(derivative, clean.to(precision), sigmas, show))

    trajectory = run(guider, latent_of(model, vae, image), sigmas, loop, {"Inverting": len(sigmas) - 1}).result
    cost = dict(evaluations=guider.evaluations, seconds=time.perf_counter() - began)
    return Inversion(method, trajectory, source, ModelTag.of(model, sigmas), null=negative, cfg=cfg, **cost)


class InvertedNoise:
    """A NOISE with which any sampler that begins at an inversion's first sigma starts at its first state, for every parametrization."""

    def __init__(self, model, inversion: Inversion):
        self.seed, self.model, self.inversion = 0, model, inversion

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        latent, sampling = input_latent["samples"].float(), self.model.get_model_object("model_sampling")
        clean = self.model.model.process_latent_in(latent) if torch.count_nonzero(latent) else latent
        first = torch.tensor([self.inversion.trajectory.sigmas[0]])
        max_denoise = bool(first >= float(sampling.sigma_max) * (1 - 1e-5))
        blank = torch.zeros_like(clean)
        start = self.inversion.trajectory.states[0][0].float().to(clean)
        gain = sampling.noise_scaling(first, torch.ones_like(clean), blank.clone(), max_denoise)
        return (start - sampling.noise_scaling(first, blank, clean, max_denoise)) / gain


def noisy_latent(model, inversion: Inversion) -> dict:
    """The inversion's start as a LATENT, for a sampler that adds no noise."""
    start = inversion.trajectory.states[0][0].float().to(comfy.model_management.intermediate_device())
    return {"samples": model.model.process_latent_out(start)}


def outputs(model, inversion: Inversion, text: str = "") -> tuple:
    """The outputs of every inverter: the inversion, with the text of its source, its start as LATENT and as NOISE, and the sigmas of the
    reconstruction."""
    inversion = replace(inversion, text=text or inversion.text)
    return inversion, noisy_latent(model, inversion), InvertedNoise(model, inversion), torch.FloatTensor(inversion.trajectory.sigmas)
