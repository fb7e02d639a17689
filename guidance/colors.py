"""The colors of an edit beside those of its source: compared, and matched by what lies outside its mask.

Matched by one linear map of mean and covariance (the optimal transport of Gaussians; Pitie and Kokaram 2007), or by that and a smooth field
of what is still different, drawn from the border into the mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

UNSEEN = 1e-3  # variance of colors up to which a direction counts as not seen, and stays as it is


def mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mean (B, C, 1, 1) of an image (B, C, H, W) where the weight (B, 1, H, W) is."""
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)


def recolored(edit: torch.Tensor, source: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """An edit (B, C, H, W) under the linear map of its colors that brings it closest to the source where the weight (B, 1, H, W) is.

    So that brightness and tint play no part, and that things are seen whose brightness is that of their ground.
    """
    goal = mean(source, weight)
    apart, wanted = (edit - mean(edit, weight)).flatten(2), (source - goal).flatten(2)
    light = weight.flatten(2) / weight.flatten(2).sum(2, keepdim=True).clamp(min=1e-6)
    own, both = (apart * light) @ apart.mT, (wanted * light) @ apart.mT
    ridge = 1e-3 * own.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-6)
    change = torch.linalg.solve(own + ridge[:, None, None] * torch.eye(edit.shape[1]).to(edit), both, left=False)
    return (change @ apart).view_as(edit) + goal


def likeness(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The correlation (B,) of the colors of two images (B, C, H, W) where the weight (B, 1, H, W) is, recolored; 1 = the same image."""
    a, b = (x - mean(x, weight) for x in (source, recolored(edit, source, weight)))
    both, one, other = ((x * y * weight).sum((1, 2, 3)) for x, y in ((a, b), (a, a), (b, b)))
    return both / (one * other).sqrt().clamp(min=1e-6)


def kept_weight(source: torch.Tensor, edit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far each pixel (B, 1, H, W) shows the same in both: less the more it differs from what is usual where the weight is.

    What the edit changed outside the mask, such as the rim of a thing, must not lend its colors.
    """
    apart = (source - edit).abs().mean(1, keepdim=True)
    return 1 / (1 + (apart / (1.5 * mean(apart, weight)).clamp(min=1e-3)) ** 2) ** 2


def _statistics(image: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (B, C, 1), covariance (B, C, C)) of an image where the weight is."""
    values, weight = image.flatten(2), weight.flatten(2)
    total = weight.sum(2, keepdim=True).clamp(min=1e-6)
    center = (values * weight).sum(2, keepdim=True) / total
    apart = values - center
    return center, (apart * weight) @ apart.mT / total + UNSEEN * torch.eye(image.shape[1]).to(image)


def _root(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=1e-9) ** power) @ vectors.mT


def matched(edit: torch.Tensor, source: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The edit (B, C, H, W) with the source's mean and covariance of colors where the weight (B, 1, H, W) is; the map holds everywhere."""
    (center, own), (goal, wanted) = _statistics(edit, weight), _statistics(source, weight)
    root, back = _root(own, 0.5), _root(own, -0.5)
    change = back @ _root(root @ wanted @ root, 0.5) @ back
    seen = weight.flatten(1).sum(1) > 0
    made = (change @ (edit.flatten(2) - center) + goal).view_as(edit)
    return torch.where(seen[:, None, None, None], made, edit)


def spread(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values (B, C, H, W) where the weight (B, 1, H, W) is 1, and elsewhere the smooth field that they lead to: pull and push on a pyramid."""
    if min(values.shape[-2:]) < 2:
        return mean(values, weight).expand_as(values)
    own = F.avg_pool2d(weight, 2, ceil_mode=True)
    below = F.avg_pool2d(values * weight, 2, ceil_mode=True) / own.clamp(min=1e-6)
    coarse = F.interpolate(spread(below, own.clamp(max=0.5) * 2), values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(coarse, values, weight)
