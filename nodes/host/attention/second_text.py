"""A second text that goes through a network behind the first, and the attentions that keep the two apart.

Text embedders, projections and blocks of a network act on each token by itself. So in an attention the first text and the image see what they
see without the second text; the second is kept there for controls, and where text takes part in attention it goes on as a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import comfy.utils
import torch

from ....attention.call import QKSharing, select_rows


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


class Parted:
    """An attention of a DiT whose keys hold a second text at `place` of `axis`: `first` are its queries, keys and values without it.

    `keys_only`: the queries are the image's alone. Else the first text comes before the second and the image behind it, and the second text's own
    queries see the second text and the image. `options` are those of ComfyUI's attention.
    """

    def __init__(self, qkv: tuple[torch.Tensor, ...], axis: int, place: slice, keys_only: bool, options: dict):
        self.axis, self.place, self.count, self.keys_only, self.given = axis, place, place.stop - place.start, keys_only, options
        self.second = tuple(t.narrow(axis, place.start, self.count) for t in qkv[keys_only:])
        self.first = (*qkv[:keys_only], *(self._without(t, axis) for t in qkv[keys_only:]))
        self.queries, self.rows = qkv[0].shape[axis], {}
        self.options = self._masked(self._without)

    def _without(self, t: torch.Tensor, axis: int) -> torch.Tensor:
        """A tensor without the second text."""
        return torch.cat([t.narrow(axis, 0, self.place.start), _rest(t, axis, self.place.stop)], axis)

    def _of_second(self, t: torch.Tensor, axis: int) -> torch.Tensor:
        """What the second text sees, in tensors that are not parted yet."""
        return t.narrow(axis, self.place.start, self.count) if self.keys_only else _rest(t, axis, self.place.start)

    def _masked(self, part: Callable) -> dict:
        """The options with the part of the mask for keys, and for queries where it has some of its own."""
        mask = self.given.get("mask")
        if mask is None:
            return self.given
        mask = part(mask, -1)
        return {**self.given, "mask": part(mask, -2) if not self.keys_only and mask.ndim > 1 and mask.shape[-2] == self.queries else mask}

    def moved(self, tokens: slice) -> slice:
        """Where tokens are without the second text."""
        return slice(*(n - self.count if n >= self.place.stop else n for n in (tokens.start, tokens.stop)))

    def second_output(self, call: QKSharing, function: Callable, rows: Sequence[int]) -> torch.Tensor:
        """(rows, image tokens, C): what the image's queries give with the second text; keeps what the second text's own give."""
        second = [select_rows(t, rows) for t in self.second]
        image = [select_rows(t, rows) for t in (*call.used, call.v)]
        if self.keys_only:
            qkv = image[0], *second
        else:
            qkv = [torch.cat([one, _rest(t, self.axis, self.place.start)], self.axis) for one, t in zip(second, image)]
        options = self._masked(self._of_second)
        mask = options.get("mask")
        if mask is not None and mask.ndim > 2 and len(mask) > 1:
            options = {**options, "mask": select_rows(mask, rows)}
        out = function(*qkv, **options)
        if self.keys_only:
            return out
        self.rows |= dict(zip(rows, out[:, : self.count].split(1)))
        return out[:, self.count :]

    def joined(self, out: torch.Tensor) -> torch.Tensor:
        """The output with that of the second text at its place; zeros in rows where nothing asked for it."""
        nothing = out.new_zeros(1, self.count, *out.shape[2:])
        second = torch.cat([self.rows.get(row, nothing) for row in range(len(out))])
        return torch.cat([out[:, : self.place.start], second, out[:, self.place.start :]], 1)

    def alone(self, function: Callable) -> None:
        """The second text's attention to itself, where texts have one."""
        options = self._masked(self._of_second)
        self.rows = dict(enumerate(function(*self.second, **options).split(1)))
