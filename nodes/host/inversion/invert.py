"""Inverting images and replaying inversions inside the host's sampling.

Both run as a `Sampler` of the host under the host's own CFG, so loading, conditionings, hooks, wrappers, previews and cancelling are
the host's. States travel in the model's own latent space and in float32 or float64, so that exact methods stay exact.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ....inversion.method import Method, Trajectory
from ..latents import latent_of
from ..model_tag import ModelTag
from ..sampling import Guidance, run


@dataclass(frozen=True)
class Inversion:
    """An inverted batch of images: the value of the socket INVERSION.

    `trajectory` is in the model's own latent space, on the CPU. `source` is the CONDITIONING under which the images were inverted, `null`
    the negative CONDITIONING that belongs to the replay (None: whatever the user gives), `cfg` the guidance at which the replay under
    `source` gives the images back. `evaluations` counts rows of the network's batch for one image.
    """

    method: Method
    trajectory: Trajectory
    source: list
    model: ModelTag
    null: list | None = None
    cfg: float = 1.0
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def images(self) -> int:
        return self.trajectory.states[0][0].shape[0]




























def kept(trajectory: Trajectory) -> Trajectory:
    """A trajectory on the CPU, with a copy of its own of nothing but the tensors it needs."""
    states = tuple(tuple(t.detach().cpu() for t in carry) for carry in trajectory.states)
    return Trajectory(trajectory.sigmas, states, {k: t.detach().cpu() for k, t in trajectory.extras.items()})


def invert(
    model, vae, image, source, method: Method, sigmas: Sequence[float], *, negative=None, cfg: float = 1.0, precision=torch.float32
) -> Inversion:
    """The inversion of a LATENT or IMAGE under the conditioning `source` by a method that needs nothing but predictions."""
    began, guider = time.perf_counter(), Guidance(model, source, negative, cfg)

    def loop(guider, derivative, clean, show):
        return kept(method.encode(derivative, clean.to(precision), sigmas, show))

    sampler = run(guider, latent_of(model, vae, image), sigmas, loop, len(sigmas) - 1)
    return Inversion(
        method,
        sampler.result,
        source,
        ModelTag.of(model),
        null=negative,
        cfg=cfg,
        evaluations=guider.evaluations,
        seconds=time.perf_counter() - began,
    )


class InvertedNoise:
    """The host's NOISE that brings an inversion's start into any sampler that begins at its first sigma, for every parametrisation."""

    def __init__(self, model, inversion: Inversion):
        self.seed, self.model, self.inversion = 0, model, inversion

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        latent, sampling = input_latent["samples"].float(), self.model.get_model_object("model_sampling")
        clean = self.model.model.process_latent_in(latent) if torch.count_nonzero(latent) else latent
        first = torch.tensor([self.inversion.trajectory.sigmas[0]])
        at_top = bool(first >= float(sampling.sigma_max) * (1 - 1e-5))
        blank = torch.zeros_like(clean)
        start = self.inversion.trajectory.states[0][0].float().to(clean)
        gain = sampling.noise_scaling(first, torch.ones_like(clean), blank.clone(), at_top)
        return (start - sampling.noise_scaling(first, blank, clean, at_top)) / gain


def noisy_latent(model, inversion: Inversion) -> dict:
    """The inversion's start as a LATENT, for a sampler that adds no noise."""
    start = inversion.trajectory.states[0][0].float().to(comfy.model_management.intermediate_device())
    return {"samples": model.model.process_latent_out(start)}
















def outputs(model, inversion: Inversion) -> tuple:
    """What every inverter gives: the inversion, its start as LATENT and as NOISE, and the sigmas of the way back."""
    sigmas = torch.FloatTensor(list(inversion.trajectory.sigmas))
    return inversion, noisy_latent(model, inversion), InvertedNoise(model, inversion), sigmas


