"""A second text for networks that mix their text before the blocks: it is embedded by itself and comes in at the first block, before the image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import comfy.ops
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP

from ..conditionings import KEY


def _hunyuan(network, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Its refiner sees the mean of all tokens."""
    tokens, kinds = network.txt_in(text, timestep, None), network.cond_type_embedding
    return tokens if kinds is None else tokens + kinds.weight[0].to(tokens)


def _aura(network, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Its register tokens come before a text, and change with it."""
    tokens = network.cond_seq_linear(text)
    return torch.cat([comfy.ops.cast_to_input(network.register_tokens, tokens).expand(len(tokens), -1, -1), tokens], 1)


EMBEDDERS = {"hunyuan_video.model": _hunyuan, "aura.mmdit": _aura}  # by modules of the networks under comfy.ldm


class BlockText:
    """A second text (rows, n, C) on its way through one call of a network of `module`, whose text and image go through so many blocks."""

    def __init__(self, module: str, text: torch.Tensor, blocks: int):
        self.embedder, self.text, self.blocks = EMBEDDERS[module], text, blocks
        self.tokens, self.start = None, 0

    def options(self, options: dict) -> dict:
        """The call's options with a replacement of each block, on top of what other nodes have put there."""
        replace, wrappers, kind = options.get("patches_replace", {}), options.get("wrappers", {}), WrappersMP.DIFFUSION_MODEL
        below, around = replace.get("dit", {}), wrappers.get(kind, {})
        keys = [(name, i) for name in ("double_block", "single_block") for i in range(self.blocks)]
        blocks = {key: partial(self._block, below.get(key)) for key in keys}
        around = {**around, KEY: [*around.get(KEY, ()), self._embed]}
        return {**options, "patches_replace": {**replace, "dit": {**below, **blocks}}, "wrappers": {**wrappers, kind: around}}

    def _embed(self, executor, x, timestep, *args, **kwargs):
        self.tokens = self.embedder(executor.class_obj, timestep, comfy.utils.repeat_to_batch_size(self.text.to(x), len(x)))
        self.start = 0
        return executor(x, timestep, *args, **kwargs)

    def _block(self, below: Callable | None, args: dict, extra: dict) -> dict:
        """One block with the second text; the first one lets it in."""
        if not self.start:
            self.start = args["txt"].shape[1]
            args = {**args, "txt": torch.cat([args["txt"], self.tokens.to(args["txt"])], 1)}
        places, mask = args.get("pe"), args.get("attention_mask")
        if places is not None:
            args = {**args, "pe": self._longer(places, 2, places[:, :, :1])}  # all of a text is at one place
        if mask is not None:
            args = {**args, "attention_mask": self._longer(mask, -1, mask.new_zeros(*mask.shape[:-1], 1))}
        return below(args, extra) if below else extra["original_block"](args)

    def _longer(self, t: torch.Tensor, axis: int, each: torch.Tensor) -> torch.Tensor:
        """A tensor along all tokens with one of the second text's tokens repeated."""
        more = torch.cat([each] * self.tokens.shape[1], axis)
        return torch.cat([t.narrow(axis, 0, self.start), more, t.narrow(axis, self.start, t.shape[axis] - self.start)], axis)
