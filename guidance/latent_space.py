"""Tells the latents of one VAE from those of another, so that what was made for one does not steer the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS, COLORS = 0.001, 0.1  # relative distances within which two formats are one; colors are a fit, which may be made anew


@dataclass(frozen=True)
class LatentSpace:
    """Latents as a model takes them, by what ComfyUI's latent format `name` says of them.

    `levels` are what 0 and then 1 become in each channel, `colors` red, green and blue of each channel in previews, () = unknown. Raises
    ValueError or TypeError where they are no numbers.
    """

    name: str
    levels: tuple[float, ...]
    colors: tuple[float, ...] = ()

    def __post_init__(self):
        if not isinstance(self.name, str) or not all(map(math.isfinite, (*self.levels, *self.colors))):
            raise ValueError(f"a latent format is described as {self.name}, {self.levels}, {self.colors}")

    def same(self, other: LatentSpace) -> bool:
        """Whether a latent means the same image in both; formats of unknown colors go by their names too."""
        known = self.colors and other.colors
        return _close(self.levels, other.levels, LEVELS) and (_close(self.colors, other.colors, COLORS) if known else self.name == other.name)


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and math.dist(one, other) <= tolerance * math.hypot(*one)
