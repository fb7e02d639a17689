"""How the demo model's weights, stored in few bytes, are read; `tests/demo/packing.py` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from ...guidance.errors import quoted
from ..instruct_pix2pix import FIRST, widened

DENOISER = "model.diffusion_model."
BASE = "base"  # in the metadata of differences: the name of the denoiser that they are from


def name_of(stored: Mapping[str, torch.Tensor]) -> str:
    """A short name for the denoiser among the tensors of a demo model's file, as they are stored."""
    found = hashlib.sha256()
    for key in sorted(k for k in stored if k.startswith(DENOISER)):
        tensor = stored[key].detach().cpu().contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def check_base(about: Mapping[str, str], stored: Mapping[str, torch.Tensor], file: str, base_file: str) -> None:
    """Refuses differences, whose metadata `about` is, from another denoiser than that of a demo model's file. The files are named in the error."""
    wanted, own = about.get(BASE), name_of(stored)
    if wanted != own:
        raise ValueError(
            f"{quoted(file)} holds differences from the denoiser {wanted or 'that it does not name'}, but that of {quoted(base_file)} is {own}. Give the "
            "demo model that it was made from, or make it again from this one with tests/demo/make_instruct.py."
        )


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
