"""Where an edited image lies on its source: the shift and scale between them, to a fraction of a pixel.

Instruction editors move an image by pixels and stretch it a little. Gauss-Newton on a pyramid of images (Lucas and Kanade 1981; the
robust form of Baker and Matthews 2004; the mean of both images' gradients, Benhimane and Malis 2004) finds by how much, and how surely,
from whatever the edit was not to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .colors import mean, recolored
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

    def _lines(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The edit's x (B, 1, W) and y (B, H, 1) of the source's columns and rows."""
        (across, down), (wide, high) = self.shift.T[..., None, None], self.scale.T[..., None, None]
        x, y = _centered(height, width)
        return wide * x + across, high * y + down

    def undone(self, image: torch.Tensor) -> torch.Tensor:
        """The edit (B, C, H, W) moved back onto its source; beyond its border its edge pixels."""
        height, width = image.shape[-2:]
        x, y = self._lines(height, width)
        grid = torch.stack(torch.broadcast_tensors(x / (width / 2), y / (height / 2)), -1)
        return F.grid_sample(image, grid, "bicubic", "border", align_corners=False)

    def seen(self, height: int, width: int) -> torch.Tensor:
        """1 where a pixel of the source lies inside the edit, else 0: (B, 1, H, W)."""
        x, y = self._lines(height, width)
        return ((x.abs() <= width / 2 - 1) & (y.abs() <= height / 2 - 1))[:, None].float()


def _centered(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (W,) and y (H, 1) of an image's pixels, counted from its center."""
    x, y = (torch.arange(n) - (n - 1) / 2 for n in (width, height))
    return x, y[:, None]


def _growth(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How far pixels move in x (W,) and in y (H, 1) where the border moves by one."""
    x, y = _centered(height, width)
    return x / (width / 2), y / (height / 2)


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
    reach = off = REACH * short
    for cell, *images in _halves(source, edit):
        own = -F.max_pool2d(-dilated(weight[:, 0], -round(off + max(cell, BLEED)))[:, None], cell)
        found, covariance = _refined(Motion(motion.scale, motion.shift / cell), *images, own, reach / cell)
        motion, off = Motion(found.scale, found.shift * cell), cell / 2
    return motion, _farthest(covariance, weight)


def _halves(source: torch.Tensor, edit: torch.Tensor, cell: int = 1) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(pixels of the whole image in one, source, edit): both at half the size, again and again; the smallest first."""
    if min(source.shape[-2:]) >= 2 * COARSEST:
        yield from _halves(F.avg_pool2d(source, 2), F.avg_pool2d(edit, 2), 2 * cell)
    yield cell, source, edit


def _refined(motion: Motion, source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor, most: float) -> tuple[Motion, torch.Tensor]:
    """A motion and its covariance (see `_step`) after the steps of one size, each of at most so many of its pixels."""
    half = motion.scale.new_tensor([source.shape[-1] / 2, source.shape[-2] / 2])
    for _ in range(ITERATIONS):
        change, covariance = _step(motion, source, edit, weight)
        change = change.clamp(-most, most)
        motion = Motion(motion.scale + change[:, 2:] / half, motion.shift + change[:, :2])
        if change.abs().max() < DONE:
            break
    return motion, covariance


def _step(motion: Motion, source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of Gauss-Newton: what to add to a motion (B, 4), and the motion's covariance (B, 4, 4). Both in (shift x, shift y, growth x,
    growth y), in pixels, growth at the border.

    The covariance is by how differently places pull at the motion (White 1980), each of them as a whole.
    """
    height, width = source.shape[-2:]
    weight = weight * motion.seen(height, width)
    moved = recolored(motion.undone(edit), source, weight)
    x, y = (torch.gradient((source + moved) / 2, dim=side)[0] for side in (3, 2))
    residual = source - moved
    weight = _believed(residual, weight, (x**2 + y**2).sum(1, keepdim=True).sqrt())
    across, down = _growth(height, width)
    slopes = torch.stack([x, y, x * across, y * down], 1)  # (B, 4, 3, H, W)
    information = (slopes * weight[:, None]).flatten(2) @ slopes.flatten(2).mT
    ridge = 1e-6 * information.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    inverse = torch.linalg.inv(information + ridge[:, None, None] * torch.eye(4))
    pull = (slopes * (weight * residual)[:, None]).sum(2)
    places = F.avg_pool2d(pull, ALIKE, ceil_mode=True, divisor_override=1).flatten(2)
    covariance = inverse @ (places @ places.mT) @ inverse + NOISE**2 * inverse
    return (inverse @ pull.sum((2, 3))[..., None])[..., 0], covariance


def _believed(residual: torch.Tensor, weight: torch.Tensor, steep: torch.Tensor) -> torch.Tensor:
    """The weight (B, 1, H, W), less the more two images differ than is usual where they are steep: a plain ground says nothing of how far the
    things on it usually differ."""
    apart = residual.norm(dim=1, keepdim=True)
    usual = 1.5 * mean(apart, weight * steep) + JUMP * steep
    return weight / (1 + (apart / usual.clamp(min=1e-6)) ** 2)


def _farthest(covariance: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The largest standard error (B,) of a motion at what has no weight; of an image with weight everywhere, at any pixel."""
    own, both = (covariance.diagonal(offset, 1, 2)[..., None, None] for offset in (0, 2))
    x, y = (own[:, i] + 2 * both[:, i] * at + own[:, i + 2] * at**2 for i, at in enumerate(_growth(*weight.shape[-2:])))
    asked = weight[:, 0] == 0
    asked = asked | ~asked.any(2).any(1)[:, None, None]
    return ((x + y) * asked).amax((1, 2)).sqrt()
