"""The transformers of a UNet, and the names by which a text means some of them: `middle, output3-5, input1.0`, or `1/2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One transformer of a UNet, as the host numbers it. `scale`: a token is so many cells of the latent wide."""

    block: str
    number: int
    index: int
    scale: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.block, self.number, self.index

    @property
    def group(self) -> str:
        """Layers of one size."""
        return f"1/{self.scale}"

    def __str__(self) -> str:
        return f"{self.block} {self.number}"


_NAME = re.compile(r"(all|input|middle|output)(?:(\d+)(?:-(\d+))?)?(?:\.(\d+))?|1/(\d+)")


def _is_named(place: Place, name: re.Match) -> bool:
    block, first, last, index, share = name.groups()
    if share:
        return place.scale >= int(share)
    within = first is None or int(first) <= place.number <= int(last or first)
    return block in ("all", place.block) and within and index in (None, str(place.index))


def named(name: str, places: Sequence[Place]) -> list[Place]:
    """The places that a name means; none where it is no name, or names none of them."""
    read = _NAME.fullmatch(name.replace(" ", ""))
    return [p for p in places if read and _is_named(p, read)]


def names_of(places: Iterable[Place]) -> str:
    """What an error may offer: the names that there are, and how to write them."""
    known = ", ".join(dict.fromkeys(f"{p.block}{p.number} (1/{p.scale})" for p in places))
    return (
        f"all, input, middle, output, {known}; 1/2 is all layers of at most half the latent's side, output3-5 several blocks, input1.0 the first "
        "transformer of a block."
    )
