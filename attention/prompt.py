"""A prompt as words and the token columns they occupy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from ..guidance.errors import listed, quoted

Token = Hashable
Columns = tuple[int, ...]
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # written without spaces: each sign is a word
_MARK, _JOINER, _FLAG = "\u0300", "\u200d", "\U0001f1e6"
_LETTERS = rf"[^\W{_CJK}](?:[^\W{_CJK}]|[{_MARK}{_JOINER}])*"
_SIGN = rf"[^\w\s]{_MARK}*"
_WORD = re.compile(rf"embedding:[^\s,<\[]+|[{_CJK}]{_MARK}*|{_LETTERS}(?:['’]{_LETTERS})*|{_FLAG}{{2}}|{_SIGN}(?:{_JOINER}{_SIGN})*")
# Soft hyphens and non-joiners within words, skin tones, tags of flags.
_BELONGING = re.compile("[\u00ad\u200c\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")


def is_mark(character: str) -> bool:
    """Whether a character belongs to the one before it: vowel signs, accents, skin tones. Python's `\\w` excludes most of them."""
    return unicodedata.category(character)[0] == "M" or _BELONGING.match(character) is not None


def _alike(character: str) -> str:
    """One mark for all marks, one flag letter for all of them."""
    if is_mark(character):
        return _MARK
    return _FLAG if "\U0001f1e6" <= character <= "\U0001f1ff" else character


