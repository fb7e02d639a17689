"""Aligning two prompts: which words of one match which of the other, down to the tokens of a text encoder.

Prompt-to-Prompt (arXiv 2208.01626, section 3.2) hands the attention maps of a source prompt's tokens to a target prompt's. Words are
aligned first and their tokens second, so words of several tokens, repeated words, punctuation, capitals and prompts of unequal length
stay together, the tail after a longer word does not slip, and padding never lands on a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..guidance.errors import check_choice
from .prompt import Columns, Prompt, Word

OPERATIONS = ("auto", "replace", "refine", "reweight only")
FUNCTION_WORDS = frozenset(re.split(" ", "a an the of and or in on at to with for by from is are its it this that , . : ; - ! ?"))
DEGREES = {
    "very": 1.5, "really": 1.5, "quite": 1.25, "so": 1.5, "super": 2.0, "extremely": 2.0, "incredibly": 2.0, "intensely": 2.0,
    "somewhat": 0.75, "rather": 1.25, "slightly": 0.6, "faintly": 0.5, "barely": 0.4, "hardly": 0.4,
}  # fmt: skip
DEGREE_SHARE = 0.25  # of its neighbor's attention, that a degree word gets


@dataclass(frozen=True)
class Step:
    """One step of an alignment: indices of words of the source and of the target."""

    kind: str  # keep, replace, move, insert, degree, delete
    source: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    factor: float = 1.0  # of a degree word, for the words in `source` and their counterparts


def _anchors(a: Sequence[Word], b: Sequence[Word]) -> list[tuple[int, int]]:
    """The heaviest common subsequence of equal words; small words weigh little, neighbors a little more."""
    n, m, nothing = len(a), len(b), (-1.0, ())
    best = [[(0.0, ()) for _ in range(m + 1)] for _ in range(n + 1)]  # (weight, linked pairs)
    ending = [[nothing] * (m + 1) for _ in range(n + 1)]  # the same, ending with the match of these two
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            options = [best[i - 1][j], best[i][j - 1]]
            if a[i - 1].key == b[j - 1].key:
                weight, before = best[i - 1][j - 1], ending[i - 1][j - 1]
                weight, pairs = max(weight, (before[0] + 0.1, before[1]), key=lambda o: o[0])
                ending[i][j] = (weight + (0.3 if a[i - 1].key in FUNCTION_WORDS else 1.0), (pairs, (i - 1, j - 1)))
                options.insert(0, ending[i][j])
            best[i][j] = max(options, key=lambda o: o[0])
    found, linked = [], best[n][m][1]
    while linked:
        linked, pair = linked
        found.append(pair)
    return found[::-1]


def _gaps(pairs: list[tuple[int, int]], n: int, m: int) -> list[tuple[list[int], list[int]]]:
    """The gaps between neighboring anchors: words of the source and words of the target."""
    edges = [(-1, -1), *pairs, (n, m)]
    return [(list(range(i + 1, i_next)), list(range(j + 1, j_next))) for (i, j), (i_next, j_next) in pairwise(edges)]


def _paired(gone: list[int], new: list[int]) -> tuple[list[Step], list[int], list[int]]:
    """Words of a gap one by one from the end, where the noun is, and what is left of both sides."""
    count = min(len(gone), len(new))
    steps = [Step("replace", (i,), (j,)) for i, j in zip(gone[len(gone) - count :], new[len(new) - count :])]
    return steps, gone[: len(gone) - count], new[: len(new) - count]


def _as_block(gone: list[int], new: list[int]) -> tuple[list[Step], list[int], list[int]]:
    """A whole gap for a whole gap, where both sides have words."""
    return ([Step("replace", tuple(gone), tuple(new))], [], []) if gone and new else ([], gone, new)


_EXCHANGES = {"auto": _paired, "replace": _as_block, "refine": lambda gone, new: ([], gone, new)}


def _moved(a: Sequence[Word], b: Sequence[Word], gone: list[int], new: list[int]) -> list[Step]:
    """Words that were taken out at one place and put in at another; takes them off both lists."""
    steps = []
    for j in list(new):
        i = next((i for i in gone if a[i].key == b[j].key), None)
        if i is not None:
            steps.append(Step("move", (i,), (j,)))
            gone.remove(i)
            new.remove(j)
    return steps


def _degrees(b: Sequence[Word], mapped: dict[int, int], new: list[int]) -> list[Step]:
    """New degree words before a word that the source has too; takes them off the list."""
    steps = []
    for j in list(new):
        if b[j].key in DEGREES and j + 1 in mapped:
            steps.append(Step("degree", (mapped[j + 1],), (j, j + 1), DEGREES[b[j].key]))
            new.remove(j)
    return steps


def _steps(source: Prompt, target: Prompt, operation: str) -> list[Step]:
    a, b = source.words, target.words
    if operation == "reweight only":
        return [Step("insert", (), (j,)) for j in range(len(b))]
    pairs = _anchors(a, b)
    steps, gone, new = [Step("keep", (i,), (j,)) for i, j in pairs], [], []
    for gap in _gaps(pairs, len(a), len(b)):
        exchanged, out, into = _EXCHANGES[operation](*gap)
        steps, gone, new = steps + exchanged, gone + out, new + into
    if operation == "auto":
        steps += _moved(a, b, gone, new)
        steps += _degrees(b, {s.target[0]: s.source[0] for s in steps}, new)
    steps += [Step("insert", (), (j,)) for j in new] + [Step("delete", (i,)) for i in gone]
    return sorted(steps, key=lambda s: (s.target or (_after(steps, s.source[0]),), s.source))


def _after(steps: list[Step], i: int) -> float:
    """Where a deleted word is shown: behind the target of the word before it."""
    return max((s.target[0] + 0.5 for s in steps if s.kind in ("keep", "replace") and s.source[0] < i), default=-0.5)


@dataclass(frozen=True)
class Alignment:
    """How the words of `target` came out of those of `source`."""

    source: Prompt
    target: Prompt
    steps: tuple[Step, ...]
    operation: str = "auto"

    @property
    def matched(self) -> tuple[Step, ...]:
        """Which words match which, also where none takes over a map."""
        return self.steps if self.operation != "reweight only" else tuple(_steps(self.source, self.target, "auto"))

    def mapper(self) -> torch.Tensor:
        """(source columns, target columns): `A_source @ mapper` are the maps that the target's tokens take over.

        A row sums to 1, or to 0 where its word is gone: the attention of a word is passed on whole. Columns of `own` are 0.
        """
        mapper = torch.zeros(self.source.length, self.target.length)
        if self.operation == "reweight only":
            return mapper
        for step in self.steps:
            if step.kind in ("keep", "replace", "move"):
                _map(mapper, self.source.columns(step.source), self.target.columns(step.target))
        for step in self.steps:
            if step.kind == "degree":
                word, neighbor = (self.target.words[j].columns for j in step.target)
                rows = list(self.source.columns(step.source))
                mapper[rows] *= torch.ones(mapper.shape[1]).index_fill_(0, torch.tensor(neighbor), 1 - DEGREE_SHARE)
                mapper[torch.tensor(rows)[:, None], torch.tensor(word)] = DEGREE_SHARE / len(word)
        for kind in ("heads", "tails"):
            for one, other in zip(getattr(self.source, kind), getattr(self.target, kind)):
                _map_rest(mapper, one, other)
        return mapper

    def own(self) -> torch.Tensor:
        """(target columns,): 1 where a token keeps its own attention because the source has nothing for it, else 0."""
        return (self.mapper().sum(0) == 0).float()

    def factors(self) -> torch.Tensor:
        """(target columns,): what degree words multiply themselves and their neighbors by, else 1."""
        factors = torch.ones(self.target.length)
        for step in self.steps:
            factors[list(self.target.columns(step.target))] *= step.factor
        return factors

    def counterparts(self, words: Iterable[int]) -> tuple[int, ...]:
        """The words of the target that came from these words of the source."""
        words = set(words)
        return tuple(j for s in self.matched if s.kind in ("keep", "replace", "move") and words & {*s.source} for j in s.target)

    def origins(self, words: Iterable[int]) -> tuple[int, ...]:
        """The words of the source that these words of the target came from."""
        words = set(words)
        return tuple(i for s in self.matched if s.kind in ("keep", "replace", "move") and words & {*s.target} for i in s.source)

    def changed(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The words of the source and of the target that are not the same in both, without small words."""
        steps = [s for s in self.matched if s.kind != "keep"]
        source, target = ([i for s in steps for i in s.source], [i for s in steps for i in s.target])
        return tuple(
            tuple(i for i in words if prompt.words[i].key not in FUNCTION_WORDS)
            for prompt, words in ((self.source, source), (self.target, target))
        )

    def text(self) -> str:
        """The alignment, readable, a line for each step."""
        return "\n".join([f"{self.source.text}  ->  {self.target.text}", *(self._line(s) for s in self.steps)])

    def _line(self, step: Step) -> str:
        one, other = (_shown(p, w) for p, w in ((self.source, step.source), (self.target, step.target)))
        return {
            "keep": f"  = {other}",
            "replace": f"  {one} -> {other}: takes over its map",
            "move": f"  {other}: moved, brings its map along",
            "insert": f"  + {other}: its own attention",
            "delete": f"  - {one}: gone",
            "degree": f"  + {other}: a share of the map of {one}, times {step.factor:g}",
        }[step.kind]


