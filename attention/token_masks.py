"""Masks of an image at the tokens of a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F


def pooled(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Masks (B, [frames,] H, W) as means over the cells of a grid ([frames,] h, w): (B, [frames,] h, w)."""
    size = tuple(size)[-(masks.ndim - 1) :]
    pool = F.adaptive_avg_pool3d if masks.ndim == 4 else F.adaptive_avg_pool2d
    return masks if tuple(masks.shape[1:]) == size else pool(masks[:, None], size)[:, 0]


def grid_of(tokens: int, latent: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of a UNet's layer of so many tokens, a power of two smaller than the latent (H, W); None for no such layer."""
    sizes = ([math.ceil(n / 2**i) for n in latent[-2:]] for i in range(8))
    return next(((h, w) for h, w in sizes if h * w == tokens), None)


def in_slots(length: int, slots: Sequence[tuple[slice, torch.Tensor]]) -> torch.Tensor:
    """Values (B, n) at their places among `length` tokens, and 0 elsewhere: (B, length, 1)."""
    whole = slots[0][1].new_zeros(len(slots[0][1]), length)
    for place, values in slots:
        whole[:, place] = values[:, : place.stop - place.start]
    return whole[..., None]
