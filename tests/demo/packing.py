"""Stores the demo model's weights in few bytes, as `controlled_diffusion.training.demo.packing` reads them."""

from __future__ import annotations

import torch
from controlled_diffusion.training.demo.packing import SCALE, base_of, spread


def packed(weights: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The differences from the demo model's denoiser in 8 bits."""
    return quantized({k: w.detach().float() - base_of(k, base[k], w) for k, w in weights.items()})


def quantized(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight as int8 under its own name, and as NAME.scale its steps in float32: one for each output channel of a matrix or a
    convolution, one for all of anything else."""
    made = {}
    for name, weight in ((k, w.detach().float()) for k, w in weights.items()):
        largest = weight.flatten(1).abs().amax(1) if weight.ndim > 1 else weight.abs().amax()
        made[f"{name}{SCALE}"] = largest.clamp(min=1e-8) / 127
        made[name] = (weight / spread(made[f"{name}{SCALE}"], weight)).round().to(torch.int8)
    return made
