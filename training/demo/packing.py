"""How the demo model's weights, stored in few bytes, are read; `tests/demo/packing.py` writes them."""

from __future__ import annotations

import torch

from ..instruct_pix2pix import FIRST, widened


def base_of(name: str, weight: torch.Tensor, instruct: torch.Tensor) -> torch.Tensor:
    """A weight of the demo model in the shape that the instruction model has it."""
    return widened(weight.float(), instruct.shape[1]) if name == FIRST else weight.float()


def unpacked(stored: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An instruction model's weights from its differences from the demo model's denoiser, in 8 bits; each right to half a step."""
    return {k: base_of(k, base[k], apart) + apart for k, apart in restored(stored).items()}


SCALE = ".scale"


def spread(scale: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Scales in the shape that multiplies a weight."""
    return scale.view(-1, *[1] * (over.ndim - 1)) if over.ndim > 1 else scale


def restored(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in float32, each right to half a step; those without a scale as they are stored."""
    scaled = {k: v.float() * spread(stored[f"{k}{SCALE}"], v) for k, v in stored.items() if f"{k}{SCALE}" in stored}
    return {k: v for k, v in stored.items() if not k.endswith(SCALE)} | scaled
