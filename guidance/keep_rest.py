"""Puts an edit into its source so that nothing else changes: moved onto it, with its colors, the source's own pixels outside the mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .colors import kept_weight, likeness, matched, spread
from .diffedit import blurred, dilated, mixed
from .registration import Motion, registered

COLORS = ("at the edge", "whole image", "off")
SURE = 0.6  # correlation outside the mask from which a motion is believed
STILL = 0.1  # pixels up to which an image has not moved
UNSURE = 0.1  # standard error in pixels, at what the edit changed, up to which a motion is believed
CUT = 0.15  # share of a change from which what lies outside the mask is missed; below: noise, motion of 0.3 pixel, a glow over the image
CELLS = 64  # along the shorter side, each with one change
VISIBLE = 8 / 255  # change of a cell's color from which it can be seen
LEAST = 3e-4  # energy that an edit has at least: about a three-hundredth of the image changed by 0.3


class Kept(NamedTuple):
    """The image and its mask (0 = the source's pixels, bit for bit); how the edit had moved, whether that is undone, how alike both are
    outside the mask then, the motion's standard error inside it, in pixels, and the share of what the edit changed that lies outside."""

    image: torch.Tensor
    mask: torch.Tensor
    motion: Motion
    undone: torch.Tensor
    likeness: torch.Tensor
    error: torch.Tensor
    outside: torch.Tensor


def keep_rest(source: torch.Tensor, edit: torch.Tensor, mask: torch.Tensor, feather: int = 0, align: bool = True, colors: str = COLORS[0]) -> Kept:
    """The edit (B, 3, H, W) inside the mask (B, H, W; 1 = may change), the source elsewhere.

    The edit fades out over `feather` pixels inside the mask. A motion that is not sure (`UNSURE`), or whose outcome is not alike
    enough (`SURE`), is not undone.
    """
    rest, size = 1 - (mask > 0).to(source)[:, None], edit.shape[-2:]
    motion, error = registered(source, edit, rest) if align else (Motion.none(len(edit)), torch.zeros(len(edit)))
    back, seen = motion.undone(edit), rest * motion.seen(*size)
    found = likeness(source, back, seen)
    undone = (found >= SURE) & (error <= UNSURE) & (motion.distance(*size) > STILL)
    chosen = undone[:, None, None, None]
    edit, seen = torch.where(chosen, back, edit), torch.where(chosen, seen, rest)
    unchanged = rest * kept_weight(source, matched(edit, source, rest), rest)
    colored = matched(edit, source, unchanged)
    outside = share_outside(source - colored, 1 - rest, seen)
    if colors != "off":
        edit = colored
    if colors == "at the edge":
        edit = edit + spread(source - edit, unchanged)
    inside = torch.minimum(blurred(dilated(mask, -feather), feather), mask) if feather else mask
    return Kept(mixed(edit.clamp(0, 1), source, inside[:, None]), inside, motion, undone, found, error, outside)


def share_outside(change: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """The share (B,) of the energy of a change (B, 3, H, W) that lies outside a mask; both sides of the mask (B, 1, H, W).

    Cells count whose mean color changed visibly, and 4 times as much as a quarter of those outside: not grain, fine detail that a VAE lost, or
    another light.
    """
    cell = max(1, min(change.shape[-2:]) // CELLS)
    sides = _, (rest, noise) = [_cells(change, weight, cell) for weight in (inside, outside)]
    usual = torch.where(rest > 0.5, noise, torch.nan).flatten(1).nanquantile(0.25, dim=1).nan_to_num()
    least = (4 * usual).clamp(min=VISIBLE)[:, None, None, None]
    within, beyond = ((area * level**2 * (level > least)).mean((1, 2, 3)) for area, level in sides)
    return beyond / (within + beyond).clamp(min=LEAST)


def _cells(change: torch.Tensor, weight: torch.Tensor, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight of each cell, and how far its mean color changed under it, both (B, 1, h, w)."""
    area = F.avg_pool2d(weight, cell, ceil_mode=True)
    color = F.avg_pool2d(change * weight, cell, ceil_mode=True) / area.clamp(min=1e-6)
    return area, color.square().mean(1, keepdim=True).sqrt()
