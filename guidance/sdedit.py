"""SDEdit: noise a guide to a chosen level, then denoise it (arXiv 2108.01073).

The strength t0 is a true noise level, so it means the same for every scheduler and step count. In ComfyUI's sigma
space both processes of the paper start at `x = guide + sigma n`; they differ in which sigma belongs to t0 and in the
grid of sigmas below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .schedules import NoiseScale

UNITS = ("percent", "sigma", "snr")
PROCESSES = ("VP", "VE")
FINEST = 1000  # steps of a grid


def start_sigma(strength: float, unit: str, scale: NoiseScale, process: str = "VP") -> float:
    """The sigma of a strength: a share t0 of the noise process (`percent`, 0 to 1), a sigma, or a signal to noise ratio.

    VP reads t0 on the model's own schedule; VE on the geometric one, sigma_min (sigma_max / sigma_min)^t0.
    """
    low, high = scale.sigmas[-1], scale.sigmas[0]
    if unit == "percent":
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"The strength is {strength} percent; give 0 (the guide itself) to 1 (pure noise), usually 0.3 to 0.6.")
        if strength == 0.0:
            return 0.0
        return low * (high / low) ** strength if process == "VE" and not scale.flow else scale.sigma(1 - strength)
    if unit == "snr":
        if not strength > 0.0:
            raise ValueError(f"The strength is an SNR of {strength}; give a number above 0, small for much noise.")
        sigma = scale.sigma_of_log_snr(math.log(strength))
        if sigma > high * (1 + 1e-4):
            lowest = math.exp(scale.log_snr(high))
            raise ValueError(
                f"The strength is an SNR of {strength:.4g}; the noisiest level of this model has {lowest:.4g}. Raise it to that or more."
            )
        return sigma
    if not 0.0 <= strength <= high * (1 + 1e-4):
        raise ValueError(f"The strength is sigma {strength:.4g}; this model goes from 0 to {high:.4g}. Lower it.")
    return strength


def _below(grid: list[float], start: float) -> list[float]:
    return [s for s in grid if s < start * (1 - 1e-4)]


def sigmas_from(start: float, steps: int, grid: Callable[[int], list[float]]) -> list[float]:
    """`start`, then the part below it of the coarsest grid that gives `steps` steps; fewer where the finest has fewer.

    `grid(n)` are the falling sigmas of a scheduler at n steps, the last one 0.
    """
    low, high = 1, max(FINEST, steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_below(grid(middle), start)) >= steps else (middle + 1, high)
    return [start, *_below(grid(low), start)]


def geometric_sigmas(start: float, steps: int, lowest: float) -> list[float]:
    """The grid of the variance exploding process: `steps` steps in equal ratios from `start` to `lowest`, then 0."""
    ratio = (min(lowest, start) / start) ** (1 / max(1, steps - 1))
    return [start * ratio**i for i in range(steps)] + [0.0]


def frozen(result: torch.Tensor, original: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`result` with the original, bit for bit, wherever the mask (broadcastable, 1 = editable) is 0."""
    return torch.where(mask > 0, result, original)
