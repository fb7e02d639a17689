"""A second text that goes through a network behind the first, and the attentions that keep the two apart.

Text embedders, projections and blocks of a network act on each token by itself. So in an attention the first text and the image see what they
see without the second text; the second is kept there for controls, and where text takes part in attention it goes on as a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import comfy.utils
import torch

from ....attention.call import QKSharing
from ....attention.row_plan import RowSelection


def filled_up(more: torch.Tensor, tokens: int) -> torch.Tensor:
    """A text (rows, n, C) with its last token repeated, up to so many tokens."""
    return torch.cat([more, more[:, -1:].expand(-1, tokens - more.shape[1], -1)], 1)


def with_second_text(text: torch.Tensor, more: torch.Tensor, options: dict, kwargs: dict) -> tuple[torch.Tensor, dict, dict]:
    """The text (B, L, C) with more (rows, n, C) behind it, and the options and arguments that the network takes both with."""
    options, kwargs = with_second_places(options, text.shape[1], more.shape[1]), with_longer_mask(kwargs, text, more)
    return with_more_text(text, more), options, kwargs


def with_more_text(text: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """What the network gets: the text (B, L, C) and behind it more (rows, n, C), whose rows are repeated as often as needed."""
    return torch.cat([text, comfy.utils.repeat_to_batch_size(more.to(text), len(text))], 1)


def without_more_text(k: torch.Tensor, v: torch.Tensor, text: int, more: int) -> tuple[torch.Tensor, torch.Tensor, tuple]:
    """(keys, values, (keys, values) of the second text) of a cross-attention of a UNet."""
    if k.shape[1] != text + more:
        raise ValueError(
            f"The cross-attention got {k.shape[1]} tokens instead of {text} of the prompt and {more} of the negative: another node changes the text "
            "inside the network. Remove that node from the model, or Negative Attention."
        )
    (k, second_k), (v, second_v) = (t.split([text, more], 1) for t in (k, v))
    return k, v, (second_k, second_v)


def with_longer_mask(kwargs: dict, text: torch.Tensor, more: torch.Tensor) -> dict:
    """The network's arguments with an attention mask of the text that lets the second text be seen."""
    mask = kwargs.get("attention_mask")
    if mask is None:
        return kwargs
    if mask.ndim != 2 or mask.shape[1] != text.shape[1]:
        raise ValueError(
            f"The conditioning has an attention mask of shape {tuple(mask.shape)}, such as Apply Style Model makes, with which Negative Attention "
            "does not work. Remove one of the two nodes."
        )
    seen = torch.zeros if mask.is_floating_point() else torch.ones
    return {**kwargs, "attention_mask": torch.cat([mask, seen(len(mask), more.shape[1]).to(mask)], 1)}


def with_second_places(options: dict, text: int, more: int) -> dict:
    """The options with a patch that gives the second text places from the first on, in networks in which a text's tokens have places."""
    patches = options.get("patches", {})
    place = partial(_second_places, text, more)
    return {**options, "patches": {**patches, "post_input": [*patches.get("post_input", ()), place]}}


def _second_places(text: int, more: int, given: dict) -> dict:
    ids = given.get("txt_ids")
    if ids is None:
        return given
    first, count = ids[:, :1], torch.arange(more, device=ids.device, dtype=ids.dtype)[None, :, None]
    second = first + (ids[:, 1:2] - first) * count
    return {**given, "txt_ids": torch.cat([ids[:, :text], second, ids[:, text + more :]], 1)}


def _rest(t: torch.Tensor, axis: int, start: int) -> torch.Tensor:
    return t.narrow(axis, start, t.shape[axis] - start)


@dataclass(frozen=True)
class Rotary:
    """The axis of a rotary embedding on which a text's tokens have the places 1, 2, ... and all of the image the next place behind them.

    The first `channels` of a head turn, in pairs of neighbors, at powers of 1 / `theta`. `turns` keeps the turns by places, during one call.
    """

    channels: int
    theta: float
    turns: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)

    def turn(self, places: int, device: torch.device) -> torch.Tensor:
        """(channels / 2), complex."""
        if places not in self.turns:
            rates = self.theta ** (torch.arange(0, self.channels, 2, device=device, dtype=torch.float32) / -self.channels)
            self.turns[places] = torch.polar(torch.ones_like(rates), places * rates)
        return self.turns[places]

    def moved(self, t: torch.Tensor, places: int) -> torch.Tensor:
        """Queries or keys (B, heads, N, width) as if their tokens were so many places further."""
        if not places or not t.shape[-2]:
            return t
        own, rest = t.split([self.channels, t.shape[-1] - self.channels], -1)
        pairs = torch.view_as_complex(own.float().unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * self.turn(places, t.device))
        return torch.cat([turned.flatten(-2).to(t), rest], -1)

    def ends_moved(self, t: torch.Tensor, head: int, places: int, tail: int, tail_places: int) -> torch.Tensor:
        """The same for `head` tokens at the beginning and `tail` tokens at the end, with places of their own."""
        if not ((head and places) or (tail and tail_places)):
            return t
        first, middle, last = t.split([head, t.shape[-2] - head - tail, tail], -2)
        return torch.cat([self.moved(first, places), middle, self.moved(last, tail_places)], -2)


