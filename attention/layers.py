"""The attention layers of UNets and DiTs, and the names by which a text chooses some: `middle, output3-5`, `1/2`, or `early, 8-15`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..guidance.errors import quoted
from .word_lists import words_from


@dataclass(frozen=True)
class Place:
    """One transformer of a UNet, as ComfyUI numbers it. `scale`: a token is so many cells of the latent wide."""

    block: str
    number: int
    index: int
    scale: int

    @cached_property
    def key(self) -> tuple[str, int, int]:
        return self.block, self.number, self.index

    @property
    def group(self) -> str:
        """Layers of one size."""
        return f"1/{self.scale}"

    def __str__(self) -> str:
        return f"{self.block} {self.number}"

    @staticmethod
    def named(name: str, places: Sequence[Place]) -> list[Place]:
        """The places that a name means; none where it is no name, or names none of them."""
        read = _NAME.fullmatch(name.replace(" ", ""))
        return [p for p in places if read and _is_named(p, read)]

    @staticmethod
    def no_match(places: Sequence[Place]) -> str:
        """What an error says of a name that means none of them."""
        return f"names no layer of this model. Write names between commas, of: {names_of(places)}"


_NAME = re.compile(r"(all|input|middle|output)(?:(\d+)(?:-(\d+))?)?(?:\.(\d+))?|1/(\d+)")


def _is_named(place: Place, name: re.Match) -> bool:
    block, first, last, index, share = name.groups()
    if share:
        return place.scale >= int(share)
    within = first is None or int(first) <= place.number <= int(last or first)
    return block in ("all", place.block) and within and index in (None, str(place.index))


def names_of(places: Iterable[Place]) -> str:
    """What an error may offer: the names that there are, and how to write them."""
    known = ", ".join(dict.fromkeys(f"{p.block}{p.number} (1/{p.scale})" for p in places))
    return (
        f"all, input, middle, output, {known}; 1/2 is all layers of at most half the latent's side, output3-5 several blocks, input1.0 the first "
        "transformer of a block."
    )


@dataclass(frozen=True)
class Block:
    """An attention of a DiT: the `number`-th of its kind in a call of the network, of `total` blocks."""

    number: int
    total: int

    @property
    def group(self) -> str:
        return GROUPS[min(3 * self.number // self.total, 2)]

    @property
    def key(self) -> int:
        return self.number

    def __str__(self) -> str:
        return f"block {self.number}"

    @staticmethod
    def named(name: str, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that a name means; layers by size, `1/2`, are all, which have one size."""
        match = _BLOCKS.fullmatch(name.replace(" ", ""))
        if not match:
            return []
        third, first, last = match.groups()
        if third:
            return [b for b in blocks if third[:2] == "1/" or third in ("all", b.group)]
        return [b for b in blocks if int(first) <= b.number <= int(last or first)]

    @staticmethod
    def no_match(blocks: Sequence[Block]) -> str:
        """What an error says of a name that means none of them."""
        return (
            f"names no block of this model. Write between commas: all, early, middle, late (thirds of its {len(blocks)} blocks), or numbers from "
            f"0 to {len(blocks) - 1}, such as 12 or 8-15."
        )


GROUPS = ("early", "middle", "late")  # thirds of a DiT's blocks
_BLOCKS = re.compile(r"(all|early|middle|late|1/\d+)|(\d+)(?:-(\d+))?")


def chosen(text: str, places: Sequence[Place] | Sequence[Block], what: str) -> frozenset:
    """The keys of layers from a text such as `middle, output3-5`, or `1/2` for all whose side is at most half the latent's; of blocks of a DiT
    `middle, 30-37`.

    Empty: none. Raises ValueError with the first entry that names none.
    """
    kind, keys = type(places[0]), set()
    for entry in words_from(text):
        found = {place.key for place in kind.named(entry, places)}
        if not found:
            raise ValueError(f"{what} has {quoted(entry)}, which {kind.no_match(places)}")
        keys |= found
    return frozenset(keys)
