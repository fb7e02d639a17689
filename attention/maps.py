"""Attention maps: where in the image the attention to a word is, as means over heads, layers and noise levels.

A running sum is kept for each word, group of layers and phase of the sampling, at the layers' own resolution. As in *What the DAAM* (arXiv
2210.04885), with joint attention's block of image queries and text keys (arXiv 2508.07519) where a model has no cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..guidance.errors import listed, quoted

Columns = Sequence[int]
Key = tuple[int, str]  # phase of the sampling, group of layers


class MapValues:
    """Values by which attention itself gives maps: where a column of them is 1 for the keys of a word, and else 0, it gathers the word's
    probabilities. As many columns go into a row's values as a head is wide, the others into further copies of the row."""

    def __init__(self, width: int):
        self.width, self.columns = width, {}

    def add(self, rows: Sequence[int], columns: torch.Tensor) -> tuple[tuple[int, ...], slice]:
        """Where `read` gives what rows gather with columns (keys, n)."""
        there = self.columns.setdefault(tuple(rows), [])
        start = sum(c.shape[1] for c in there)
        there.append(columns)
        return tuple(rows), slice(start, start + columns.shape[1])

    def values(self) -> tuple[list[int], torch.Tensor]:
        """(rows, values (len(rows), keys, width)), where a row comes as often as it needs."""
        rows, values = [], []
        for key, columns in self.columns.items():
            for part in torch.cat(columns, 1).split(self.width, 1):
                rows += key
                values += [F.pad(part, (0, self.width - part.shape[1]))] * len(key)
        return rows, torch.stack(values)

    def read(self, out: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
        """What attention gave for `values`, (len(rows), N, heads, width), by rows: (rows, N, heads, columns)."""
        sizes = [len(rows) * -(-sum(c.shape[1] for c in columns) // self.width) for rows, columns in self.columns.items()]
        parts = (part.unflatten(0, (-1, len(rows))) for rows, part in zip(self.columns, out.split(sizes)))
        return {rows: part.permute(1, 2, 3, 0, 4).flatten(-2) for rows, part in zip(self.columns, parts)}


@dataclass
class Sums:
    """Running sums of maps during one run. An evaluation of a layer counts once, whoever asked for it."""

    total: dict[Key, torch.Tensor] = field(default_factory=dict)  # (rows, words, [frames,] h, w)
    count: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, maps: torch.Tensor, count: int = 1) -> None:
        """Adds the maps (rows, words, [frames,] h, w) of one layer, or the sum of `count` of them."""
        self.total[key] = self.total[key] + maps if key in self.total else maps
        self.count[key] = self.count.get(key, 0) + count

    @classmethod
    def joined(cls, parts: Iterable[Sums]) -> Sums:
        """The sums of all parts of one sampling."""
        whole = cls()
        for part in parts:
            for key, maps in part.total.items():
                whole.add(key, maps, part.count[key])
        return whole


@dataclass(frozen=True)
class Maps:
    """The maps of one finished sampling. `phases` are percents of the sampling, `size` the image's height and width."""

    words: tuple[str, ...]
    sums: Sums
    phases: tuple[tuple[float, float], ...]
    size: tuple[int, int]

    @property
    def groups(self) -> list[str]:
        """The groups of layers that were seen, in the model's order."""
        return list(dict.fromkeys(group for _, group in self.sums.total))

    @property
    def seen(self) -> list[int]:
        """The phases in which the model was evaluated."""
        return sorted({phase for phase, _ in self.sums.total})

    def mean(self, words: Sequence[str] = (), groups: Sequence[str] = (), phases: Sequence[int] = ()) -> torch.Tensor:
        """Mean probabilities (rows, words, h, w) over layers and evaluations, at the finest layer's resolution; empty is all.

        A row is an image; of a video, a frame of its latent. Raises ValueError with a word or group that was not captured.
        """
        places = [self._place(w) for w in words or self.words]
        unknown = [g for g in groups if g not in self.groups]
        if unknown:
            raise ValueError(f"There are no maps of the layers {quoted(unknown[0])}; the groups of this run are: {listed(self.groups)}.")
        keys = [(p, g) for p, g in self.sums.total if (not groups or g in groups) and (not phases or p in phases)]
        if not keys:
            raise ValueError(f"There are no maps of phase {', '.join(str(p + 1) for p in phases)} of these layers; choose a longer part.")
        parts = [self.sums.total[k][:, places] for k in keys]
        parts = [p.transpose(1, 2).flatten(0, 1) if p.ndim == 5 else p for p in parts]  # frames become rows
        finest = max((p.shape[-2:] for p in parts), key=lambda s: s[0] * s[1])
        total = sum(F.interpolate(p, finest, mode="bilinear") for p in parts)
        return total / sum(self.sums.count[k] for k in keys)

    def _place(self, word: str) -> int:
        folded = [w.casefold() for w in self.words]
        if word.strip().casefold() not in folded:
            raise ValueError(f"There is no map of {quoted(word.strip())}; the words captured in this run are: {listed(self.words)}.")
        return folded.index(word.strip().casefold())


def phase_of(percent: float, start: float, end: float, phases: int) -> int:
    """Which of so many equal parts of start..end a percent of the sampling falls into."""
    return min(int((percent - start) / max(end - start, 1e-9) * phases + 1e-6), phases - 1)


def heat(maps: torch.Tensor) -> torch.Tensor:
    """Maps (..., h, w) spread to [0, 1]: 0 where the attention to a word is least, 1 where most; a flat map is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-12)).nan_to_num(0.0)


def mask_of(maps: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Masks (rows, H, W) in [0, 1] of maps (rows, h, w): their heat, or with a threshold 1 where the heat is above it, else 0."""
    if not 0.0 <= threshold < 1.0:
        raise ValueError(
            f"The threshold is {threshold}; give 0 (the heat itself) or a share of the strongest heat below 1, typical: 0.3 to 0.6."
        )
    wide = heat(F.interpolate(maps[:, None], size, mode="bicubic")[:, 0])
    return wide if threshold == 0 else (wide > threshold).float()
