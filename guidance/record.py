"""What guidance did in one run: a few numbers a step, kept on the device until somebody looks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Entry:
    """One prediction: the weight of every push by name, their Gram matrix (n, n) in mean products, and what was evaluated;
    `given` of the evaluations would have been without these pushes."""

    sigma: float
    weights: dict[str, float]
    gram: torch.Tensor
    evaluations: int
    given: int = 0


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with the place of those that are taken already."""
    found: list[str] = []
    for i, name in enumerate(names, 1):
        tries = itertools.chain([name], (f"{name} {n}" for n in itertools.count(i)))
        found.append(next(t for t in tries if t not in found))
    return found


@dataclass
class Record:
    """All predictions of one run in order."""

    entries: list[Entry] = field(default_factory=list)

    def note(self, sigma: float, lines: Sequence[tuple[str, float, torch.Tensor]], evaluations: int, given: int = 0) -> None:
        """Adds a prediction: (name, weight, push) of everything that pushed, each name once."""
        if lines:
            flat = torch.stack([push.detach().flatten() for _, _, push in lines]).float()
            gram = flat @ flat.T / flat.shape[1]
        else:
            gram = torch.zeros(0, 0)
        self.entries.append(Entry(sigma, {name: weight for name, weight, _ in lines}, gram, evaluations, given))

    @property
    def sigmas(self) -> list[float]:
        """The noise level of every prediction."""
        return [e.sigma for e in self.entries]

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
        """The means of every push, the pair that fights most, and the evaluations."""
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


def _joined(parts: Sequence[Entry], names: Sequence[dict[str, str]]) -> Entry:
    """One prediction of what several noted of it; of pushes that were not noted together the products are not known."""
    weights = {own[n]: w for e, own in zip(parts, names) for n, w in e.weights.items() if n in own}
    gram, done = torch.full((len(weights), len(weights)), torch.nan), 0
    for entry, own in zip(parts, names):
        kept = [i for i, n in enumerate(entry.weights) if n in own]
        gram[done : done + len(kept), done : done + len(kept)] = entry.gram[kept][:, kept].to(gram)
        done += len(kept)
    given = min(e.given for e in parts)
    return Entry(parts[0].sigma, weights, gram, given + sum(e.evaluations - e.given for e in parts), given)


def merged(records: Sequence[Record], leads: Sequence[str]) -> Record:
    """What several noted of the same predictions, the innermost first. The lead of the others is what the ones before them did."""
    if len(records) == 1:
        return records[0]
    own = [[n for n in r.names if r is records[0] or n != lead] for r, lead in zip(records, leads)]
    every = iter(distinct([n for part in own for n in part]))
    names = [{n: next(every) for n in part} for part in own]
    return Record([_joined(parts, names) for parts in zip(*(r.entries for r in records))])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
