"""Weights in 8 bits with a scale for each output channel: half the size of half precision."""

from __future__ import annotations

import torch

SCALE = ".scale"


def _spread(scale: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Scales in the shape that multiplies a weight."""
    return scale.view(-1, *[1] * (over.ndim - 1)) if over.ndim > 1 else scale


def quantised(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight as int8 under its own name, and as NAME.scale its steps in float32: one for each output channel of a matrix or a
    convolution, one for all of anything else."""
    made = {}
    for name, weight in ((k, w.detach().float()) for k, w in weights.items()):
        largest = weight.flatten(1).abs().amax(1) if weight.ndim > 1 else weight.abs().amax()
        made[f"{name}{SCALE}"] = largest.clamp(min=1e-8) / 127
        made[name] = (weight / _spread(made[f"{name}{SCALE}"], weight)).round().to(torch.int8)
    return made


def restored(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in float32, each right to half a step."""
    return {k: v.float() * _spread(stored[f"{k}{SCALE}"], v) for k, v in stored.items() if not k.endswith(SCALE)}
