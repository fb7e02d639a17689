"""What the checker of the demo world need not read: strangers to the world, and what its things wear."""

from __future__ import annotations

import numpy as np
from controlled_diffusion.training.demo.checker import FOREGROUND, TEMPLATES, _background, _components, _distance, best_shape, template
from controlled_diffusion.training.demo.world import BACKGROUNDS, CREAM, SIZE, TEAL

from demo.world import STRANGERS

_TEMPLATES = TEMPLATES | {s: template(outline) for s, outline in STRANGERS.items()}


def any_shape(mask: np.ndarray) -> tuple[str, float]:
    """The shape of a mask among those of the world and the strangers to it, and the overlap (IoU) with its template."""
    return best_shape(mask, _TEMPLATES)


def _near(mask: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    rows, cols = np.mgrid[:SIZE, :SIZE]
    return mask & (np.hypot(cols - x, rows - y) <= radius)


def extras(image: np.ndarray) -> set[str]:
    """Which of "eye", "hat" and "moon" an image shows, uint8 (128, 128, 3).

    A moon is teal in its corner, an eye a teal spot within cream on a thing, a hat a teal block on top of a thing.
    """
    image = image.astype(np.float32)
    teal, cream = _distance(image, TEAL) < 60, _distance(image, CREAM) < 60
    moon = _near(teal, 116, 12, 9)
    found = {"moon"} if moon.sum() >= 50 else set()
    for blob in _components(teal & ~_near(teal, 116, 12, 12)):
        rows, cols = np.nonzero(blob)
        y, x, count = rows.mean(), cols.mean(), len(rows)
        around = _near(~blob, x, y, 7)
        if 10 <= count <= 60 and cream[around].mean() > 0.5:
            found.add("eye")
        elif count >= 90 and _thing_below(image, teal, x, rows.max()):
            found.add("hat")
    return found


def _thing_below(image: np.ndarray, worn: np.ndarray, x: float, bottom: int) -> bool:
    """Whether a thing begins under a place."""
    thing = _distance(image, BACKGROUNDS[_background(image)]) > FOREGROUND
    below = (thing & ~worn)[bottom + 1 : bottom + 14, max(0, int(x) - 3) : int(x) + 4]
    return below.size > 0 and bool(below.mean() > 0.3)
