"""The world of the demo model: the words of its captions, and the colors and outlines that they stand for.

A scene is one or two things on a plain background. Everything a caption can say (shape, color, texture, size, position, background) is known
exactly, so an edit of an image can be measured: `checker` reads an image back into these words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
COLORS = {
    "red": (214, 40, 40),
    "orange": (242, 140, 40),
    "yellow": (245, 214, 66),
    "green": (52, 158, 70),
    "blue": (48, 92, 214),
    "purple": (138, 58, 176),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (150, 150, 150), "black": (20, 20, 20), "pink": (247, 188, 200)}
TEXTURES = ("plain", "striped", "dotted")
SHADE = 0.5  # stripes and dots are painted in the thing's color times this
TEAL, CREAM = (0, 150, 150), (250, 250, 240)  # only worn by attributes that captions never mention


def _star(points: int = 5, inner: float = 0.48) -> list[tuple[float, float]]:
    angles = -np.pi / 2 + np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.1, 1.1 * inner)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for a, r in zip(angles, radii)]


def _cross(arm: float = 0.36) -> list[tuple[float, float]]:
    a = arm
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


OUTLINES = {
    "circle": None,
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1), (1.05, 0.85), (-1.05, 0.85)],
    "star": _star(),
    "cross": _cross(),
}
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True)
class Claim:
    """What a caption says of one thing; None where it says nothing."""

    shape: str
    color: str
    texture: str | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Caption:
    """A caption and all that it claims. `relation` is a key of PAIRS if the order of two things is named."""

    text: str
    claims: tuple[Claim, ...] = ()
    background: str | None = None


def coverage(outline: list | None, x: float, y: float, radius: float, smooth: int = 4) -> np.ndarray:
    """Share of each pixel that a shape covers (a polygon, or None for a circle), float (SIZE, SIZE) in [0, 1]."""
    canvas = Image.new("L", (SIZE * smooth, SIZE * smooth))
    draw, r = ImageDraw.Draw(canvas), radius * smooth
    x, y = x * smooth, y * smooth
    if outline is None:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    else:
        draw.polygon([(x + r * px, y + r * py) for px, py in outline], fill=255)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255
