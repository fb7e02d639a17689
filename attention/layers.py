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


GROUPS = ("early", "middle", "late")  # thirds of a DiT's blocks
_BLOCKS = re.compile(r"(all|early|middle|late|1/\d+)|(\d+)(?:-(\d+))?")


def chosen_blocks(text: str, places: Sequence[Block], what: str) -> frozenset[int]:
    """The numbers of a DiT's blocks from a text such as `middle, 30-37`; layers by size, `1/2`, are all, which have one size.

    Raises ValueError with the entry that names none.
    """
    found = set()
    for given in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
        name = _BLOCKS.fullmatch(given.replace(" ", ""))
        third, first, last = name.groups() if name else (None, None, None)
        third = "all" if third and third[0] == "1" else third
        chosen = {p.key for p in places if name and (third in ("all", p.group) or (first and int(first) <= p.number <= int(last or first)))}
        if not chosen:
            raise ValueError(
                f"{what} has '{given}', which names no block of this model. Write between commas: all, early, middle, late (thirds of its "
                f"{len(places)} blocks), or numbers from 0 to {len(places) - 1}, such as 12 or 8-15."
            )
        found |= chosen
    return frozenset(found)
