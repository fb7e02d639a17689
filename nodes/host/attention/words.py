"""Controls that read the attention of words: which columns the words of each row's prompt have, and in which layers they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import torch

from ....attention.call import QKSharing
from ....attention.maps import Columns
from ....attention.prompt import Prompt, moved, unknown_word
from ....attention.word_lists import words_from
from ....guidance.errors import quoted
from ..prompts import encoded, prompt_of
from .dit import Dit
from .hook import NONE, Control, ControlRun


@dataclass(frozen=True)
class WordReading(Control):
    """A control that reads words in some layers (keys of places).

    `words` has an entry for each row of the conditioning, all of the same words; a word that a row's prompt lacks has no columns there.
    """

    words: tuple[dict[str, Columns], ...]
    layers: frozenset
    scale: int = 8  # pixels of a latent's cell
    length: int = 77  # columns of the conditioning

    def images(self, count: int) -> list[tuple[list[int], list[Columns]]]:
        """Neighbors among so many images whose words have the same columns, and these; ComfyUI repeats rows over a larger batch."""
        rows = [(i, self.words[i % len(self.words)]) for i in range(count)]
        return [([i for i, _ in same], list(words.values())) for words, same in groupby(rows, itemgetter(1))]


class WordReadingRun(ControlRun):
    """The same during one run. Subclasses say when it `reading_now` is."""

    control: WordReading

    @property
    def reading_now(self) -> bool:
        """Whether the words are read in this prediction."""
        raise NotImplementedError

    def wanted(self, kind: str) -> frozenset:
        return self.control.layers if kind != "self" and self.reading_now and self.reads else NONE

    def maps(self, call: QKSharing, first: int, tokens: int) -> torch.Tensor | None:
        """(images, words, N): how much the image's tokens of a layer attend to each word; None where it is not the whole image."""
        if call.size is None or not call.covers(self.latent):
            return None
        return call.word_maps(self.cache.get(("words", first, tokens, self.images), lambda: self._words(first, tokens)), tokens)

    def summed(self, values: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Values (images, ...) of what is evaluated, summed over the copies of the batch that nodes may predict at once, and how many these are."""
        copies, over = divmod(self.images, self.batch)
        return (values, 1) if copies == 1 or over else (values.unflatten(0, (copies, -1)).sum(0), copies)

    def _words(self, first: int, tokens: int) -> list[tuple[list[int], list[list[int]]]]:
        """The rows of the images of a part, and the tokens of their words."""
        start = self.dit.text_start(self.control.length, tokens) if self.dit else 0
        found = self.control.images(self.images)
        return [([first + i for i in images], [[start + c for c in word] for word in words]) for images, words in found]


def words_of(prompts: Sequence[Prompt], text: str) -> tuple[dict[str, Columns], ...]:
    """The columns, in each prompt, of the words and phrases of a text; of every word of the prompts where it is empty."""
    asked = words_from(text) or list(dict.fromkeys(w.text for p in prompts for w in p.words if w.text[0].isalnum()))
    if not asked:
        raise ValueError("The prompt has no words. Write one, so that there is something to look for.")
    for phrase in asked:
        if not any(p.find(phrase) for p in prompts):
            raise unknown_word(phrase, prompts)
    return tuple({phrase: p.columns(i for words in p.find(phrase) for i in words) for phrase in asked} for p in prompts)


def _in_row(prompt: Prompt, features: torch.Tensor, in_front: bool) -> Prompt:
    """A prompt with the columns it has in a row of several (n, width), which were brought to one length as `prompts.as_rows` does."""
    n, whole = prompt.length, len(features)
    if in_front:
        return moved(prompt, whole - n)
    if whole == n or whole % n or not torch.equal(features[:n].repeat(whole // n, 1), features):
        return prompt
    words = tuple(replace(w, columns=tuple(c + i for i in range(0, whole, n) for c in w.columns)) for w in prompt.words)
    return replace(prompt, words=words, length=whole)


def _prompts_of_rows(clip, text: str, features: torch.Tensor, in_front: bool) -> list[Prompt]:
    """The prompt of each row of a conditioning of several texts (rows, n, width): lines of the text, each for as many neighbors.

    Raises ValueError where lines and rows do not fit.
    """
    lines, rows = list(filter(None, map(str.strip, text.splitlines()))), len(features)
    each = rows // max(len(lines), 1)
    parts = features.split(each) if lines and each * len(lines) == rows else ()
    if not parts or any(not torch.equal(row, part[0]) for part in parts for row in part):
        raise ValueError(
            f"The conditioning holds {rows} texts, but the prompt has {len(lines)} line(s). Write each text on a line of its own, in their order: "
            "of P2P Attention Patch the source, then every target."
        )
    found = [(prompt_of(clip, line, encoded(clip, line)[0][0].shape[1]), part) for line, part in zip(lines, parts)]
    return [_in_row(_fitting(prompt, part), part[0], in_front) for prompt, part in found for _ in part]


def _fitting(prompt: Prompt, features: torch.Tensor) -> Prompt:
    """The prompt, whose conditioning must not be shorter than it."""
    if features.shape[1] < prompt.length:
        raise ValueError(
            f"The conditioning holds texts of {features.shape[1]} tokens, but the prompt {quoted(prompt.text)} makes one of {prompt.length}. Connect the "
            "conditioning of just this prompt, or none."
        )
    return prompt


def read_prompts(clip, text: str, conditioning: list | None, dit: Dit | None) -> tuple[list[Prompt], list]:
    """(the prompt of each row, the conditioning), which is encoded here where none is given."""
    if conditioning and len(conditioning[0][0]) > 1:
        return _prompts_of_rows(clip, text, conditioning[0][0], bool(dit and dit.filled_in_front)), conditioning
    own = encoded(clip, text)
    prompt = prompt_of(clip, text, own[0][0].shape[1])
    for features, _ in conditioning or ():
        _fitting(prompt, features)
    return [prompt], conditioning or own
