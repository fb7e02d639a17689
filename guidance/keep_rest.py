"""Puts an edit into its source so that nothing else changes: moved onto it, with its colors, the source's own pixels outside the mask.

Colors are matched by what lies outside the mask: either one linear map of mean and covariance (the optimal transport of Gaussians; Pitie
and Kokaram 2007), or that and a smooth field of what is still different, drawn from the border into the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .diffedit import blurred, dilated, mixed
from .registration import Motion, likeness, mean, registered

COLORS = ("at the edge", "whole image", "off")
SURE = 0.6  # correlation outside the mask from which a motion is believed
STILL = 0.1  # pixels up to which an image has not moved
UNSURE = 0.1  # standard error in pixels, at what the edit changed, up to which a motion is believed
CUT = 0.15  # share of a change from which what lies outside the mask is missed; below: noise, motion of 0.3 pixel, a glow over the image
CELLS = 64  # along the shorter side, each with one change
VISIBLE = 8 / 255  # change of a cell's color from which it can be seen
LEAST = 3e-4  # energy that an edit has at least: about a three-hundredth of the image changed by 0.3
UNSEEN = 1e-3  # variance of colors up to which a direction counts as not seen, and stays as it is


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


def kept_weight(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far each pixel (B, 1, H, W) shows the same in both: less the more it differs from what is usual where the weight is.

    What the edit changed outside the mask, such as the rim of a thing, must not lend its colors.
    """
    apart = (source - edit).abs().mean(1, keepdim=True)
    return 1 / (1 + (apart / (1.5 * mean(apart, weight)).clamp(min=1e-3)) ** 2) ** 2


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


def _statistics(image: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (B, C, 1), covariance (B, C, C)) of an image where the weight is."""
    values, weight = image.flatten(2), weight.flatten(2)
    total = weight.sum(2, keepdim=True).clamp(min=1e-6)
    mean = (values * weight).sum(2, keepdim=True) / total
    apart = values - mean
    return mean, (apart * weight) @ apart.mT / total + UNSEEN * torch.eye(image.shape[1]).to(image)


def _root(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=1e-9) ** power) @ vectors.mT


def matched(edit: torch.Tensor, source: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The edit (B, C, H, W) with the source's mean and covariance of colors where the weight (B, 1, H, W) is; the map holds everywhere."""
    (mean, own), (goal, wanted) = _statistics(edit, weight), _statistics(source, weight)
    root, back = _root(own, 0.5), _root(own, -0.5)
    change = back @ _root(root @ wanted @ root, 0.5) @ back
    seen = weight.flatten(1).sum(1) > 0
    made = (change @ (edit.flatten(2) - mean) + goal).view_as(edit)
    return torch.where(seen[:, None, None, None], made, edit)


def spread(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values (B, C, H, W) where the weight (B, 1, H, W) is 1, and elsewhere the smooth field that they lead to: pull and push on a pyramid."""
    if min(values.shape[-2:]) < 2:
        total = weight.sum((2, 3), keepdim=True)
        return ((values * weight).sum((2, 3), keepdim=True) / total.clamp(min=1e-6)).expand_as(values)
    own = F.avg_pool2d(weight, 2, ceil_mode=True)
    below = F.avg_pool2d(values * weight, 2, ceil_mode=True) / own.clamp(min=1e-6)
    coarse = F.interpolate(spread(below, own.clamp(max=0.5) * 2), values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(coarse, values, weight)
