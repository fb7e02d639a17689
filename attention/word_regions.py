"""Regions by words: which part of an image belongs to which phrase of its prompt, from the attention of one noise level.

As FreeFuse (arXiv 2510.23515): the places that attend most to a phrase and least to the others are its anchors; a place belongs to the
phrase whose anchors its features resemble most. Here the places that attend least to all phrases are anchors of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

OVERLAP = 0.01  # of the image, above which it is worth a word
ABSENT = -2.0  # less than any cosine
ATTENTION = 0.3  # how much the attention itself counts beside the cosine, which things that look alike share; measured on the demo model


def _resembling(scores: torch.Tensor, features: torch.Tensor, share: float) -> torch.Tensor:
    """Cosines (B, C, N) of features (B, N, D), of length 1, with the mean of those at the best `share` of scores (B, C, N)."""
    places = scores.topk(max(1, round(share * scores.shape[-1])), -1).indices
    chosen = torch.zeros_like(scores).scatter_(-1, places, 1.0)
    return F.normalize(chosen @ features, dim=-1) @ features.transpose(1, 2)


def likeness(maps: torch.Tensor, features: torch.Tensor, anchors: float, rest: float) -> torch.Tensor:
    """How much the places of one layer resemble the anchors of each phrase, and then of the rest: cosines (B, C + 1, N).

    Those of phrases are raised where a place attends to the phrase more than to the others, and lowered where less.

    `maps` (B, C, N): how much places attend to the phrases; `features` (B, N, D): what attention gives there. `anchors` and `rest` are the
    shares of all places that are anchors of a phrase and of the rest; where `rest` is 0 there is none: (B, C, N). A phrase that no place attends
    to, as of an image whose prompt lacks it, gets ABSENT.
    """
    shares = maps / maps.mean(-1, keepdim=True).clamp_min(1e-12)
    features = F.normalize(features.float(), dim=-1)
    found = [_resembling((maps.shape[1] + 1) * shares - shares.sum(1, keepdim=True), features, anchors)]
    present = maps.amax(-1, keepdim=True) > 0
    own = shares / shares.sum(1, keepdim=True).clamp_min(1e-12) - 1 / present.sum(1, keepdim=True).clamp_min(1)
    found[0] = torch.where(present, found[0] + ATTENTION * own, ABSENT)
    found += [_resembling(-shares.amax(1, keepdim=True), features, rest)] if rest else []
    return torch.cat(found, 1)


def regions(resemblance: torch.Tensor, phrases: int, size: Sequence[int], spread: int = 0) -> torch.Tensor:
    """Masks (B, phrases, [frames,] H, W) in [0, 1] of cosines (B, phrases or one more, [frames,] h, w): who is first at a place has it.

    Among phrases a place counts with its neighbors. Each is then widened by `spread` of these places into the rest, to the nearest phrase; what several claim
    at once is shared.
    """
    own, rest = resemblance[:, :phrases], resemblance[:, phrases:]
    owned = F.one_hot(_smoothed(own).argmax(1), phrases).movedim(-1, 1).float()
    if rest.shape[1]:
        owned = owned * (own.amax(1, keepdim=True) > rest)
    for _ in range(spread):
        claims = _widened(owned) * (1 - owned.sum(1, keepdim=True))
        owned = owned + claims / claims.sum(1, keepdim=True).clamp_min(1)
    return F.interpolate(owned, tuple(size), mode="trilinear" if owned.ndim == 5 else "bilinear")


def _smoothed(values: torch.Tensor) -> torch.Tensor:
    """Values (B, C, [frames,] h, w), each the mean of it and its neighbors."""
    return F.avg_pool2d(values.flatten(0, -3)[:, None], 3, 1, 1, count_include_pad=False).reshape(values.shape)


def _widened(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, C, [frames,] h, w) with one more cell on each side."""
    return F.max_pool2d(masks.flatten(0, -3)[:, None], 3, 1, 1).reshape(masks.shape)


def filled(masks: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks (B, C, ...), empty ones replaced by the whole image, and which were empty, bool (B, C); of the phrases that are `asked` for, (B, C)."""
    empty = (masks.flatten(2).amax(-1) == 0) & asked
    return torch.where(empty.view(*empty.shape, *[1] * (masks.ndim - 2)), 1.0, masks), empty


def described(phrases: Sequence[str], masks: torch.Tensor, empty: torch.Tensor) -> list[str]:
    """A line for each image: how much of it each region covers, which phrases have no place, and what regions share."""
    shares, shared = masks.flatten(2).mean(-1), (masks.sum(1) - 1).clamp_min(0).flatten(1).mean(1)
    return [_line(i, phrases, shares[i].tolist(), empty[i].tolist(), float(shared[i])) for i in range(len(masks))]


def _line(number: int, phrases: Sequence[str], shares: list[float], empty: list[bool], shared: float) -> str:
    parts = [f"{p} " + ("has no place: its region is the whole image" if e else f"{100 * s:.0f} %") for p, s, e in zip(phrases, shares, empty)]
    parts += [f"regions overlap on {100 * shared:.0f} %"] if shared > OVERLAP and not any(empty) else []
    return f"image {number + 1}: {', '.join(parts)}"
