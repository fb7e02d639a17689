"""Local blend of Prompt-to-Prompt (arXiv 2208.01626, section 4): change only where the words of interest look.

The maps of the words are summed over layers and the noise levels so far; where the sum is high in the source's or in the target's
map, the target may differ from the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .prompt_to_prompt import Rows

Columns = tuple[int, ...]


def word_map(p: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """Of probabilities (B, heads, Nq, Nk) what falls on some columns, the mean of the heads: (B, Nq)."""
    return p[..., list(columns)].sum(-1).mean(1)


def cut(maps: torch.Tensor, size: tuple[int, int], threshold: float, spread: bool) -> torch.Tensor:
    """Where maps (B, h, w) are above a share of their own largest value, at another size: bool (B, H, W).

    `spread` widens them by a cell on each side first. A map without any attention is nowhere above.
    """
    wide = F.max_pool2d(maps[:, None], 3, 1, 1) if spread else maps[:, None]
    wide = F.interpolate(wide, size, mode="bilinear")[:, 0]
    return wide > threshold * wide.amax((1, 2), keepdim=True)


@dataclass(frozen=True)
class LocalBlend:
    """Where targets may differ from the source. `edited` and `protected` hold the columns of the words for the source and each target.

    Empty `edited`: everywhere but on the protected. `threshold` is a share of a map's largest value; `start` the percent of the
    sampling before which everything may differ.
    """

    edited: tuple[Columns, ...]
    protected: tuple[Columns, ...]
    threshold: float = 0.3
    start: float = 0.2

    def __post_init__(self):
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"The blend threshold is {self.threshold}; give 0 (everywhere) to 1 (nowhere), 0.3 in the paper.")
        if not 0.0 <= self.start <= 1.0:
            raise ValueError(f"The blend start is {self.start}; give a percent of the sampling, 0 to 1, usually 0.2.")


@dataclass
class Blending:
    """A local blend during one run. A noise level that is evaluated again, as second-order samplers do, counts once."""

    blend: LocalBlend
    rows: Rows
    level: float | None = None
    before: torch.Tensor | None = None  # (2, rows, h, w): the words' and the protected words' maps of all earlier levels
    now: torch.Tensor | None = None
    masks: list[tuple[float, torch.Tensor]] = field(default_factory=list)  # (percent, mask) of every level that was blended

    def at(self, level: float) -> None:
        """A prediction at a noise level begins."""
        if level != self.level and self.now is not None:
            self.before = self.now if self.before is None else self.before + self.now
        self.level, self.now = level, None

    def add(self, p: torch.Tensor, row: int, branch: int, size: tuple[int, int]) -> None:
        """Adds the probabilities (B, heads, h * w, Nk) of the rows from `row` on, which belong to the source (branch 0) or a target."""
        if self.now is None:
            self.now = p.new_zeros(2, self.rows.total, *size)
        for kind, columns in enumerate((self.blend.edited[branch], self.blend.protected[branch])):
            if columns:
                self.now[kind, row : row + len(p)] += word_map(p, columns).reshape(len(p), *size)

    @property
    def sums(self) -> torch.Tensor | None:
        found = [s for s in (self.before, self.now) if s is not None]
        return sum(found) if found else None

    def mask(self, size: tuple[int, int]) -> torch.Tensor | None:
        """Where each row may differ from the source's row: bool (rows, H, W); None while nothing is known."""
        if self.sums is None:
            return None
        words, protected = self.sums
        one = self.rows.pictures

        def either(masks: torch.Tensor) -> torch.Tensor:
            return masks | masks[:one].repeat(len(masks) // one, 1, 1)

        made = words.new_ones(len(words), *size, dtype=torch.bool)
        if any(self.blend.edited):
            made = either(cut(words, size, self.blend.threshold, spread=True))
        if any(self.blend.protected):
            made = made & ~either(cut(protected, size, self.blend.threshold, spread=False))
        return made

    def note(self, percent: float, mask: torch.Tensor) -> None:
        """Remembers the mask of a noise level."""
        if self.masks and self.masks[-1][0] == percent:
            self.masks.pop()
        self.masks.append((percent, mask))

    def blended(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Latents (rows, C, [frames,] H, W) with the source's in the place of the targets' off the mask."""
        source = x[: self.rows.pictures].repeat(1 + self.rows.targets, *[1] * (x.ndim - 1))
        return torch.where(mask.reshape(len(mask), *[1] * (x.ndim - 3), *mask.shape[-2:]), x, source)
