"""Normalized Attention Guidance inside ComfyUI's sampling: a negative prompt in the attention of the positive, also at cfg 1.

The negative's tokens go through the network behind the positive's, in the same call (second_text.py). The image's own computations
are made once; only attention to the text is made twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import comfy.model_base
import comfy.sampler_helpers
import torch

from ....attention.call import QKSharing
from ....attention.ip_adapter import mask_tokens
from ....attention.negative_attention import Strength
from ....attention.row_plan import RowSelection
from ..conditionings import KEY, check_conditionings, features_of, is_positive, marked
from ..noise_levels import NoiseScale
from .hook import NONE, Control, ControlRun, controls_of, install, network_of

JOINT = (
    "flux.model", "chroma.model", "modules.diffusionmodules.mmdit", "qwen_image.model", "lumina.model", "hunyuan_video.model", "aura.mmdit",
    "mage_flow.model", "krea2.model", "cogvideo.model",
)  # fmt: skip
BY_LENGTH = getattr(comfy.model_base, "LongCatImage", ())  # the image's places depend on the number of the text's tokens
SUPPORTED = "a UNet (SD1.5, SD2, SDXL), Wan, Cosmos-Predict2, LTX-Video, Kandinsky 5, Flux, Flux.2, Chroma, SD3, Qwen-Image, Z-Image, Lumina 2, HunyuanVideo, HunyuanImage or AuraFlow"


class NegativeAttentionRun(ControlRun):
    """Negative Attention during one run."""

    control: NegativeAttention

    def __init__(self, control: NegativeAttention, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.strength, self.text, self.name = control.strength, None, f"{KEY} negative {control.token}"
        if control.mask is not None and len(noise) % len(control.mask):
            raise ValueError(f"The mask holds {len(control.mask)} images but {len(noise)} are sampled; give one mask, or one for each image.")
        texts = len(control.negative[0][0])
        if len(noise) % texts:
            raise ValueError(f"The negative holds {texts} texts but {len(noise)} images are sampled; give one text, or one for each image.")

    @cached_property
    def conditionings(self) -> dict[str, list]:
        return {self.name: comfy.sampler_helpers.convert_cond(self.control.negative)}

    def start(self, conds, x):
        self.text = features_of(conds[self.name][0]).cond
        if not self.control.only_marked:
            for name, listed in conds.items():
                for given in listed:
                    if name != self.name and is_positive(name, given):
                        given[KEY] = (*given.get(KEY, ()), (self.control.token, 1))
        super().start(conds, x)

    def end(self) -> None:
        super().end()
        self.text = None

    def on_evaluate(self, conds, x, level):
        super().on_evaluate(conds, x, level)
        if self.control.schedules:  # reading sigma waits for the GPU
            self.strength = self.control.strength.times(math.prod(schedule(level.sigma, self.scale) for schedule in self.control.schedules))

    @property
    def more_text(self) -> torch.Tensor | None:
        return None if self.strength.neutral else self.text

    def wanted(self, kind: str) -> frozenset:
        return NONE if kind == "self" or self.strength.neutral else self.all_layers

    def guide(self, call: QKSharing, first: int, tokens: int) -> None:
        rows = RowSelection(range(first, first + self.images))
        whole, negative = rows.of(call.out), call.second_output(rows)
        text, positive = whole.split([whole.shape[1] - negative.shape[1], negative.shape[1]], 1)
        guided = self.strength.guided(positive, negative)
        if self.control.mask is not None:
            guided = positive + self._mask(call, positive, call.image.start - text.shape[1]) * (guided - positive)
        call.set_output(rows, torch.cat([text, guided], 1) if text.shape[1] else guided)

    def _mask(self, call: QKSharing, like: torch.Tensor, before: int) -> torch.Tensor:
        """(images, tokens, 1): the mask at the size of a layer; 0 on those of reference images, some `before`, and of filling."""
        if call.size is None or not call.covers(self.latent):
            raise ValueError(
                "The mask of Negative Attention cannot act on a conditioning with an area, or beside nodes that change the number of the image's tokens. "
                "Remove the mask, or the area."
            )
        key = "mask", call.size, self.images, like.shape[1], like.device, like.dtype
        return self.cache.get(key, lambda: self._placed(call.size, like, before))

    def _placed(self, size: tuple[int, ...], like: torch.Tensor, before: int) -> torch.Tensor:
        *frames, height, width = size
        mask = mask_tokens(self.control.mask, height, width).repeat(self.images // len(self.control.mask), math.prod(frames), 1)
        return torch.nn.functional.pad(mask, (0, 0, before, like.shape[1] - mask.shape[1] - before)).to(like)


@dataclass(frozen=True)
class NegativeAttention(Control):
    """The control. `schedules` (sigma, noise axis) -> factor multiply the guiding part of the scale; `mask` (M, H, W) in [0, 1] says where.

    `only_marked`: acts on conditionings with the mark alone; otherwise on all positive ones of a run.
    """

    node: ClassVar = "Negative Attention"
    run: ClassVar = NegativeAttentionRun
    negative: list
    strength: Strength
    schedules: tuple[Callable[[float, NoiseScale], float], ...] = ()
    mask: torch.Tensor | None = None
    only_marked: bool = False


def _network(model) -> dict:
    """`network_of` a MODEL. Raises ValueError that names a network in which two texts cannot be kept apart."""
    network = network_of(model)
    dit = network["dit"]
    if dit and (not (dit.cross or dit.module in JOINT) or isinstance(model.model, BY_LENGTH)):
        raise ValueError(
            f"{dit.name} mixes its text before attention, has more of it in every block, or places the image by its length, so that Negative Attention "
            f"cannot keep a second text apart. Use {SUPPORTED}; or sample with a negative at cfg above 1."
        )
    return network


def _check(model, negative: list) -> None:
    if controls_of(model, NegativeAttention):
        raise ValueError(
            "The model already comes from Negative Attention, and two of them are not kept apart. Write all of the negative into one prompt, or connect "
            "the model from before the other node."
        )
    check_conditionings(model, {"The negative": negative})
    if len(negative) != 1:
        raise ValueError(f"The negative has {len(negative)} parts, but one text is needed. Connect it as CLIP Text Encode gives it, or use Conditioning (Concat).")
    limits = {"area", "mask", "hooks", "start_percent", "end_percent", "timestep_start"} & negative[0][1].keys()
    if limits:
        raise ValueError(
            f"The negative has {', '.join(sorted(limits))}, but only its text counts here. Connect it as CLIP Text Encode gives it, and use the inputs mask, "
            "start_percent and end_percent of this node."
        )


def prepare(model, negative: list, strength: Strength, conditioning: list | None, **settings) -> tuple:
    """(patched model, conditioning with the mark or None); `settings` are fields of `NegativeAttention`."""
    _check(model, negative)
    control = NegativeAttention(negative=negative, strength=strength, only_marked=conditioning is not None, **settings, **_network(model))
    if strength.neutral:
        return model, conditioning
    return install(model, control), None if conditioning is None else marked(conditioning, control.token)
