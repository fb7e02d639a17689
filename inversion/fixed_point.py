"""Fixed-point inversion: the step up that a step down undoes exactly (AIDI, arXiv 2309.04907, sections 3.2 and 3.3).

A step down leads from y to y + move(y). What leads to x solves y = x - move(y), and where move is gentle enough, putting y into the right
side again and again does so. Anderson acceleration mixes the last iterates instead, so that their residuals cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

ACCELERATIONS = ("anderson", "picard")
DEPTH = 3  # differences of iterates that Anderson acceleration mixes
RIDGE = 1e-13  # of the mixture's equations, relative


def precise(x: torch.Tensor) -> torch.Tensor:
    """x in float64, or in float32 on devices that have nothing finer (Apple's)."""
    return x.float() if x.device.type == "mps" else x.double()


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b| / |b| of each sample, (B,) in float64 where the device has it."""
    a, b = precise(a).flatten(1), precise(b).flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-12)


def anderson(ys: Sequence[torch.Tensor], images: Sequence[torch.Tensor]) -> torch.Tensor:
    """The next iterate of Anderson acceleration (type II) from the last iterates y and their images, oldest first.

    Of all affine mixtures of the images, the one whose residuals image - y nearly cancel; each sample by itself.
    """
    if len(ys) == 1:
        return images[0]
    residuals = torch.stack([precise(g - y).flatten(1) for y, g in zip(ys, images)], -1)
    steps = residuals.diff(dim=-1)
    gram = steps.mT @ steps
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-30)
    weights = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(len(ys) - 1).to(gram), steps.mT @ residuals[..., -1:])
    moves = torch.stack([b - a for a, b in zip(images, images[1:])], -1)
    return images[-1] - torch.einsum("b...m,bm->b...", moves, weights[..., 0].to(moves))


def solve(
    image: Callable, y: torch.Tensor, least: torch.Tensor, iterations: int, acceleration: str, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, residual (B,)) with y = image(y) nearly, from a start y (B, ...), after at most `iterations` calls of `image`.

    A sample's residual is the distance of its iterate from the iterate's image. Each sample stops by itself: done where the residual is at
    most `tolerance`. Where it is no smaller than the least so far (at first: than `least`), the iterate that had that one counts again, and
    Picard's iterations stop; Anderson's may rise before they fall and go on.
    """
    kept = answer = y
    active, ys, images = torch.ones_like(least, dtype=torch.bool), [], []

    def chosen(where, a, b):
        return torch.where(where.view(-1, *[1] * (y.ndim - 1)), a, b)

    for _ in range(iterations):
        ys, images = [*ys[-DEPTH:], y], [*images[-DEPTH:], image(y)]
        found = distance(images[-1], y)
        better = active & (found < least)
        after = anderson(ys, images) if acceleration == "anderson" else images[-1]
        kept = chosen(better, y, kept)
        answer = chosen(better, after, chosen(active, kept, answer))
        least = torch.where(better, found, least)
        active = (active if acceleration == "anderson" else better) & (found > tolerance)
        if not active.any():
            break
        y = chosen(active, after, y)
    return answer, least
