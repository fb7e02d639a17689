"""Where an edited image lies on its source: the shift and scale between them, to a fraction of a pixel.

Instruction editors move an image by pixels and stretch it a little. Gauss-Newton on a pyramid of images (Lucas and Kanade 1981; the
robust form of Baker and Matthews 2004) finds by how much, from whatever the edit was not to change.
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
BLEED = 2  # pixels next to what has no weight that interpolation mixes with it
LUMA = (0.299, 0.587, 0.114)


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


def _luma(image: torch.Tensor) -> torch.Tensor:
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _standard(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values (B, 1, H, W) with mean 0 and deviation 1 where the weight is, so that brightness and contrast play no part."""
    total = weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    apart = values - (values * weight).sum((1, 2, 3), keepdim=True) / total
    return apart / ((apart**2 * weight).sum((1, 2, 3), keepdim=True) / total).sqrt().clamp(min=1e-6)


def likeness(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The correlation (B,) of the brightness of two images (B, 3, H, W) where the weight (B, 1, H, W) is; 1 = the same image."""
    a, b = (_standard(_luma(x), weight) for x in (source, edit))
    return (a * b * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6)


def registered(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> Motion:
    """The motion of each image of an edit against its source, both (B, 3, H, W), by what lies where the weight (B, 1, H, W) is.

    Right to about a tenth of a pixel for shifts and scales up to 4 % of the image, wherever something with weight can be seen. What changed
    although it has weight counts less the more it differs (Cauchy's weights). Where there is nothing to see, the answer is no motion.
    """
    if min(source.shape[-2:]) < LEAST:
        return Motion.none(len(source))
    levels = [(_luma(source), _luma(edit), weight)]
    while min(levels[-1][0].shape[-2:]) >= 2 * COARSEST:
        levels.append(tuple(F.avg_pool2d(x, 2) for x in levels[-1]))
    levels[0] = (*levels[0][:2], dilated(weight[:, 0], -BLEED)[:, None])
    motion = Motion.none(len(source))
    for a, b, own in reversed(levels):
        motion = Motion(motion.scale, motion.shift * (1 if a is levels[-1][0] else 2))
        for _ in range(ITERATIONS):
            step = _step(motion, a, b, own)
            half = step.new_tensor([a.shape[-1] / 2, a.shape[-2] / 2])
            motion = Motion(motion.scale + step[:, 2:] / half, motion.shift + step[:, :2])
            if step.abs().max() < DONE:
                break
    return motion


def _step(motion: Motion, source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What to add to (shift x, shift y, growth x, growth y), (B, 4) in pixels, growth at the border."""
    height, width = source.shape[-2:]
    weight = weight * motion.seen(height, width)
    target, moved = _standard(source, weight), _standard(motion.undone(edit), weight)
    x, y = (torch.gradient(moved, dim=side)[0] for side in (3, 2))
    across, down = _centered(width) / (width / 2), _centered(height)[:, None] / (height / 2)
    slopes = torch.stack([x, y, x * across, y * down], -1)[:, 0].flatten(1, 2)
    left, weight = (target - moved).flatten(1), weight.flatten(1)
    steep = weight * torch.hypot(x, y).flatten(1)  # a plain ground says nothing of how far the things on it usually differ
    usual = 1.5 * (left.abs() * steep).sum(1, keepdim=True) / steep.sum(1, keepdim=True).clamp(min=1e-6)
    weighted = slopes * (weight / (1 + (left / usual.clamp(min=1e-6)) ** 2))[..., None]
    matrix, goal = weighted.mT @ slopes, weighted.mT @ left[..., None]
    ridge = 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    return torch.linalg.solve(matrix + ridge[:, None, None] * torch.eye(4), goal)[..., 0]
