"""The attention layers of UNets, and the one way in which the pack replaces them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.ldm.modules.attention as host_attention
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample

from ....attention.call import QKSharing, select_rows
from ....attention.layers import Place
from ....attention.local_blend import word_map
from ....attention.prompt_to_prompt import attended, probabilities

SLOTS = {"self": "attn1", "cross": "attn2"}  # what ComfyUI calls the two attentions of a transformer


def _walk(blocks: Sequence, name: str, scale: int) -> tuple[list[tuple[Place, torch.nn.Module]], int]:
    """The transformers of some blocks with their cross-attention, and the scale behind them."""
    found = []
    for number, block in enumerate(blocks):
        for part in block:
            if isinstance(part, host_attention.SpatialTransformer):
                inner = enumerate(part.transformer_blocks)
                found += [(Place(name, number, i, scale), t.attn2) for i, t in inner if t.attn2 is not None]
            resized = getattr(part, "h_upd", part)  # in some UNets a ResBlock does it
            scale = scale * 2 if isinstance(resized, Downsample) else scale // 2 if isinstance(resized, Upsample) else scale
    return found, scale


def cross_attentions(network: UNetModel) -> dict[Place, torch.nn.Module]:
    """The cross-attentions of a UNet, in the order in which it runs them."""
    down, scale = _walk(network.input_blocks, "input", 1)
    middle, scale = _walk([network.middle_block or ()], "middle", scale)
    up, _ = _walk(network.output_blocks, "output", scale)
    return dict((*down, *middle, *up))


def is_unet(model) -> bool:
    return isinstance(model.get_model_object("diffusion_model"), UNetModel)


def unet_places(model) -> tuple[Place, ...]:
    """The transformers of a UNet with text, in the order in which it runs them. Raises ValueError that names any other network."""
    network, name = model.get_model_object("diffusion_model"), type(model.model).__name__
    if not is_unet(model):
        raise ValueError(
            f"{name} ({type(network).__name__}) does not route its attention through the hooks of a UNet. Use an SD1.5, SD2 or SDXL model."
        )
    if any(isinstance(m, host_attention.SpatialVideoTransformer) for m in network.modules()):
        raise ValueError(f"{name} is a video model whose text does not go through cross-attention of images. Use an SD1.5 or SDXL model.")
    places = tuple(cross_attentions(network))
    if not places:
        raise ValueError(f"{name} has no cross-attention to text. Use a model that is guided by a prompt.")
    return places


def blend_places(places: Iterable[Place], size: tuple[int, int]) -> tuple[Place, ...]:
    """The layers for masks: a quarter of the latent's side as in the paper; without such, the coarsest of 256 tokens or more."""
    places = tuple(places)
    scales = sorted({p.scale for p in places}, reverse=True)
    enough = [s for s in scales if math.ceil(size[0] / s) * math.ceil(size[1] / s) >= 256]
    chosen = 4 if 4 in scales else (enough or scales[-1:])[0]
    return tuple(p for p in places if p.scale == chosen)


@dataclass(frozen=True)
class BaseAttention:
    """What a replacement builds on: another node's replacement `below`, or ComfyUI's attention where there is none."""

    below: Callable | None
    options: dict

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.below is not None:
            return self.below(q, k, v, self.options)
        heads, precision = self.options["n_heads"], self.options["attn_precision"]
        return host_attention.optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=self.options)


def _replacement(attend: Callable, below: Callable | None, q, k, v, options: dict) -> torch.Tensor:
    return attend(BaseAttention(below, options), q, k, v, options)


def with_attention(options: dict, attends: Mapping[tuple, Callable], kind: str = "cross") -> dict:
    """`transformer_options` in which `attend(base, q, k, v, options)` takes the place of attentions, by the keys of their places.

    `base` is a `BaseAttention`: of replacements that other nodes put there, the one that ComfyUI would call.
    """
    replace, slot = options.get("patches_replace", {}), SLOTS[kind]
    below = replace.get(slot, {})
    on_top = {key: partial(_replacement, attend, below.get(key, below.get(key[:2]))) for key, attend in attends.items()}
    return {**options, "patches_replace": {**replace, slot: {**below, **on_top}}} if on_top else options


class UnetCall(QKSharing):
    """One attention of a UNet: queries, keys and values (B, N, heads * dim), and what it gives."""

    def __init__(self, kind: str, place: Place, qkv: tuple[torch.Tensor, ...], options: dict, base: BaseAttention, batch: int):
        super().__init__(qkv, base, base.below is None)
        self.kind, self.place, self.heads = kind, place, options["n_heads"]
        if len(self.q) != batch or len(self.k) != batch:
            raise ValueError(
                f"The attention of {place} has {len(self.q)} entries for {batch} rows: another node, such as HyperTile, cuts it up. Remove that "
                "node from the model."
            )
        self.size, self.latent = _size_of(options, place, self.q.shape[1]), tuple(options["original_shape"][2:])
        self.edited: dict[int, torch.Tensor] = {}

    def columns(self, row: int, tokens: int) -> int:
        """How many keys a row's text of so many tokens has: all, but for the copies that ComfyUI makes of a text shorter than another's."""
        key, length = self.k[row], self.k.shape[1]
        copied = tokens and length > tokens and length % tokens == 0
        return tokens if copied and torch.equal(key[:tokens], key[tokens : 2 * tokens]) else length

    def probabilities(self, rows: list[int], tokens: int) -> torch.Tensor:
        """(rows, heads, N, keys), float32: the attention probabilities of rows before edits."""
        q, k = (select_rows(t, rows) for t in self.used)
        return probabilities(q, k[:, : self.columns(rows[0], tokens)], self.heads)

    def set_probabilities(self, rows: list[int], p: torch.Tensor, before: torch.Tensor | None, tokens: int) -> None:
        """Edits the probabilities of rows; `before` are those they had. On another node's attention only their difference is added."""
        v = select_rows(self.v, rows)[:, : self.columns(rows[0], tokens)]
        if self.plain:
            out = attended(p, v)
        else:
            out = select_rows(self.out, rows) + attended(p - (self.probabilities(rows, tokens) if before is None else before), v)
        self.set_output(rows, out)
        self.edited |= dict(zip(rows, p.split(1)))

    def final_probabilities(self, rows: list[int], tokens: int) -> torch.Tensor:
        """(rows, heads, N, keys), float32: the attention probabilities of rows after edits."""
        return torch.cat([self.edited[r] if r in self.edited else self.probabilities([r], tokens) for r in rows])

    def shares(self, rows: list[int], tokens: int, columns: Sequence[Sequence[int]]) -> torch.Tensor:
        """(rows, groups, N), float32: how much of the rows' attention falls on groups of the text's tokens, after edits."""
        p = self.final_probabilities(rows, tokens)
        return torch.stack([word_map(p, group) for group in columns], 1)

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """Values (a, b, N) of the image's tokens as (a, b, h, w), at the layer's usual size where other nodes shrink its image."""
        usual = tuple(math.ceil(n / self.place.scale) for n in self.latent)
        image = values.unflatten(-1, self.size)
        return image if self.size == usual else F.interpolate(image, usual, mode="bilinear")


def _size_of(options: dict, place: Place, tokens: int) -> tuple[int, int] | None:
    """Height and width of a layer's image; None where other nodes changed the number of its tokens."""
    shape = options.get("activations_shape") or [math.ceil(n / place.scale) for n in options["original_shape"]]
    return tuple(shape[-2:]) if shape[-2] * shape[-1] == tokens else None
