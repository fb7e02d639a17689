"""How the demo model's weights are stored in few bytes."""

from __future__ import annotations

import torch

from ..instruct_pix2pix import FIRST, widened


def _inputs(weight: torch.Tensor) -> int:
    return weight.shape[1] if weight.ndim > 1 else 0


def _base_of(name: str, weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """A weight of the demo model in the shape that the instruction model has it."""
    return widened(weight.float(), inputs) if name == FIRST else weight.float()


def packed(weights: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The differences from the demo model's denoiser in 8 bits."""
    return quantized({k: w.detach().float() - _base_of(k, base[k], _inputs(w)) for k, w in weights.items()})


def unpacked(stored: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `packed`, up to half a step of each scale."""
    return {k: _base_of(k, base[k], _inputs(apart)) + apart for k, apart in restored(stored).items()}


SCALE = ".scale"


def _spread(scale: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Scales in the shape that multiplies a weight."""
    return scale.view(-1, *[1] * (over.ndim - 1)) if over.ndim > 1 else scale


def quantized(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
