"""What guidance did in one run: a few numbers a prediction, kept on the device until somebody looks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .multi_cfg import GuidanceTerm


@dataclass(frozen=True)
class Entry:
    """One prediction: the weight of every term by name, their Gram matrix (n, n) in mean products, and what was evaluated."""

    weights: dict[str, float]
    gram: torch.Tensor
    evaluations: int


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that are taken already."""
    found: list[str] = []
    for i, name in enumerate(names, 1):
        tries = itertools.chain([name], (f"{name} {n}" for n in itertools.count(i)))
        found.append(next(t for t in tries if t not in found))
    return found


@dataclass
class Record:
    """All predictions of one run in order."""

    entries: list[Entry] = field(default_factory=list)

    def note(self, terms: Sequence[GuidanceTerm], evaluations: int) -> None:
        """Adds a prediction with everything that guided it, each name once."""
        if terms:
            flat = torch.stack([t.delta.detach().flatten() for t in terms]).float()
            gram = flat @ flat.T / flat.shape[1]
        else:
            gram = torch.zeros(0, 0)
        self.entries.append(Entry({t.name: t.weight for t in terms}, gram, evaluations))

    @property
    def names(self) -> list[str]:
        """Everything that guided at some time."""
        return list(dict.fromkeys(name for e in self.entries for name in e.weights))

    def weight(self, name: str) -> list[tuple[int, float]]:
        """(prediction, weight) wherever the term was added."""
        return [(i, e.weights[name]) for i, e in enumerate(self.entries) if name in e.weights]

    def norm(self, name: str) -> list[tuple[int, float]]:
        """(prediction, RMS of the term in latent units)."""
        return [(i, self._product(e, name, name) ** 0.5) for i, e in enumerate(self.entries) if name in e.weights]

    def cosine(self, a: str, b: str) -> list[tuple[int, float]]:
        """(prediction, cosine of two terms): below 0 they work against each other."""
        both = [(i, e) for i, e in enumerate(self.entries) if a in e.weights and b in e.weights]
        sizes = [(i, e, self._product(e, a, a) ** 0.5 * self._product(e, b, b) ** 0.5) for i, e in both]
        found = [(i, self._product(e, a, b) / size) for i, e, size in sizes if size > 0]
        return [(i, cosine) for i, cosine in found if not math.isnan(cosine)]

    def _product(self, entry: Entry, a: str, b: str) -> float:
        names = list(entry.weights)
        return float(entry.gram[names.index(a), names.index(b)])

    @property
    def evaluations(self) -> int:
        """Rows of the network's batch for each image, over the whole run."""
        return sum(e.evaluations for e in self.entries)

    def text(self) -> str:
        """The means of every term, the pair that conflicts most, and the evaluations."""
        lines = [f"{len(self.entries)} predictions, {self.evaluations} evaluations of the network for each image"]
        for name in self.names:
            weight, norm = ([v for _, v in read(name)] for read in (self.weight, self.norm))
            share = len(weight) / len(self.entries)
            lines.append(f"{name}: weight {_mean(weight):.3g}, strength {_mean(norm):.3g}, in {100 * share:.0f} % of the predictions")
        together = {pair: self.cosine(*pair) for pair in itertools.combinations(self.names, 2)}
        pairs = {pair: _mean([v for _, v in cosines]) for pair, cosines in together.items() if cosines}
        if pairs:
            a, b = min(pairs, key=pairs.get)
            lines.append(f"most opposed: {a} and {b}, mean cosine {pairs[a, b]:.3f}")
        return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
