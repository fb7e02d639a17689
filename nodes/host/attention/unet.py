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

from ....attention.call import QKSharing
from ....attention.layers import Place

OVERRIDE = "optimized_attention_override"
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
    """One attention of a UNet. `text`: how many keys the network was given."""

    def __init__(self, kind: str, place: Place, qkv: tuple[torch.Tensor, ...], options: dict, base: BaseAttention, batch: int, text: int):
        super().__init__(qkv, base, base.below is None and OVERRIDE not in options)
        self.kind, self.place, self.options, self.text = kind, place, options, text
        if not self.q.shape[0] == self.k.shape[0] == batch:
            raise ValueError(
                f"The attention of {place} has {len(self.q)} entries for {batch} rows: another node, such as HyperTile, cuts it up. Remove that "
                "node from the model."
            )
        self.width = self.q.shape[-1] // options["n_heads"]

    @property
    def latent(self) -> tuple[int, ...]:
        return tuple(self.options["original_shape"][2:])

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the layer's image; None where other nodes changed the number of its tokens."""
        shape = self.options.get("activations_shape") or [math.ceil(n / self.place.scale) for n in self.options["original_shape"]]
        return tuple(shape[-2:]) if shape[-2] * shape[-1] == self.q.shape[1] else None

    def kernel(self, q, k, v, rows):
        return host_attention.optimized_attention(q, k, v, self.options["n_heads"], attn_precision=self.options["attn_precision"])

    def keys(self, tokens: int) -> int:
        """All, but for the copies that ComfyUI makes of a text shorter than another's."""
        return tokens if self.k.shape[1] == self.text else self.k.shape[1]

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """Values (a, b, N) of the image's tokens as (a, b, h, w), at the layer's usual size where other nodes shrink its image."""
        usual = tuple(math.ceil(n / self.place.scale) for n in self.latent)
        image = values.unflatten(-1, self.size)
        return image if self.size == usual else F.interpolate(image, usual, mode="bilinear")
