"""Where an edited image lies on its source: the shift and scale between them, to a fraction of a pixel.

Instruction editors move an image by pixels and stretch it a little. Gauss-Newton on a pyramid of images (Lucas and Kanade 1981; the
robust form of Baker and Matthews 2004; the mean of both images' gradients, Benhimane and Malis 2004) finds by how much, and how surely,
from whatever the edit was not to change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .diffedit import dilated

COARSEST = 24  # pixels of the shorter side at which the search starts
LEAST = 8  # pixels of the shorter side of an image whose motion can be found
ITERATIONS = 12  # at each size
DONE = 1e-3  # pixels that a step moves the border by
REACH = 0.05  # share of the shorter side that an image may have moved by
BLEED = 2  # pixels next to what has no weight that interpolation mixes with it
JUMP = 0.5  # pixels of motion by which an edge may still be off and count: what is right in three edges of a thing must not lose the fourth
ALIKE = 4  # pixels of a side in which errors are taken to be the same, where the motion's own is found
NOISE = 1 / 255  # that any image has at least


class Motion(NamedTuple):
    """The pixel p of the source, counted from the center, is the pixel `scale * p + shift` of the edit; both (B, 2), x before y."""

    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def none(cls, count: int) -> Motion:
        return cls(torch.ones(count, 2), torch.zeros(count, 2))

    def distance(self, height: int, width: int) -> torch.Tensor:
        """How far the farthest pixel of an image moves, in pixels, (B,)."""
        return (self.shift.abs() + (self.scale - 1).abs() * self.scale.new_tensor([width, height]) / 2).amax(1)

    def undone(self, image: torch.Tensor) -> torch.Tensor:
        """The edit (B, C, H, W) moved back onto its source; beyond its border its edge pixels."""
        height, width = image.shape[-2:]
        x, y = (s[:, None] * _centered(n).to(image) + t[:, None] for n, s, t in zip((width, height), self.scale.T, self.shift.T))
        grid = [(x / (width / 2))[:, None].expand(-1, height, -1), (y / (height / 2))[:, :, None].expand(-1, -1, width)]
        return F.grid_sample(image, torch.stack(grid, -1), "bicubic", "border", align_corners=False)

    def seen(self, height: int, width: int) -> torch.Tensor:
        """1 where a pixel of the source lies inside the edit, else 0: (B, 1, H, W)."""
        x, y = ((s[:, None] * _centered(n) + t[:, None]).abs() <= n / 2 - 1 for n, s, t in zip((width, height), self.scale.T, self.shift.T))
        return (y[:, :, None] & x[:, None])[:, None].float()


def _centered(size: int) -> torch.Tensor:
    return torch.arange(size) - (size - 1) / 2


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)


def recolored(edit: torch.Tensor, source: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """An edit (B, C, H, W) under the linear map of its colors that brings it closest to the source where the weight (B, 1, H, W) is.

    So that brightness and tint play no part, and that things are seen whose brightness is that of their ground.
    """
    mean, goal = _mean(edit, weight), _mean(source, weight)
    apart, wanted = (edit - mean).flatten(2), (source - goal).flatten(2)
    light = weight.flatten(2) / weight.flatten(2).sum(2, keepdim=True).clamp(min=1e-6)
    own, both = (apart * light) @ apart.mT, (wanted * light) @ apart.mT
    ridge = 1e-3 * own.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-6)
    change = torch.linalg.solve(own + ridge[:, None, None] * torch.eye(edit.shape[1]).to(edit), both, left=False)
    return (change @ apart).view_as(edit) + goal


def likeness(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The correlation (B,) of the colors of two images (B, C, H, W) where the weight (B, 1, H, W) is, recolored; 1 = the same image."""
    a, b = (x - _mean(x, weight) for x in (source, recolored(edit, source, weight)))
    both, one, other = ((x * y * weight).sum((1, 2, 3)) for x, y in ((a, b), (a, a), (b, b)))
    return both / (one * other).sqrt().clamp(min=1e-6)