def words_in(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a text; punctuation and emoji are words."""
    return [m.span() for m in _WORD.finditer("".join(map(_alike, text)))]


def folded(word: str) -> str:
    """A word without the differences of capitals and of accents in one character or two."""
    return unicodedata.normalize("NFC", word.casefold())


class Tokenizer(Protocol):
    """What a text encoder makes of a text."""

    def chunks(self, text: str) -> Sequence[Sequence[tuple[Token, bool]]]:
        """All columns of the conditioning, chunk after chunk: (token, whether it is text: not start, end or padding)."""

    def parts(self, text: str) -> Sequence[str]:
        """The pieces of a prompt that are turned into tokens on their own, without the syntax of weights."""

    def tokens(self, part: str) -> Sequence[Token]:
        """The tokens of a plain text, those of text alone."""


@dataclass(frozen=True)
class Word:
    text: str
    columns: Columns

    @property
    def key(self) -> str:
        return folded(self.text)


@dataclass(frozen=True)
class Prompt:
    """A prompt's words with their columns; `heads` and `tails` are the columns before and after the text in each chunk."""

    text: str
    words: tuple[Word, ...]
    heads: tuple[Columns, ...]
    tails: tuple[Columns, ...]
    length: int

    def find(self, phrase: str) -> list[tuple[int, ...]]:
        """A word or phrase wherever it is, as indices of words; 'cat#2' is the second. Empty where there are none."""
        plain, _, number = phrase.strip().partition("#")
        wanted = [folded(plain[a:b]) for a, b in words_in(plain)]
        starts = range(len(self.words) - len(wanted) + 1) if wanted else ()
        found = [tuple(range(i, i + len(wanted))) for i in starts if [w.key for w in self.words[i : i + len(wanted)]] == wanted]
        if number.strip().isdigit():
            return found[int(number) - 1 : int(number)] if int(number) else []
        return found

    def columns(self, words: Iterable[int]) -> Columns:
        return tuple(c for i in words for c in self.words[i].columns)

    @property
    def listed(self) -> str:
        return listed(w.text for w in self.words)


def unknown_word(phrase: str, prompts: Iterable[Prompt]) -> ValueError:
    """The error of a word that is in none of the prompts; it lists the words of the first three."""
    known = "; ".join(f"the words of {quoted(p.text)} are: {p.listed}" for p in list(dict.fromkeys(prompts))[:3])
    return ValueError(
        f"{quoted(phrase.strip())} is in none of the prompts; {known}. Name one of these (the second of two alike is 'word#2')."
    )


def common(a: Sequence[Token], b: Sequence[Token]) -> int:
    """The length of the common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _words_of(part: str, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """(word, number of its tokens) of a plain text. Words that share a token are one word; one without tokens is none."""
    whole, found, start, before = list(tokenizer.tokens(part)), [], None, 0
    places = words_in(part)
    for own, stop in places:
        tokens = whole if stop == places[-1][1] else tokenizer.tokens(part[:stop])
        if start is None and list(tokens) == whole[:before]:  # such as an embedding that does not exist
            continue
        start, end = own if start is None else start, common(tokens, whole)
        if end > before:
            found.append((part[start:stop], end - before))
            start, before = None, end
    return found


def read(text: str, tokenizer: Tokenizer) -> Prompt:
    """The words of a prompt and the columns of their tokens.

    Raises ValueError, with the tokens, where the words do not fit them.
    """
    chunks = [list(c) for c in tokenizer.chunks(text)]
    flat = [entry for chunk in chunks for entry in chunk]
    content = [i for i, (_, is_text) in enumerate(flat) if is_text]
    words = _checked([w for part in tokenizer.parts(text) for w in _words_of(part, tokenizer)], text, [flat[i][0] for i in content])
    heads, tails, start, before = [], [], 0, _tokens_before(tokenizer)
    for chunk in chunks:
        own = [start + i for i, (_, is_text) in enumerate(chunk) if not is_text]
        heads.append(tuple(c for c in own if c < start + before))
        tails.append(tuple(c for c in own if c >= start + before))
        start += len(chunk)
    ends = [0]
    for _, size in words:
        ends.append(ends[-1] + size)
    placed = tuple(Word(word, tuple(content[a:b])) for (word, _), (a, b) in zip(words, pairwise(ends)))
    return Prompt(text, placed, tuple(heads), tuple(tails), len(flat))


def _tokens_before(tokenizer: Tokenizer) -> int:
    """How many tokens precede the text in each chunk."""
    return next((i for i, (_, is_text) in enumerate(tokenizer.chunks("a")[0]) if is_text), 0)


def _checked(words: list[tuple[str, int]], text: str, tokens: list[Token]) -> list[tuple[str, int]]:
    if sum(size for _, size in words) != len(tokens):
        shown = listed(f"{word} ({size})" for word, size in words)
        raise ValueError(
            f"The prompt {quoted(text)} cannot be split into words: it has {len(tokens)} tokens ({listed(tokens)}), but its words "
            f"have {shown}. Write it without special signs, or without weights in brackets."
        )
    return words


def joined(prompts: Sequence[Prompt]) -> Prompt:
    """One text as several encoders see it whose columns follow each other: each word has the columns of all."""
    first, start, shifted = prompts[0], 0, []
    for prompt in prompts:
        shifted.append(moved(prompt, start))
        start += prompt.length
    if any([w.key for w in p.words] != [w.key for w in first.words] for p in prompts):
        raise ValueError(
            f"The text encoders see other words in {quoted(first.text)}: " + " / ".join(p.listed for p in prompts) + ". Reword it."
        )
    words = tuple(Word(same[0].text, tuple(c for w in same for c in w.columns)) for same in zip(*(p.words for p in shifted)))
    heads, tails = (tuple(c for p in shifted for c in getattr(p, kind)) for kind in ("heads", "tails"))
    return Prompt(first.text, words, heads, tails, start)


def moved(prompt: Prompt, by: int) -> Prompt:
    """A prompt whose columns are so many places later; those that would come before the first are gone."""

    def shift(columns: Columns) -> Columns:
        return tuple(c + by for c in columns if c + by >= 0)

    words = tuple(replace(w, columns=shift(w.columns)) for w in prompt.words)
    heads, tails = (tuple(map(shift, columns)) for columns in (prompt.heads, prompt.tails))
    return replace(prompt, words=words, heads=heads, tails=tails, length=prompt.length + by)
