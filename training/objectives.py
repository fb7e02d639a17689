"""The training objective of a denoiser: which noise levels, and how much each of them counts.

Every loss here is an error of the denoised prediction, `w(sigma) |D - x0|^2`, so one formula serves every model. With the gain
`c = dD / d output` of the model's own parametrisation, `w = 1 / c^2` is the plain error of what the network itself predicts: noise
(c = -sigma), v (c = -sigma / sqrt(1 + sigma^2)) or flow velocity (c = -sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..guidance.errors import check_choice

WEIGHTINGS = ("own", "min-snr", "clean")
TIMESTEPS = ("uniform", "logit-normal", "shifted")
GOLDEN = (math.sqrt(5) - 1) / 2


def loss_weight(kind: str, gain: torch.Tensor, log_snr: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """w(sigma), (B,), of the error of the denoised prediction.

    "own": the error of the network's output, from its gain (B,). "min-snr": min(SNR, gamma), from log-SNR (B,): min-SNR-gamma (arXiv
    2303.09556, section 3.4), whose weights for eps, v and x0 prediction are this one in denoised space. "clean": 1, the error of the
    denoised prediction itself, as in ComfyUI's LoRA trainer; for eps models it all but ignores the low-noise half of the timesteps.
    """
    check_choice("weighting", kind, WEIGHTINGS)
    if kind == "own":
        return gain.float().square().reciprocal()
    return log_snr.float().exp().clamp(max=gamma) if kind == "min-snr" else torch.ones_like(log_snr, dtype=torch.float32)


def squared_error(denoised: torch.Tensor, x0: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of |D - x0|^2 of each sample, (B,), of (B, C, ...).

    `mask` (B, 1, ...) in [0, 1], broadcastable, weighs places: the mean is over what it covers, so that a small subject counts as much as
    a large one. A mask that is zero throughout a sample raises ValueError.
    """
    error = (denoised.float() - x0.float()).square()
    if mask is None:
        return error.flatten(1).mean(1)
    mask = mask.to(error).expand_as(error)
    covered = mask.flatten(1).sum(1)
    if not bool((covered > 0).all()):
        raise ValueError("A mask is empty: its image would not be trained on. Paint the area to train white, or leave the mask out.")
    return (error * mask).flatten(1).sum(1) / covered


def spread(seed: int, first: int, count: int) -> torch.Tensor:
    """Numbers first .. first + count - 1, (count,), of an endless sequence in (0, 1) that fills it evenly: steps of the golden ratio.

    Levels drawn with it vary far less from step to step than independent ones, at any batch size.
    """
    start = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed % 2**63))
    places = torch.arange(first, first + count, dtype=torch.float64)
    return ((start + places * GOLDEN) % 1).clamp(1e-6, 1 - 1e-6)


@dataclass(frozen=True)
class Levels:
    """A distribution of noise levels, as places in (0, 1): 0 is clean, 1 is pure noise, along ComfyUI's percent of the sampling.

    "uniform"; "logit-normal" (arXiv 2403.03206, section 3.1) with `mean` and `std`; "shifted" by `shift` towards noise, `s u / (1 + (s -
    1) u)` (ibid., equation 23). `low` and `high` narrow the range.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        check_choice("timesteps", self.kind, TIMESTEPS)
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"Timesteps go from {self.low:g} to {self.high:g}; give 0 <= start < end <= 1.")

    def places(self, u: torch.Tensor) -> torch.Tensor:
        """Uniform numbers (N,) in (0, 1) to places (N,)."""
        if self.kind == "logit-normal":
            u = torch.sigmoid(self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
        elif self.kind == "shifted":
            u = self.shift * u / (1 + (self.shift - 1) * u)
        return self.low + (self.high - self.low) * u


def picks(seed: int, first: int, count: int, images: int) -> list[int]:
    """Numbers first .. first + count - 1 of an endless sequence of images: epoch after epoch, each a new order of all."""
    chosen = []
    for place in range(first, first + count):
        epoch, within = divmod(place, images)
        order = torch.randperm(images, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))
        chosen.append(int(order[within]))
    return chosen