@dataclass(frozen=True)
class SecondText:
    """Where a second text is among the keys of an attention: at `place`. `seen` of its tokens count, the others fill it up.

    The image begins at `image`, and its last `filling` tokens fill it up; None where texts are alone. With a `rotary` the first text's
    tokens are moved to where they would be without the second, and the second's to where they would be without the first.
    """

    place: slice
    seen: int
    image: int | None = None
    filling: int = 0
    rotary: Rotary | None = None

    @property
    def count(self) -> int:
        return self.place.stop - self.place.start

    def own(self, t: torch.Tensor, axis: int) -> torch.Tensor:
        return t.narrow(axis, self.place.start, self.seen)

    def without(self, t: torch.Tensor, axis: int) -> torch.Tensor:
        """A tensor without the second text."""
        return torch.cat([t.narrow(axis, 0, self.place.start), _rest(t, axis, self.place.stop)], axis)

    def with_image(self, own: torch.Tensor, first: torch.Tensor, axis: int) -> torch.Tensor:
        """What the second text sees: its `own`, and the image of a tensor without it."""
        return torch.cat([own, _rest(first, axis, self.image - self.count)], axis)

    def first_placed(self, t: torch.Tensor) -> torch.Tensor:
        """Queries or keys without the second text, from where the network placed them."""
        return t if self.rotary is None else self.rotary.ends_moved(t, self.place.start, self.count, self.filling, self.count)

    def own_placed(self, t: torch.Tensor) -> torch.Tensor:
        """Queries or keys of the second text, from where the network placed them, and of the image, from where it is for the first."""
        if self.rotary is None:
            return t
        behind = self.image - self.seen
        return self.rotary.ends_moved(t, self.seen, behind - self.place.start, self.filling, behind - self.count)


class Parted:
    """An attention of a DiT whose keys hold a second text: `first` are its queries, keys and values without it.

    `keys_only`: the queries are the image's alone. Else the second text's own queries see the second text and the image. `options` are
    those of ComfyUI's attention.
    """

    def __init__(self, qkv: tuple[torch.Tensor, ...], axis: int, second: SecondText, keys_only: bool, options: dict):
        self.axis, self.second, self.keys_only, self.given = axis, second, keys_only, options
        self.given_qkv, self.own = qkv, tuple(second.own(t, axis) for t in qkv[keys_only:])
        *qk, v = (*qkv[:keys_only], *(second.without(t, axis) for t in qkv[keys_only:]))
        self.first = (*map(second.first_placed, qk), v)
        self.queries, self.rows = qkv[0].shape[axis], {}
        self.options = self._masked(second.without)

    def _of_second(self, t: torch.Tensor, axis: int) -> torch.Tensor:
        """What the second text sees, in tensors that are not parted yet."""
        own = self.second.own(t, axis)
        return own if self.keys_only or self.second.image is None else self.second.with_image(own, self.second.without(t, axis), axis)

    def _masked(self, part: Callable) -> dict:
        """The options with the part of the mask for keys, and for queries where it has some of its own."""
        mask = self.given.get("mask")
        if mask is None:
            return self.given
        mask = part(mask, -1)
        return {**self.given, "mask": part(mask, -2) if not self.keys_only and mask.ndim > 1 and mask.shape[-2] == self.queries else mask}

    def second_output(self, call: QKSharing, function: Callable, rows: RowSelection) -> torch.Tensor:
        """(rows, image tokens, C): what the image's queries give with the second text; keeps what the second text's own give."""
        options = self._masked(self._of_second)
        mask = options.get("mask")
        if mask is not None and mask.ndim > 2 and len(mask) > 1:
            options = {**options, "mask": rows.of(mask)}
        if self.keys_only:
            return function(rows.of(call.used[0]), *map(rows.of, self.own), **options)
        *qk, v = self._with_image(call, rows)
        out = function(*map(self.second.own_placed, qk), v, **options)
        self._keep(rows.rows, out[:, : self.second.seen])
        return out[:, self.second.seen :]

    def _with_image(self, call: QKSharing, rows: RowSelection) -> list[torch.Tensor]:
        """Queries, keys and values of the second text and of the image, without a copy where the network has them side by side."""
        image, second = (*call.used, call.v), self.second
        if call.used[0] is call.q and second.rotary is None and second.image == second.place.stop:
            return [rows.of(_rest(t, self.axis, second.place.start)) for t in self.given_qkv]
        own = [rows.of(t) for t in self.own]
        return [second.with_image(one, rows.of(t), self.axis) for one, t in zip(own, image)]

    def _keep(self, rows: Sequence[int], out: torch.Tensor) -> None:
        filling = self.second.count - self.second.seen
        self.rows |= dict(zip(rows, (torch.nn.functional.pad(out, (0, 0, 0, filling)) if filling else out).split(1)))

    def joined(self, out: torch.Tensor) -> torch.Tensor:
        """The output with that of the second text at its place; zeros in rows where nothing asked for it."""
        start, every = self.second.place.start, range(len(out))
        nothing = out.new_zeros(1, self.second.count, *out.shape[2:]) if len(self.rows) < len(out) else None
        rows = [self.rows.get(row, nothing) for row in every]
        return torch.cat([out[:, :start], rows[0] if len(rows) == 1 else torch.cat(rows), out[:, start:]], 1)

    def alone(self, function: Callable) -> None:
        """The second text's attention to itself, where texts have one."""
        out = function(*self.own, **self._masked(self._of_second))
        self._keep(range(len(out)), out)
