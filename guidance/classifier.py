"""Classifier guidance: the gradient of log p(label | x_t) moves the prediction (arXiv 2105.05233, section 4).

In denoised space `D + w sigma^2 grad` where x = x0 + sigma n, and `D + w sigma^2 / (1 - sigma) grad` for flow models, with
`grad = grad_x log p(label | x)`. The classifier sees a latent of unit variance and the log-SNR, so that one classifier
serves eps, v and flow models of the same latent format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .errors import check_choice, listed, quoted
from .latent_space import LatentSpace
from .schedules import NoiseScale

EARLIEST_FLOW = 0.99  # flow: above this sigma, 1 / (1 - sigma) grows no further
KINDS = ("independent", "exclusive")


def unit_variance(x: torch.Tensor, sigma: float, flow: bool) -> torch.Tensor:
    """A noisy latent scaled so that clean data of unit variance keeps it at every noise level."""
    return x / math.hypot(1 - sigma if flow else 1.0, sigma)


def towards(gradient: torch.Tensor, sigma: float, flow: bool) -> torch.Tensor:
    """The change of the denoised prediction that goes with a gradient of log p with respect to x, any shape."""
    return gradient * (sigma**2 / (1 - min(sigma, EARLIEST_FLOW)) if flow else sigma**2)


def gradient_of(score: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, batch: int = 0) -> torch.Tensor:
    """d score(x).sum() / dx for `score` (B, ...) -> (B,), a part of `batch` samples at a time (0 = all)."""
    parts = []
    with torch.inference_mode(False), torch.enable_grad():
        for part in x.split(batch or len(x)):
            leaf = part.clone().detach().requires_grad_(True)
            parts.append(torch.autograd.grad(score(leaf).sum(), leaf)[0])
    return torch.cat(parts)


class _Block(torch.nn.Module):
    """A residual block whose features are scaled and shifted by the noise level."""

    def __init__(self, channels: int, level: int):
        super().__init__()
        self.norm = torch.nn.GroupNorm(8, channels)
        self.first = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.film = torch.nn.Linear(level, 2 * channels)
        self.second = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(level)[:, :, None, None].chunk(2, 1)
        inner = self.first(F.silu(self.norm(h) * (1 + scale) + shift))
        return h + self.second(F.silu(inner))


class NoisyClassifier(torch.nn.Module):
    """Logits of labels from a noisy latent: (B, C, H, W) of unit variance and log-SNR (B,) -> (B, labels)."""

    def __init__(self, channels: int, labels: int, widths: Sequence[int] = (32, 64, 128), level: int = 64):
        super().__init__()
        self.config = dict(channels=channels, labels=labels, widths=list(widths), level=level)
        self.level = torch.nn.Sequential(torch.nn.Linear(16, level), torch.nn.SiLU(), torch.nn.Linear(level, level), torch.nn.SiLU())
        self.stem = torch.nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = torch.nn.ModuleList(torch.nn.ModuleList([_Block(w, level), _Block(w, level)]) for w in widths)
        self.downs = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:]))
        self.head = torch.nn.Sequential(torch.nn.Linear(widths[-1], 128), torch.nn.SiLU(), torch.nn.Linear(128, labels))

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        h, level = self.stem(x), self.level(level_features(log_snr))
        for i, stage in enumerate(self.stages):
            h = h if i == 0 else self.downs[i - 1](h)
            for block in stage:
                h = block(h, level)
        return self.head(h.mean((2, 3)))


def config_of(shapes: dict[str, Sequence[int]]) -> dict:
    """The `config` of the network with weights of these shapes. Raises KeyError or IndexError where they are none of it."""
    stages = {int(k.split(".")[1]) for k in shapes if k.startswith("stages.")}
    widths = [shapes[f"stages.{i}.0.first.weight"][0] for i in range(len(stages))]
    channels, level, labels = shapes["stem.weight"][1], shapes["level.0.weight"][0], shapes["head.2.weight"][0]
    return dict(channels=channels, labels=labels, widths=widths, level=level)


def level_features(log_snr: torch.Tensor) -> torch.Tensor:
    """Smooth features of log-SNR (B,) -> (B, 16)."""
    angles = log_snr[:, None] / 20 * math.pi * torch.arange(1, 9, device=log_snr.device)
    return torch.cat([angles.sin(), angles.cos()], 1)


@dataclass(frozen=True)
class LabeledClassifier:
    """A trained classifier. `kind` "independent": each label is present or not; "exclusive": exactly one holds.

    `latent_format` are the latents that it was trained on.
    """

    network: torch.nn.Module
    labels: tuple[str, ...]
    latent_format: LatentSpace
    kind: str = "independent"

    def __post_init__(self):
        check_choice("kind", self.kind, KINDS)

    def choices(self, text: str) -> dict[int, float]:
        """Label numbers and weights of a text like "red, circle:0.5"; a weight below 0 means without the label."""
        found = {}
        for part in filter(None, (p.strip() for p in re.split(r"[,\n]", text))):
            name, _, weight = (s.strip() for s in part.partition(":"))
            if name not in self.labels:
                raise ValueError(f"The classifier has no label {quoted(name)}. It knows: {listed(self.labels)}.")
            found[self.labels.index(name)] = _weight(part, weight)
        if not found:
            raise ValueError(f"No label is given. Name one or more, as in 'a, b:0.5', of: {listed(self.labels)}.")
        return found

    def log_probability(self, logits: torch.Tensor, choices: dict[int, float]) -> torch.Tensor:
        """sum_k w_k log p(label_k), or |w_k| log(1 - p(label_k)) where w_k < 0; (B, labels) -> (B,)."""
        if self.kind == "independent":
            return sum(abs(w) * F.logsigmoid(math.copysign(1, w) * logits[:, k]) for k, w in choices.items())
        others = [logits[:, [i for i in range(logits.shape[1]) if i != k]].logsumexp(1) for k in choices]
        whole = logits.logsumexp(1)
        return sum(abs(w) * ((logits[:, k] if w > 0 else rest) - whole) for (k, w), rest in zip(choices.items(), others))


def _weight(part: str, weight: str) -> float:
    try:
        value = float(weight or 1.0)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value == 0.0:
        raise ValueError(f"The weight in {quoted(part)} is not a number other than 0; write a label as 'name' or 'name:0.5'.")
    return value


@dataclass(frozen=True)
class ClassifierGradient:
    """What a classifier adds to a prediction at weight 1; see `towards`. `batch` limits the samples at a time (0 = all)."""

    classifier: LabeledClassifier
    choices: dict[int, float]
    batch: int = 0
    through_denoiser = False

    @property
    def latent_format(self) -> LatentSpace:
        return self.classifier.latent_format

    def __call__(self, x: torch.Tensor, sigma: float, denoised: torch.Tensor, scale: NoiseScale) -> torch.Tensor:
        """(B, C, [frames,] H, W) noisy latent -> change of the denoised prediction, same shape."""
        network = self.classifier.network.to(x.device)
        log_snr = scale.log_snr(sigma)

        def score(part):
            images = unit_variance(as_images(part), sigma, scale.flow).float()
            logits = network(images, torch.full((len(images),), log_snr, device=x.device))
            return self.classifier.log_probability(logits.view(len(part), -1, logits.shape[1]).mean(1), self.choices)

        return towards(gradient_of(score, x, self.batch), sigma, scale.flow)


def as_images(x: torch.Tensor) -> torch.Tensor:
    """(B, C, frames, H, W) -> (B * frames, C, H, W); images stay as they are."""
    return x if x.ndim == 4 else x.movedim(2, 1).flatten(0, 1)
