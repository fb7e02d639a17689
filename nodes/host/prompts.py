"""Prompts as the host's text encoders see them: tokens, words, and conditionings of several prompts as rows of one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...attention.alignment import Prompt, joined, read

LAYOUTS = {  # names of the encoders in the host's tokens, and whose columns stand in the conditioning one after the other
    frozenset({"l"}): ("l",),
    frozenset({"h"}): ("h",),
    frozenset({"g"}): ("g",),
    frozenset({"g", "l"}): ("g",),
}


def _key(token) -> Hashable:
    """A token as something to compare: the vectors of an embedding file are tensors."""
    return ("vector", hash(token.detach().float().cpu().numpy().tobytes())) if torch.is_tensor(token) else token


class HostTokenizer:
    """One of the tokenizers of a CLIP, by the name under which the host gives its tokens."""

    def __init__(self, clip, name: str):
        self.clip, self.name = clip, name

    def chunks(self, text: str) -> list[list[tuple[Hashable, bool]]]:
        return [[(_key(entry[0]), entry[2] != 0) for entry in chunk] for chunk in self.clip.tokenize(text, return_word_ids=True)[self.name]]

    def _text(self, text: str) -> list[Hashable]:
        return [token for chunk in self.chunks(text) for token, is_text in chunk if is_text]

    @cached_property
    def weighted(self) -> bool:
        """Whether it reads (word:1.5) as a weight."""
        return self._text("(a:1.5)") == self._text("a")

    def parts(self, text: str) -> list[str]:
        if not self.weighted:
            return [text]
        return [unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0)]

    def tokens(self, part: str) -> list[Hashable]:
        return self._text(part.replace("(", "\\(").replace(")", "\\)") if self.weighted else part)


def prompt_of(clip, text: str) -> Prompt:
    """The words of a prompt with their columns in the conditioning that the CLIP makes of it."""
    names = clip.tokenize("").keys()
    layout = LAYOUTS.get(frozenset(names))
    if layout is None:
        raise ValueError(
            f"This text encoder gives tokens of {', '.join(sorted(names))}, whose places in the conditioning are not known. Use the CLIP of an "
            "SD1.5, SD2 or SDXL model."
        )
    found = {name: read(text, HostTokenizer(clip, name)) for name in names}
    if len(layout) == 1 and len({p.words for p in found.values()}) > 1:
        shown = "; ".join(f"{name}: " + ", ".join(f"{w.text} ({len(w.columns)})" for w in p.words) for name, p in found.items())
        raise ValueError(
            f"The text encoders make different tokens of '{text}', so that they do not stand for the same words: {shown}. Use an embedding that "
            "has equally many vectors for both."
        )
    return joined([found[name] for name in layout])


def encoded(clip, text: str) -> list:
    """The CONDITIONING of a text, as CLIPTextEncode makes it. Refuses scheduled ones, which have several parts."""
    made = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(made) != 1:
        raise ValueError(
            f"The CLIP gives {len(made)} conditionings for '{text}', for parts of the sampling. Remove hooks and schedules from the CLIP."
        )
    return made


def as_rows(conditionings: Sequence[list], repeats: int) -> tuple[list, list[int]]:
    """One CONDITIONING with a row for each of several, each `repeats` times; and how often each was repeated along its tokens.

    Texts of unequal length are repeated to a common one, as the host does with positive and negative: attention's output is the same.
    """
    features, extras = zip(*(c[0] for c in conditionings))
    length = math.lcm(*(f.shape[1] for f in features))
    times = [length // f.shape[1] for f in features]

    def rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([t.expand(repeats, *t.shape[1:]) for t in tensors])

    values = {}
    for name, first in extras[0].items():
        given = [e.get(name) for e in extras]
        alike = all(torch.is_tensor(v) and v.shape == first.shape for v in given) if torch.is_tensor(first) and first.ndim > 1 else False
        values[name] = rows(given) if alike else first
    return [[rows([f.repeat(1, n, 1) for f, n in zip(features, times)]), values]], times
