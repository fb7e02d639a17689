"""Reads an image of the demo world back into words and masks; numpy only, no network.

`read` finds the background and every thing; `judge` compares that with what a caption claims.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from .world import BACKGROUNDS, COLORS, OUTLINES, SHADE, SHAPES, SIZE, TEAL, TEXTURES, Caption, Claim, coverage

FOREGROUND = 55.0  # RGB distance from the background at which a pixel belongs to a thing
CHANGED = 25  # of 255, by which a color of a pixel has to differ to have changed
SMALLEST = 120  # pixels; anything below is a speck
_TEMPLATE = 32
_SIZES = (("small", 21.5), ("medium", 29.0), ("large", np.inf))


@dataclass(frozen=True)
class Seen:
    """One thing found in an image. `score` is the overlap (IoU) with the best shape template."""

    shape: str
    color: str
    texture: str
    size: str
    position: str
    mask: np.ndarray  # bool (128, 128)
    score: float


@dataclass(frozen=True)
class Reading:
    background: str
    things: tuple[Seen, ...]  # largest first


def _neighbors(pixels: np.ndarray) -> np.ndarray:
    """Each pixel (H, W) and the four beside it, (5, H, W); outside of the image is 0."""
    p = np.pad(pixels, 1)
    return np.stack([p[1:-1, 1:-1], p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]])


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """4-connected components of a bool mask, largest first."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        grown = np.where(mask, _neighbors(labels).max(0), 0)
        if np.array_equal(grown, labels):
            break
        labels = grown
    names, counts = np.unique(labels[labels > 0], return_counts=True)
    return [labels == n for n in names[np.argsort(-counts)]]


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    frame = np.pad(~mask, 1, constant_values=True)
    outside = next(c for c in _components(frame) if c[0, 0])
    return ~outside[1:-1, 1:-1]


def _erode(mask: np.ndarray) -> np.ndarray:
    return _neighbors(mask).all(0)


def _dilate(mask: np.ndarray) -> np.ndarray:
    return _neighbors(mask).any(0)


def _distance(image: np.ndarray, color) -> np.ndarray:
    return np.linalg.norm(image - np.asarray(color, np.float32), axis=-1)


def _background(image: np.ndarray) -> str:
    rim = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3), image[:, :3].reshape(-1, 3), image[:, -3:].reshape(-1, 3)])
    middle = np.median(rim, axis=0)
    return min(BACKGROUNDS, key=lambda b: np.linalg.norm(middle - BACKGROUNDS[b]))


def _hues(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest color for every pixel, and whether its dark shade is the nearer one."""
    bright = np.stack([_distance(image, c) for c in COLORS.values()])
    dark = np.stack([_distance(image, SHADE * np.asarray(c)) for c in COLORS.values()])
    return np.minimum(bright, dark).argmin(0), dark.min(0) < bright.min(0)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1


def _normalized(mask: np.ndarray) -> np.ndarray:
    r0, r1, c0, c1 = _bounds(mask)
    cut = Image.fromarray(mask[r0:r1, c0:c1].astype(np.uint8) * 255)
    return np.asarray(cut.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR)) > 127


def template(outline: list | None) -> np.ndarray:
    """The normalized mask of a shape, to compare masks with."""
    return _normalized(coverage(outline, 64, 64, 28) > 0.5)


TEMPLATES = {s: template(outline) for s, outline in OUTLINES.items()}


def best_shape(mask: np.ndarray, templates: dict[str, np.ndarray] = TEMPLATES) -> tuple[str, float]:
    cut = _normalized(mask)
    overlap = {s: float((cut & t).sum() / (cut | t).sum()) for s, t in templates.items()}
    best = max(overlap, key=overlap.get)
    return best, overlap[best]


def _texture(dark: np.ndarray, mask: np.ndarray) -> str:
    inner = _erode(_erode(mask))
    inner = inner if inner.sum() > 40 else mask
    share = dark[inner].mean()
    if share < 0.08:
        return "plain"
    rows = [dark[r][inner[r]].mean() for r in range(SIZE) if inner[r].sum() >= 4]
    explained = np.var(rows or [0.0]) / max(share * (1 - share), 1e-6)  # 1 when every row is all dark or all bright
    return "striped" if explained > 0.5 else "dotted"


def _size(mask: np.ndarray, shape: str) -> str:
    r0, r1, c0, c1 = _bounds(mask)
    span = np.ptp(np.asarray(OUTLINES[shape] or [(-1, -1), (1, 1)], dtype=float), axis=0)
    radius = max((c1 - c0) / span[0], (r1 - r0) / span[1])  # a hat may hide the top
    return next(name for name, limit in _SIZES if radius < limit)


def _position(mask: np.ndarray) -> str:
    r0, r1, c0, c1 = _bounds(mask)
    dx, dy = (c0 + c1) / 2 - SIZE / 2, (r0 + r1) / 2 - SIZE / 2
    if max(abs(dx), abs(dy)) < 12:
        return "center"
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _describe(blob: np.ndarray, color: str, dark: np.ndarray) -> Seen:
    mask = _fill_holes(blob)
    shape, score = best_shape(mask)
    return Seen(shape, color, _texture(dark & blob, mask), _size(mask, shape), _position(mask), mask, score)


def _split_by_color(blob: np.ndarray, hue: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Two touching things of different colors form one blob; each color with a fair share is a thing."""
    inner = _erode(blob)
    votes = np.bincount(hue[inner if inner.any() else blob], minlength=len(COLORS))
    strong = [c for c in votes.argsort()[::-1] if votes[c] > max(0.2 * votes.sum(), SMALLEST / 2)]
    if len(strong) < 2:
        return [(blob, int(votes.argmax()))]
    parts = [(_dilate(_erode(blob & (hue == c))), int(c)) for c in strong]
    return [(piece, c) for part, c in parts for piece in _components(part)[:1]]


def read(image: np.ndarray) -> Reading:
    """Reads an image, uint8 (H, W, 3) of any size: background, and the things largest first."""
    if image.shape[:2] != (SIZE, SIZE):
        image = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BOX))
    image = image.astype(np.float32)
    background = _background(image)
    hue, dark = _hues(image)
    worn = _distance(image, TEAL) < 60
    foreground = (_distance(image, BACKGROUNDS[background]) > FOREGROUND) & ~_dilate(worn)
    opened = _dilate(_erode(foreground))
    things = [
        _describe(part, list(COLORS)[c], dark)
        for blob in _components(opened)
        if blob.sum() >= SMALLEST
        for part, c in _split_by_color(blob, hue)
        if part.sum() >= SMALLEST
    ]
    return Reading(background, tuple(sorted(things, key=lambda t: -int(t.mask.sum()))))


