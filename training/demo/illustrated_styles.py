"""Turns a painted scene of the illustrated world into a watercolor or a pencil drawing."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from .illustrated_grounds import SIZE, Rng, smooth_noise

_PAPER = np.asarray((250, 248, 242), np.float32)


def _as_image(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def _frame(rng: Rng) -> np.ndarray:
    """Where paint is, float (SIZE, SIZE, 1): all but an uneven rim of bare paper."""
    place = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1]).astype(np.float32)
    distance = np.minimum(place[:, None], place[None])
    return np.clip((distance - 8 - 4 * smooth_noise(rng, 9, 9)) / 3, 0, 1)[..., None]


def watercolor(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Soft washes with uneven pigment inside a rim of paper."""
    soft = _as_image(image).filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(0.8))
    pigment = 0.72 + 0.14 * smooth_noise(rng, 8, 8) + 0.05 * smooth_noise(rng, 30, 30)
    share = pigment.clip(0, 1)[..., None] * _frame(rng)
    return _PAPER + share * (np.asarray(soft, np.float32) - _PAPER)


def pencil_drawing(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Gray outlines wherever colors change, and soft shading, on paper."""
    colors = _as_image(image).filter(ImageFilter.MedianFilter(3))
    highest, lowest = (np.asarray(colors.filter(kind(3)), np.float32) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    strength = Image.fromarray((255 * np.clip(((highest - lowest).max(-1) - 14) / 90, 0, 1)).astype(np.uint8))
    lines = 1 - 0.62 * np.asarray(strength.filter(ImageFilter.GaussianBlur(0.7)), np.float32) / 255
    light = np.asarray(colors.convert("L"), np.float32) / 255
    shade = 1 - 0.55 * np.clip(0.8 - light, 0, 1)
    return _PAPER * (lines * shade)[..., None]


FILTERS = {"watercolor": watercolor, "pencil drawing": pencil_drawing}
