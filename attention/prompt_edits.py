"""A source prompt and its targets for Prompt-to-Prompt: their alignments, word weights, windows and local blends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..guidance.errors import quoted
from .alignment import FUNCTION_WORDS, Alignment, align
from .local_blend import LocalBlend, Pair
from .prompt import Columns, Prompt, unknown_word
from .prompt_to_prompt import Edit, Settings, Window
from .word_lists import weights_from, windows_from, words_from

REACH = 3  # words behind a changed one that may describe the same thing


@dataclass(frozen=True)
class PromptEdits:
    """A source prompt and its targets, aligned. Two targets may be one text with different weights. `windows` is the node's text of them."""

    alignments: tuple[Alignment, ...]
    weights: tuple[dict[int, float], ...]  # of columns, for each target
    weighted: tuple[tuple[int, ...], ...]  # words of each target that have a weight
    windows: str = ""

    @classmethod
    def from_prompts(cls, source: Prompt, targets: Sequence[Prompt], operation: str, weights: str, windows: str = "") -> PromptEdits:
        """`weights` and `windows` as the node's texts of words have them."""
        lines = weights_from(weights) or [[]]
        if len(targets) == 1:
            targets = list(targets) * len(lines)
        if len(lines) not in (1, len(targets)):
            raise ValueError(
                f"word_weights has {len(lines)} lines for {len(targets)} targets. Give one line for all of them, one for each, or one target for "
                "all lines."
            )
        lines = lines * len(targets) if len(lines) == 1 else lines
        for words_of_line in {w for line in lines for w, _ in line}:
            if not any(t.find(words_of_line) for t in targets):
                raise unknown_word(words_of_line, targets)
        of_columns = tuple(_weights(target, line) for target, line in zip(targets, lines))
        weighted = tuple(tuple(i for w, _ in line for i in _indices(target, w)) for target, line in zip(targets, lines))
        return cls(tuple(align(source, t, operation) for t in targets), of_columns, weighted, windows)

    @property
    def prompts(self) -> list[Prompt]:
        return [self.alignments[0].source, *(a.target for a in self.alignments)]

    def edits(self, settings: Settings, times: Sequence[int]) -> tuple[Edit, ...]:
        """The edits of all targets; `times` is how often the source's and the targets' conditionings are repeated."""
        windows, edits = windows_from(self.windows), []
        for phrase, _ in windows:
            if not any(a.target.find(phrase) for a in self.alignments):
                raise unknown_word(phrase, self.prompts[1:])
        for alignment, weights, n in zip(self.alignments, self.weights, times[1:]):
            own = {c: Window(*w) for phrase, w in windows for c in alignment.target.columns(_indices(alignment.target, phrase))}
            edits.append(Edit.from_alignment(alignment, settings, weights, own).repeated(times[0], n))
        return tuple(edits)

    def blend(self, words: str, protect: str, times: Sequence[int], **shape) -> LocalBlend | None:
        """The local blend of words, and of words to protect; None where there are none. `shape` as of `LocalBlend`."""
        blend = LocalBlend(self._columns(words, times), self._columns(protect, times), **shape)
        return None if blend.empty else blend

    def _columns(self, text: str, times: Sequence[int]) -> tuple[Pair, ...]:
        """For each target the columns of words, and of their matches in the other prompt, in the source and in the target."""
        phrases, chosen = words_from(text), []
        for phrase in phrases:
            if phrase != "*" and not any(p.find(phrase) for p in self.prompts):
                raise unknown_word(phrase, self.prompts)
        for number, (alignment, n) in enumerate(zip(self.alignments, times[1:])):
            found = [self._words(phrase, number) for phrase in phrases]
            sides = (alignment.source, times[0]), (alignment.target, n)
            chosen.append(tuple(_repeated(p, {i for words in found for i in words[side]}, n) for side, (p, n) in enumerate(sides)))
        return tuple(chosen)

    def _words(self, phrase: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of a phrase's words in the source and in a target; its matches where it is not there.

        '*' is all that changes, and the things that changed words describe.
        """
        alignment = self.alignments[number]
        if phrase == "*":
            source, target = alignment.changed()
            source = _with_things(alignment.source, source)
            target = _with_things(alignment.target, (*target, *self.weighted[number]))
            return (*source, *alignment.origins(target)), (*target, *alignment.counterparts(source))
        source, target = _indices(alignment.source, phrase), _indices(alignment.target, phrase)
        source = source or alignment.origins(target)
        return source, target or alignment.counterparts(source)

    def text(self) -> str:
        """The alignments and weights, readable."""
        blocks = []
        for alignment, weights in zip(self.alignments, self.weights):
            blocks.append("\n".join(filter(None, (alignment.text(), weights_text(alignment.target, weights)))))
        return "\n\n".join(blocks)


def _indices(prompt: Prompt, phrase: str) -> tuple[int, ...]:
    return tuple(i for words in prompt.find(phrase) for i in words)


def _with_things(prompt: Prompt, words: Iterable[int]) -> tuple[int, ...]:
    """Words and those behind them in the same phrase, such as the noun of an adjective."""
    found = dict.fromkeys(words)
    for word in list(found):
        behind = prompt.words[word + 1 : word + 1 + REACH]
        phrase = takewhile(lambda w: w.key not in FUNCTION_WORDS and w.text[0].isalnum(), behind)
        found |= dict.fromkeys(range(word + 1, word + 1 + len(list(phrase))))
    return tuple(found)


def weights_of(prompt: Prompt, parts: Sequence[tuple[str, float]], listed: Sequence[tuple[str, float]]) -> dict[int, float]:
    """Weights of columns that are not 1, from the parts of a prompt's text with their weights and from a list of words; of both, the product.

    Raises ValueError for a listed word that is not in the prompt.
    """
    unknown = next((phrase for phrase, _ in listed if not prompt.find(phrase)), None)
    if unknown is not None:
        raise unknown_word(unknown, [prompt])
    text, of_signs = "".join(part for part, _ in parts), [weight for part, weight in parts for _ in part]
    found, end = dict.fromkeys(prompt.columns(range(len(prompt.words))), 1.0), 0
    for word in prompt.words:
        start = text.index(word.text, end)
        end = start + len(word.text)
        found |= dict.fromkeys(word.columns, of_signs[start])
    for column, weight in _weights(prompt, listed).items():
        found[column] *= weight
    return {column: weight for column, weight in found.items() if weight != 1.0}


def weights_text(prompt: Prompt, weights: dict[int, float]) -> str:
    """The weights of words, a line for each."""
    return "\n".join(_weight_line(prompt, i, weights) for i, word in enumerate(prompt.words) if word.columns[0] in weights)


def _weight_line(prompt: Prompt, word: int, weights: dict[int, float]) -> str:
    """The weight of a word; with the words behind it that describe the same thing and have none."""
    line = f"  x {weights[prompt.words[word].columns[0]]:g} {prompt.words[word].text}"
    phrase = _with_things(prompt, [word])
    if all(prompt.words[i].columns[0] in weights for i in phrase):
        return line
    return f"{line}: the words behind it carry its meaning too; if little changes, weight {quoted(' '.join(prompt.words[i].text for i in phrase))}"


def _repeated(prompt: Prompt, words: Iterable[int], times: int) -> Columns:
    """The columns of words in a conditioning that is repeated so many times."""
    return tuple(sorted(c + i * prompt.length for c in prompt.columns(words) for i in range(times)))


def _weights(prompt: Prompt, line: Iterable[tuple[str, float]]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for phrase, value in line:
        weights |= dict.fromkeys(prompt.columns(_indices(prompt, phrase)), value)
    return weights
