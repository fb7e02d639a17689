"""Prompt-to-Prompt: draw a target prompt with the attention maps of a source prompt (arXiv 2208.01626).

Source and targets are rows of one batch that start from the same noise. In cross-attention the probabilities of the target's tokens
are replaced by those of the matching source tokens, in self-attention the target's queries and keys by the source's, which
gives it the source's probabilities. Both while a window of the sampling is open, so it does not matter how often or in which parts the
network is called. The source's rows are never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .alignment import Alignment, stretched
from .run_cache import RunCache


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: `images` of the source, then as many for each of `targets`."""

    images: int
    targets: int

    @property
    def total(self) -> int:
        return self.images * (1 + self.targets)

    @property
    def source(self) -> range:
        return range(self.images)

    def target(self, number: int) -> range:
        return range(self.images * (1 + number), self.images * (2 + number))


@dataclass(frozen=True)
class Window:
    """A part of the sampling, from `start` up to `end` in percent; 1 is the end of all. Empty where both are the same."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(f"The window runs from {self.start} to {self.end}; give 0 <= start <= end <= 1.")

    def __contains__(self, percent: float) -> bool:
        return self.start <= percent < self.end or percent >= self.end == 1.0 > self.start


@dataclass(frozen=True)
class Settings:
    """Which maps of the source are taken over, and when. `alpha` is their share, 1 for all; less lets the target's style through."""

    cross: Window = Window(0.0, 0.8)
    self: Window = Window(0.0, 0.4)
    alpha: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}; give 0 (the target's own attention) to 1 (the source's).")


class Term(NamedTuple):
    """What the attention of the source or the target must gather: `of(values)` of the target."""

    from_source: bool
    of: Callable[[torch.Tensor], torch.Tensor]


