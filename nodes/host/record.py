"""What guidance did in one run: a few numbers a step, kept on the device until somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Entry:
    """One prediction: the weight of every push by name, their Gram matrix (n, n) in mean products, and what was evaluated."""

    sigma: float
    weights: dict[str, float]
    gram: torch.Tensor
    evaluations: int


@dataclass
class Record:
    """All predictions of one run in order."""

    entries: list[Entry] = field(default_factory=list)

    def note(self, sigma: float, lines: Sequence[tuple[str, float, torch.Tensor]], evaluations: int) -> None:
        """Adds a prediction: (name, weight, push) of everything that pushed."""
        names: dict[str, float] = {}
        for name, weight, _ in lines:
            names[name if name not in names else f"{name} {len(names) + 1}"] = weight
        if lines:
            flat = torch.stack([push.detach().flatten() for _, _, push in lines]).float()
            gram = flat @ flat.T / flat.shape[1]
        else:
            gram = torch.zeros(0, 0)
        self.entries.append(Entry(sigma, names, gram, evaluations))

    @property
    def names(self) -> list[str]:
        """Everything that pushed at some time."""
        return list(dict.fromkeys(name for e in self.entries for name in e.weights))

    def weight(self, name: str) -> list[tuple[int, float]]:
        """(prediction, weight) wherever the push acted."""
        return [(i, e.weights[name]) for i, e in enumerate(self.entries) if name in e.weights]

    def norm(self, name: str) -> list[tuple[int, float]]:
        """(prediction, RMS of the push in latent units)."""
        return [(i, self._product(e, name, name) ** 0.5) for i, e in enumerate(self.entries) if name in e.weights]

    def cosine(self, a: str, b: str) -> list[tuple[int, float]]:
        """(prediction, cosine of two pushes): below 0 they work against each other."""
        both = [(i, e) for i, e in enumerate(self.entries) if a in e.weights and b in e.weights]
        sizes = [(i, e, self._product(e, a, a) ** 0.5 * self._product(e, b, b) ** 0.5) for i, e in both]
        return [(i, self._product(e, a, b) / size) for i, e, size in sizes if size > 0]

    def _product(self, entry: Entry, a: str, b: str) -> float:
        names = list(entry.weights)
        return float(entry.gram[names.index(a), names.index(b)])

    @property
    def evaluations(self) -> int:
        """Rows of the network's batch for each picture, over the whole run."""
        return sum(e.evaluations for e in self.entries)

    def text(self) -> str:
        """The means of every push, the pair that fights most, and the evaluations."""
        lines = [f"{len(self.entries)} predictions, {self.evaluations} evaluations of the network for each picture"]
        for name in self.names:
            weight, norm = ([v for _, v in read(name)] for read in (self.weight, self.norm))
            share = len(weight) / len(self.entries)
            lines.append(f"{name}: weight {_mean(weight):.3g}, strength {_mean(norm):.3g}, in {100 * share:.0f} % of the predictions")
        pairs = {(a, b): _mean([v for _, v in self.cosine(a, b)]) for i, a in enumerate(self.names) for b in self.names[i + 1 :]}
        if pairs:
            a, b = min(pairs, key=pairs.get)
            lines.append(f"most opposed: {a} and {b}, mean cosine {pairs[a, b]:.3f}")
        return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
