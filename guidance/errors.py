"""How errors show what a user gave: one way to quote a text, to list options, and to refuse a choice, so that no message runs on for pages."""

from __future__ import annotations

from collections.abc import Collection, Iterable

_QUOTED = 100  # characters of a text or an option
_LISTED, _IN_ALL = 20, 400  # options, and characters of them together


def quoted(text: object) -> str:
    """A text for an error: in quotes, without control characters, its first 100 characters."""
    text = str(text)
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}... ({len(text)} characters)"


def listed(options: Iterable) -> str:
    """Options for an error: the first 20, or as many as 400 characters hold."""
    known = [o if len(o) <= _QUOTED else f"{o[:_QUOTED]}..." for o in map(str, options)]
    shown = known[:_LISTED]
    while sum(map(len, shown)) > _IN_ALL:
        shown.pop()
    return ", ".join(shown) + f" and {len(known) - len(shown)} more" * (len(known) > len(shown)) or "none"


def check_choice(name: str, value: object, options: Collection) -> None:
    """Refuses a value that is none of the options. Raises ValueError."""
    if value not in options:
        raise ValueError(f"{name} is {quoted(value)}; choose one of {listed(options)}.")
