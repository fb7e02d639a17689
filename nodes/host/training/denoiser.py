"""The running denoiser during training: predictions and losses of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.utils
import torch

from ....guidance.schedules import NoiseScale
from ....training.objectives import Levels, loss_weight, spread, squared_error
from ....training.settings import TrainingOptions
from ..noise_levels import is_flow
from .images import Images

STACKED = ("pooled_output", "concat_latent_image")  # what conditionings of one batch may each have a row of
Target = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]  # of noisy latents (B, ...) at sigmas (B,), the samples of a batch


@dataclass(frozen=True)
class Objective:
    """At which noise levels the denoiser is trained, and how its errors are weighted."""

    levels: Levels
    weighting: str = TrainingOptions.weighting
    gamma: float = TrainingOptions.gamma


def levels(model, timesteps: str, **knobs) -> Levels:
    """A distribution of noise levels; "auto" takes what models of this kind are trained with."""
    if timesteps == "auto":
        timesteps = "logit-normal" if is_flow(model.get_model_object("model_sampling")) else "uniform"
    return Levels(timesteps, **knobs)


def _batches(rows: Sequence[list]) -> list[list[int]]:
    """Which conditionings [features, extras] can be rows of one: those of one shape that have no tensors but the `STACKED` ones."""
    groups: dict = {}
    for i, (features, extras) in enumerate(rows):
        simple = not any(torch.is_tensor(v) for k, v in extras.items() if k not in STACKED)
        shapes = (features.shape, *(getattr(extras.get(k), "shape", None) for k in STACKED))
        groups.setdefault(shapes if simple else i, []).append(i)
    return list(groups.values())


def _one(rows: Sequence[list]) -> list:
    """One conditioning of many."""
    features, extras = rows[0]
    if len(rows) == 1:
        return [features, extras]
    together = {k: torch.cat([e[k] for _, e in rows]) for k in STACKED if extras.get(k) is not None}
    return [torch.cat([f for f, _ in rows]), {**extras, **together}]


def _in_order(results: Sequence[torch.Tensor], groups: Sequence[list[int]]) -> torch.Tensor:
    """Results of groups of rows, as the rows were numbered."""
    order = torch.tensor([i for group in groups for i in group]).argsort()
    return torch.cat(list(results))[order.to(results[0].device)]


@dataclass
class TrainDenoiser:
    """The running denoiser, as ComfyUI's sampling hands it to a sampler."""

    guider: comfy.samplers.CFGGuider
    options: dict
    scale: NoiseScale
    latest: torch.Tensor | None = None  # the last prediction of a training image, (1, C, ...), to look at

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, rows: Sequence[list]) -> torch.Tensor:
        """The prediction for noisy latents (B, ...) at sigmas (B,), each under its own [features, extras]; without guidance."""
        model, parts = self.guider.inner_model, _batches(rows)
        results = [self._together(model, x[group], sigma[group], _one([rows[i] for i in group])) for group in parts]
        return _in_order(results, parts)

    def _together(self, model, x: torch.Tensor, sigma: torch.Tensor, conditioning: list) -> torch.Tensor:
        conds = {"positive": comfy.sampler_helpers.convert_cond([conditioning])}
        processed = comfy.samplers.process_conds(model, x, conds, x.device, x.detach(), None, 0)["positive"]
        return comfy.samplers.calc_cond_batch(model, [processed], x, sigma, self.options)[0]

    def sigmas(self, objective: Objective, seed: int, first: int, count: int) -> list[float]:
        """The noise levels of the training's samples first .. first + count - 1."""
        return [self.scale.sigma(1 - float(place)) for place in objective.levels.places(spread(seed, first, count))]

    def log_snr(self, objective: Objective, seed: int, first: int, count: int) -> torch.Tensor:
        """Their log-SNR (count,), on the CPU."""
        return torch.tensor([self.scale.log_snr(sigma) for sigma in self.sigmas(objective, seed, first, count)])

    def errors(
        self, images: Images, chosen: Sequence[int], rows: Sequence[list], objective: Objective, seed: int, first: int,
        target: Target | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The losses (B,) of images, the numbers first, first + 1, ... of the training's samples, under a conditioning each.

        `target` gives what is to be predicted instead of the images.
        """
        parts = {}
        for row, image in enumerate(chosen):
            parts.setdefault(images.latents[image].shape, []).append(row)
        sigmas = self.sigmas(objective, seed, first, len(chosen))

        def errors(part: list[int]) -> torch.Tensor:
            return self._errors(images, chosen, part, [rows[i] for i in part], objective, [sigmas[i] for i in part], seed, first, target)

        return _in_order([errors(part) for part in parts.values()], list(parts.values()))

    def _errors(self, images, chosen, part, rows, objective, sigmas, seed, first, target) -> torch.Tensor:
        """Weighted errors of samples of one size."""
        model = self.guider.inner_model
        sampling, device = model.model_sampling, self.guider.model_patcher.load_device
        sigma = torch.tensor(sigmas, device=device)
        x0 = model.process_latent_in(torch.cat([images.latents[chosen[i]] for i in part]).to(device))
        noise = torch.cat([_noise(seed, first + i, images.latents[chosen[i]].shape) for i in part]).to(device)
        x = sampling.noise_scaling(sigma, noise, x0.clone(), False)
        goal = x0 if target is None else target(x, sigma, part)
        denoised = self.denoised(x, sigma, rows)
        self.latest = denoised[:1].detach()
        gain = sampling.calculate_denoised(sigma, torch.ones_like(x0), torch.zeros_like(x0)).flatten(1)[:, 0]
        masks = [images.masks[chosen[i]] for i in part]
        mask = None if masks[0] is None else torch.cat(masks).to(device)
        log_snr = torch.tensor([self.scale.log_snr(s) for s in sigmas], device=device)
        return loss_weight(objective.weighting, gain, log_snr, objective.gamma) * squared_error(denoised, goal, mask)


def _noise(seed: int, number: int, shape: torch.Size) -> torch.Tensor:
    """The noise of one sample, whatever batch it is in."""
    return torch.randn(shape, generator=torch.Generator().manual_seed((seed * 1_000_003 + number + 1) % 2**63))
