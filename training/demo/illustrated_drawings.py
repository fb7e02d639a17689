"""Reads the drawings of the illustrated world from their one file and gives colorable things another color."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...guidance.errors import listed, quoted

SHEET = Path(__file__).parent / "drawings" / "drawings.webp"
CELL = 160  # pixels, the side of a drawing on the sheet
SETS = ("noto", "twemoji", "fluent flat", "fluent 3d", "streamline")  # columns of the sheet
# fmt: off
THINGS = (  # rows of the sheet
    "cat", "dog", "cow", "pig", "elephant", "penguin", "owl", "car", "airplane", "house", "castle", "tree", "palm tree",
    "cactus", "sunflower", "flower", "mushroom", "apple", "strawberry", "cake", "guitar", "umbrella", "balloon", "book", "shirt",
)
# fmt: on
UNSEEN = ("rocket", "whale", "bicycle", "horse")  # rows that no scene shows: for teaching the model something new
COLORS = {
    "red": (214, 44, 44),
    "orange": (244, 140, 36),
    "yellow": (246, 210, 56),
    "green": (56, 164, 76),
    "blue": (48, 100, 220),
    "purple": (140, 66, 184),
    "pink": (246, 140, 186),
}
ONE_WAY = ("cat", "dog", "cow", "pig", "elephant", "airplane", "guitar")  # never mirrored: a small model mixes both ways, and draws two heads
OTHER_POSE = {"dog": "noto", "pig": "noto"}  # drawings in another pose than all others of their thing
OUTLINED = tuple(thing for thing in THINGS if thing not in ("penguin", "owl", "house", "castle", "tree", "guitar"))  # by streamline
COLORABLE = ("car", "flower", "umbrella", "balloon", "book", "shirt")


@lru_cache(1)
def _sheet() -> Image.Image:
    if not SHEET.exists():
        raise ValueError(f"The drawings {SHEET} are missing. Install the pack again.")
    return Image.open(SHEET).convert("RGBA")


@lru_cache(None)
def drawing(thing: str, name: str) -> Image.Image:
    """A drawing of a thing by one of SETS, RGBA, cut to its outline, at most 160 pixels wide and high."""
    rows = THINGS + UNSEEN
    if thing not in rows or name not in SETS:
        raise ValueError(f"Unknown drawing {quoted(thing)} by {quoted(name)}. Things: {listed(rows)}. Sets: {listed(SETS)}.")
    left, top = SETS.index(name) * CELL, rows.index(thing) * CELL
    cell = _sheet().crop((left, top, left + CELL, top + CELL))
    box = cell.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"The set {quoted(name)} has no drawing of {quoted(thing)}. Choose another of {listed(SETS)}.")
    return cell.crop(box)


def _body(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The pixels near the most frequent hue of a drawing, bool (H, W); `pixels` uint8 (H, W, 3), `alpha` uint8 (H, W)."""
    hue, saturation, _ = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("HSV"), np.int32), -1, 0)
    colored = (saturation > 36) & (alpha > 0)
    votes = np.bincount(hue[colored], weights=saturation[colored], minlength=256)
    votes = sum(np.roll(votes, shift) for shift in range(-12, 13))
    away = (hue - int(votes.argmax()) + 128) % 256 - 128
    return colored & (np.abs(away) < 36)


@lru_cache(None)
def recolored(thing: str, name: str, color: str) -> Image.Image:
    """The drawing with its main color replaced, light and shade kept."""
    image = drawing(thing, name)
    pixels, alpha = np.asarray(image.convert("RGB")), np.asarray(image.getchannel("A"))
    body, light = _body(pixels, alpha), pixels.astype(np.float32) @ np.asarray((0.3, 0.5, 0.2), np.float32)
    shade = (light / np.percentile(light[body], 60))[..., None] ** 0.8
    target = np.asarray(COLORS[color], np.float32)
    painted = np.where(shade <= 1, target * shade, target + (255 - target) * (0.7 * (shade - 1)).clip(0, 1))
    mixed = np.where(body[..., None], painted, pixels).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([mixed, alpha]))
