"""Reads lists of words, with weights or windows, from a node's text."""

from __future__ import annotations

import re

from ..guidance.errors import quoted


def _items(text: str) -> list[tuple[str, str]]:
    """(words, value) of `blue: 1.5, (red circle:0.5)`."""
    pairs = []
    for item in filter(None, (i.strip() for i in re.split(r"[,;]", text))):
        bare = item[1:-1] if item.startswith("(") and item.endswith(")") else item
        words, colon, value = bare.rpartition(":")
        if not colon or not words.strip():
            raise ValueError(f"{quoted(item)} names no value; write the word, a colon and the value, such as 'blue: 1.5'.")
        pairs.append((words.strip(), value.strip()))
    return pairs


def weights_from(text: str) -> list[list[tuple[str, float]]]:
    """Reads weights of words, `blue: 1.5, (circle:0.5)`; one list for each line that is not empty."""
    lists = []
    for line in filter(str.strip, text.splitlines()):
        pairs = _items(line)
        for words, value in pairs:
            if not _is_number(value):
                raise ValueError(
                    f"The weight of {quoted(words)} is {quoted(value)}; give a number: 1 is neutral, typical 0 to 3, below 0 the opposite."
                )
        lists.append([(words, float(value)) for words, value in pairs])
    return lists


def windows_from(text: str) -> list[tuple[str, tuple[float, float]]]:
    """Reads windows of words in percent of the sampling, `blue: 0-0.4, circle: 0.2-1`."""
    windows = []
    for words, value in _items(text.replace("\n", ",")):
        start, dash, end = value.partition("-")
        if not (dash and _is_number(start) and _is_number(end) and 0 <= float(start) <= float(end) <= 1):
            raise ValueError(
                f"The window of {quoted(words)} is {quoted(value)}; give start-end with 0 <= start <= end <= 1, such as 0-0.4."
            )
        windows.append((words, (float(start), float(end))))
    return windows


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", text) is not None


def words_from(text: str) -> list[str]:
    """Words, phrases or names between commas, semicolons or line breaks."""
    return [w.strip() for w in re.split(r"[,;\n]", text) if w.strip()]