def _shown(prompt: Prompt, words: Sequence[int]) -> str:
    """Words with the number of their tokens where there are several."""
    sizes = [(prompt.words[i].text, len(prompt.words[i].columns)) for i in words]
    return " ".join(text if size == 1 else f"{text} ({size} tokens)" for text, size in sizes)


def _map(mapper: torch.Tensor, source: Columns, target: Columns) -> None:
    """One token to one where they are equally many; else each token of the source to all, in equal shares."""
    if len(source) == len(target):
        mapper[list(source), list(target)] = 1
    else:
        mapper[torch.tensor(source)[:, None], torch.tensor(target)] = 1 / len(target)


def _map_rest(mapper: torch.Tensor, source: Columns, target: Columns) -> None:
    """Start, end and padding tokens, counted from the first of each; the last takes, or gives to, all that are over."""
    last = min(len(source), len(target)) - 1
    if last >= 0:
        _map(mapper, source[:last], target[:last])
        mapper[torch.tensor(source[last:])[:, None], torch.tensor(target[last:])] = 1 / (len(target) - last)


def align(source: Prompt, target: Prompt, operation: str = "auto") -> Alignment:
    """Aligns two prompts.

    `auto`: words that stay keep their maps, a word in another's place takes over its map (from the end of a changed phrase, where the
    noun is), a word that moved brings its map along, a degree word gets a share of its neighbor's, new words attend for themselves.
    `replace`: a changed phrase takes over the maps of the phrase it replaces, shared evenly (the paper's word swap).
    `refine`: words that stay keep their maps, all others attend for themselves (the paper's prompt refinement).
    `reweight only`: every word attends for itself.
    """
    check_choice("operation", operation, OPERATIONS)
    return Alignment(source, target, tuple(_steps(source, target, operation)), operation)


def stretched(mapper: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """A mapper between conditionings that were repeated so many times to reach one length.

    Repeating keys and values leaves attention's output as it is and splits a token's map evenly over its copies.
    """
    return mapper.repeat(source, target) / target