def _halves(source: torch.Tensor, edit: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both at half the size, again and again; the smallest first."""
    levels = [(source, edit)]
    while min(levels[0][0].shape[-2:]) >= 2 * COARSEST:
        levels.insert(0, tuple(F.avg_pool2d(x, 2) for x in levels[0]))
    return levels


def registered(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> tuple[Motion, torch.Tensor]:
    """The motion of each image of an edit against its source, both (B, 3, H, W), by what is where the weight (B, 1, H, W) is, and the standard
    error (B,) in pixels of where it puts the farthest pixel without weight.

    Right to about a tenth of a pixel for shifts and scales up to 4 % of the image where its error says so. What has no weight has moved too: as
    far around it as the motion may still be off, nothing counts. What changed although it has weight counts less the more it differs (Cauchy's
    weights). Where there is nothing to see, the answer is no motion, or one with a large error.
    """
    motion, short = Motion.none(len(source)), min(source.shape[-2:])
    if short < LEAST:
        return motion, torch.full([len(source)], torch.inf)
    levels, left = _halves(source, edit), REACH * short
    for number, (a, b) in enumerate(levels):
        cell = 2 ** (len(levels) - 1 - number)
        own = dilated(weight[:, 0], -round(left + (cell if cell > 1 else BLEED)))[:, None]
        own = -F.max_pool2d(-own, cell)
        motion = Motion(motion.scale, motion.shift * (2 if number else 1))
        half = motion.scale.new_tensor([a.shape[-1] / 2, a.shape[-2] / 2])
        for _ in range(ITERATIONS):
            step = _Step.of(motion, a, b, own)
            change = step.change.clamp(-REACH * short / cell, REACH * short / cell)
            motion = Motion(motion.scale + change[:, 2:] / half, motion.shift + change[:, :2])
            if change.abs().max() < DONE:
                break
        left = cell / 2
    return motion, _farthest(step.covariance(), weight)


class _Step(NamedTuple):
    """One step of Gauss-Newton. In (shift x, shift y, growth x, growth y), in pixels, growth at the border: what to add to a motion (B, 4), the
    inverse (B, 4, 4) of its information, and the pull (B, 4, H, W) of every pixel."""

    change: torch.Tensor
    inverse: torch.Tensor
    pull: torch.Tensor

    @classmethod
    def of(cls, motion: Motion, source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> _Step:
        height, width = source.shape[-2:]
        weight = weight * motion.seen(height, width)
        moved = recolored(motion.undone(edit), source, weight)
        x, y = (torch.gradient((source + moved) / 2, dim=side)[0] for side in (3, 2))
        left, steep = source - moved, (x**2 + y**2).sum(1, keepdim=True).sqrt()
        weight = weight / (1 + (left.norm(dim=1, keepdim=True) / _usual(left, weight, steep)) ** 2)
        across, down = _centered(width) / (width / 2), _centered(height)[:, None] / (height / 2)
        slopes = torch.stack([x, y, x * across, y * down], 1)  # (B, 4, 3, H, W)
        pull, flat = (slopes * (weight * left)[:, None]).sum(2), slopes.flatten(2)
        matrix = (slopes * weight[:, None]).flatten(2) @ flat.mT
        ridge = 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
        inverse = torch.linalg.inv(matrix + ridge[:, None, None] * torch.eye(4))
        return cls((inverse @ pull.sum((2, 3))[..., None])[..., 0], inverse, pull)

    def covariance(self) -> torch.Tensor:
        """(B, 4, 4) of the motion, by how differently places pull at it (White 1980), each of them as a whole."""
        places = F.avg_pool2d(self.pull, ALIKE, ceil_mode=True, divisor_override=1).flatten(2)
        return self.inverse @ (places @ places.mT) @ self.inverse + NOISE**2 * self.inverse


def _usual(left: torch.Tensor, weight: torch.Tensor, steep: torch.Tensor) -> torch.Tensor:
    """How far two images may differ at each pixel (B, 1, H, W) and still show the same."""
    weight = weight * steep  # a plain ground says nothing of how far the things on it usually differ
    usual = (left.norm(dim=1, keepdim=True) * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return (1.5 * usual + JUMP * steep).clamp(min=1e-6)


def _farthest(covariance: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The largest standard error (B,) of a motion at what has no weight; of an image with weight everywhere, at any pixel."""
    height, width = weight.shape[-2:]
    across, down = _centered(width) / (width / 2), _centered(height)[:, None] / (height / 2)
    parts = ((covariance[:, i, i], covariance[:, i, i + 2], covariance[:, i + 2, i + 2]) for i in (0, 1))
    x, y = (a[:, None, None] + 2 * b[:, None, None] * at + c[:, None, None] * at**2 for (a, b, c), at in zip(parts, (across, down)))
    used = weight[:, 0] == 0
    used = used | ~used.any(2).any(1)[:, None, None]
    return ((x + y) * used).amax((1, 2)).sqrt()