def _agrees(seen: Seen, claim: Claim, *facts: str) -> bool:
    return all(getattr(claim, f) is None or getattr(claim, f) == getattr(seen, f) for f in facts)


def judge(reading: Reading, caption: Caption) -> dict[str, bool]:
    """Which claims of a caption hold: `color`, `shape`, `texture`, `size`, `position` (only those named),
    `background`, `count`, and `bound` (every thing there with its own color and shape, nothing more).

    Things are matched to claims in the order that fits best.
    """
    claims, n = caption.claims, len(caption.claims)
    facts = [f for f in ("color", "shape", "texture", "size", "position") if any(getattr(c, f) for c in claims)]
    found = reading.things[: max(n, 2)]
    orders = list(permutations(found, n)) if len(found) >= n else []
    best = max(orders, default=(), key=lambda o: sum(_agrees(t, c, f) for t, c in zip(o, claims) for f in facts))
    verdict = {f: bool(best) and all(_agrees(t, c, f) for t, c in zip(best, claims)) for f in facts}
    verdict["count"] = len(reading.things) == n
    verdict["bound"] = bool(best) and verdict["count"] and all(_agrees(t, c, "color", "shape") for t, c in zip(best, claims))
    if caption.background:
        verdict["background"] = reading.background == caption.background
    return verdict


_NOUN = re.compile(
    rf"\b(?:(small|large) )?(?:({'|'.join(t for t in TEXTURES if t != 'plain')}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b"
)
_GROUND = re.compile(rf"\b(?:on (?:a )?|, ?)({'|'.join(BACKGROUNDS)})\b")


def caption_of(text: str) -> Caption:
    """What a sentence in the words of the world says, but for where things are; a thing without a texture is plain."""
    claims = tuple(Claim(shape, color, texture or "plain", size or None) for size, texture, color, shape in _NOUN.findall(text))
    ground = _GROUND.search(text)
    return Caption(text, claims, ground[1] if ground else None)


def pair_score(before: np.ndarray, after: np.ndarray, told_before: str, told_after: str) -> float:
    """How good two images, uint8 (H, W, 3), are as those before and after an edit: 0 where either is not what its sentence says, else up to
    1, the more of the pixels stay as they are."""
    for image, text in ((before, told_before), (after, told_after)):
        caption = caption_of(text)
        if not caption.claims or not all(judge(read(image), caption).values()):
            return 0.0
    return kept(before, after)


def kept(before: np.ndarray, after: np.ndarray) -> float:
    """Share of the pixels that stay as they are, above 0; images uint8 (H, W, 3)."""
    changed = np.abs(before.astype(int) - after).max(-1) > CHANGED
    return max(1.0 - float(changed.mean()), 1e-3)


def pair_scores(before: Sequence[np.ndarray], after: Sequence[np.ndarray], *told: str) -> list[float]:
    """The `pair_score` of each pair of images, told alike."""
    return [pair_score(one, other, *told) for one, other in zip(before, after)]