def _column(sums: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
    """What probabilities P must gather (L, 1) for their part of a denominator P sums + Q others; None where sums are all the same.

    Rows of P and Q sum to 1, so that such a part is a number, which the other part can bring.
    """
    if torch.allclose(sums, sums[0]):
        return None
    return (sums + others[0] if torch.allclose(others, others[0]) else sums)[:, None]


@dataclass(frozen=True, eq=False)
class ActiveEdit:
    """An edit of cross-attention at one time. It is linear in the attention of source and target, and so needs no probabilities.

    (P_s (mapped V) + P_t (own V)) / (P_s mapped_sum + P_t own_sum)

    P_s and P_t are the probabilities of source and target, V the target's values (Lt, D): `mapped` (Ls, Lt), `own` (Lt, 1), sums (Ls, 1) and
    (Lt, 1). None is 0, and the denominator 1 without both of its parts: it makes the edited probabilities sum to 1, but for the words' weights,
    as in the paper. With neither `mapped` nor `own` it is no edit.
    """

    mapped: torch.Tensor | None = None
    own: torch.Tensor | None = None
    mapped_sum: torch.Tensor | None = None
    own_sum: torch.Tensor | None = None
    length: int = 0  # of the target's text
    copies: bool = False  # whether the source's probabilities are taken as they are
    may_vanish: bool = False  # whether the denominator may be 0

    @classmethod
    def prepare(cls, edit: Edit, strength: torch.Tensor, like: torch.Tensor) -> ActiveEdit:
        """`strength` (Lt,) in [0, 1] is how far the edit acts on each column; the device and type are those of `like`."""
        taken, kept, factors = edit.mapper * strength, 1 + strength * (edit.own - 1), 1 + strength * (edit.weights - 1)
        sums = _column(taken.sum(1), kept), _column(kept, taken.sum(1))
        mapped, own = taken * factors, (kept * factors)[:, None]
        mapped, own = (mapped, own if own.any() else None) if mapped.any() else (None, own)
        copies = own is None and mapped.shape[0] == mapped.shape[1] and torch.equal(mapped, torch.eye(len(mapped)))
        may_vanish = sum(float(column.min()) for column in sums if column is not None) < 1e-2
        moved = [t if t is None else t.to(like.device, like.dtype, non_blocking=True) for t in (mapped, own, *sums)]
        return cls(*moved, len(strength), copies, may_vanish)

    @cached_property
    def terms(self) -> list[Term]:
        """What attention must give for `combined` to make the edit. Values are (..., L, D), or columns (L, 1) of all alike."""
        if self.copies:
            return [Term(True, lambda v: v)]
        products = (False, torch.mul, self.own), (True, torch.matmul, self.mapped)
        made = [Term(from_source, partial(product, matrix)) for from_source, product, matrix in products if matrix is not None]
        sums = (True, self.mapped_sum), (False, self.own_sum)
        columns = [Term(from_source, lambda v, column=column: column) for from_source, column in sums if column is not None]
        return [*(made or [Term(False, lambda v: v)]), *columns]

    @cached_property
    def _sums(self) -> int:
        """How many terms are parts of the denominator, which are the last."""
        return sum(column is not None for column in (self.mapped_sum, self.own_sum))

    def combined(self, gathered: list[torch.Tensor], over: torch.Tensor | None = None) -> torch.Tensor:
        """What the target's values give under the edit, from what attention gave for each of the terms; written over one of them or not."""
        (out, *more), totals = gathered[: len(gathered) - self._sums], gathered[len(gathered) - self._sums :]
        for term in more:
            out = torch.add(out, term, out=over)
        if not totals:
            return out
        total = totals[0] if len(totals) == 1 else totals[0] + totals[1]
        return torch.div(out, total.clamp_min(torch.finfo(out.dtype).tiny) if self.may_vanish else total, out=over)


UNEDITED = ActiveEdit()


@dataclass(frozen=True)
class Edit:
    """How a target's cross-attention is made from the source's and its own.

    `mapper` (Ls, Lt), `own` and `weights` (Lt,) as of `Alignment`; `weights` multiply columns, 1 is neutral. `windows` gives some columns
    a window of their own.
    """

    mapper: torch.Tensor
    own: torch.Tensor
    weights: torch.Tensor
    settings: Settings = Settings()
    windows: dict[int, Window] = field(default_factory=dict)

    @classmethod
    def from_alignment(
        cls, alignment: Alignment, settings: Settings = Settings(), weights: dict[int, float] = {}, windows: dict[int, Window] = {}
    ) -> Edit:
        """The edit of an alignment, with more weights and windows for some columns of the target."""
        factors = alignment.factors()
        for column, weight in weights.items():
            factors[column] *= weight
        return cls(alignment.mapper(), alignment.own(), factors, settings, dict(windows))

    def open(self, percent: float) -> tuple[bool, ...]:
        """Whether the window of the edit, and those of columns, are open at a percent of the sampling."""
        return percent in self.settings.cross, *(percent in window for window in self.windows.values())

    def acts(self, percent: float) -> bool:
        """Whether anything is edited at a percent of the sampling."""
        return self.settings.alpha > 0 and any(self.open(percent))

    def at_percent(self, percent: float, like: torch.Tensor = torch.zeros(())) -> ActiveEdit | None:
        """The edit at a percent of the sampling, for values like these; None where nothing is edited."""
        strength = torch.full_like(self.own, self.settings.alpha if percent in self.settings.cross else 0.0)
        for column, window in self.windows.items():
            strength[column] = self.settings.alpha if percent in window else 0.0
        return ActiveEdit.prepare(self, strength, like) if strength.any() else None

    def repeated(self, source: int, target: int) -> Edit:
        """The same for conditionings that are repeated so many times."""
        length, copies = len(self.own), range(target)
        windows = {column + copy * length: window for column, window in self.windows.items() for copy in copies}
        own, weights = self.own.repeat(target), self.weights.repeat(target)
        return replace(self, mapper=stretched(self.mapper, source, target), own=own, weights=weights, windows=windows)

    def filled(self, length: int) -> Edit:
        """The same for conditionings that were filled up behind to one length; what fills them is hidden from attention."""
        source, target = self.mapper.shape
        mapper = F.pad(self.mapper, (0, length - target, 0, length - source))
        mapper.diagonal()[source:] = 1  # so that every row hands its attention on
        return self._padded(mapper)

    def extended(self, columns: int) -> Edit:
        """The same for conditionings with so many more columns, which keep their places."""
        return self._padded(torch.block_diag(self.mapper, torch.eye(columns)))

    def _padded(self, mapper: torch.Tensor) -> Edit:
        more = mapper.shape[1] - len(self.own)
        return replace(self, mapper=mapper, own=F.pad(self.own, (0, more)), weights=F.pad(self.weights, (0, more), value=1.0))


@dataclass(frozen=True)
class ActiveEdits:
    """The edits of a run as they are now, each made once for all steps with the same windows open. `node` made the prompts that they are of."""

    edits: tuple[Edit, ...]
    node: str
    cache: RunCache

    def at(self, number: int, percent: float, columns: int, like: torch.Tensor) -> ActiveEdit | None:
        """An edit at a percent of the sampling, for so many keys and values like these. Raises ValueError for fewer keys than its prompt has."""
        edit = self.edits[number]
        key = "edit", number, edit.open(percent), columns, like.device, like.dtype
        return self.cache.get(key, lambda: self._of_length(edit, columns).at_percent(percent, like))

    def _of_length(self, edit: Edit, columns: int) -> Edit:
        more = columns - len(edit.own)
        if more < 0:
            raise ValueError(f"The positive has {columns} tokens, but {self.node} made {len(edit.own)}: a node between cut it. Remove that node.")
        return edit.extended(more) if more else edit
