"""LoRAs of regions, by token: what a LoRA adds to a layer counts at the tokens of its region alone, in the one call of the network that makes the image.

Forward hooks do it, by the interface of ComfyUI's weight adapters (`bypass_forward`). They are on the shared network during a call only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial

import comfy.lora
import comfy.lora_convert
import torch
from comfy.hooks import EnumHookType, WeightHook
from comfy.weight_adapter import BypassForwardHook, WeightAdapterBase

from ....attention.run_cache import RunCache
from ....attention.token_masks import grid_of, in_slots, pooled
from ....guidance.errors import listed, quoted
from ..evaluation_order import Keyframes
from .dit import Dit

TEXT_ENCODERS = ("lora_te", "text_encoder", "te1", "te2", "te3", "clip_", "bundle_emb", "cond_stage_model")
TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")  # of UNets
DORA = {"lora": 4, "loha": 7, "lokr": 8}  # where adapters hold their scale of whole weights
OTHERS = {"glora": "GLoRA", "oft": "OFT", "boft": "BOFT"}
NEXT = "Use ComfyUI's Load LoRA for it, on the whole image."


@dataclass(frozen=True, eq=False)
class AdapterPart:
    """What an adapter does to some outputs of a layer, which has its name in the MODEL."""

    layer: str
    adapter: WeightAdapterBase
    outputs: tuple[int | None, int | None] = (None, None)

    def on(self, device: torch.device) -> AdapterPart:
        """The same with its weights there, an adapter of its own; copies, which gradients may go through where inference mode is off."""
        adapter = copy(self.adapter)
        adapter.weights = tuple(w.to(device, copy=True) if torch.is_tensor(w) else w for w in adapter.weights)
        return AdapterPart(self.layer, adapter, self.outputs)

    def added(self, strength: float, module: torch.nn.Module, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What it adds to the layer's output."""
        BypassForwardHook(module, self.adapter, strength)  # tells the adapter of its layer
        return self.adapter.bypass_forward(lambda *_: out, x) - out


@dataclass(frozen=True, eq=False)
class RegionLora:
    """A LoRA of the phrase of a number; its `hook` says how strong it is."""

    number: int
    hook: WeightHook
    parts: tuple[AdapterPart, ...]

    def strength(self, model, sigma: float, keyframes: Keyframes) -> float:
        """At a noise level of a run on a BaseModel."""
        own = self.hook.hook_keyframe
        if own.is_empty():
            return self.hook._strength_model
        own = own.clone()
        own.initialize_timesteps(model)
        return self.hook._strength_model * keyframes.at(own, sigma).strength


def loras_of(model, clip, hooks, number: int, phrase: str) -> list[RegionLora]:
    """The LoRAs of HOOKS. Raises ValueError that names what cannot act by token."""
    found = []
    for hook in hooks.hooks:
        if hook.hook_type != EnumHookType.Weight or not hook.need_weight_init:
            kind = "a whole model" if hook.hook_type == EnumHookType.Weight else f"a hook of the kind {quoted(hook.hook_type.value)}"
            raise ValueError(f"The region of {quoted(phrase)} has {kind}; only LoRAs act there. Connect the HOOKS of Create Hook LoRA.")
        if hook._strength_model:
            found.append(RegionLora(number, hook, _parts_of(model, clip, hook.weights, phrase)))
    return found


def _parts_of(model, clip, weights: dict, phrase: str) -> tuple[AdapterPart, ...]:
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    other = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if hasattr(clip, "cond_stage_model") else {}
    weights = {k: w for k, w in comfy.lora_convert.convert_lora(dict(weights)).items() if not k.startswith(TEXT_ENCODERS)}
    loaded, who = comfy.lora.load_lora(weights, keys | other, log_missing=False), f"The LoRA of {quoted(phrase)}"
    ours = {key: patch for key, patch in loaded.items() if key in set(keys.values())}
    names = {name for patch in loaded.values() if isinstance(patch, WeightAdapterBase) for name in patch.loaded_keys}
    whole = sorted({str(key if isinstance(key, str) else key[0]) for key, patch in loaded.items() if not isinstance(patch, WeightAdapterBase)})
    if whole:
        raise ValueError(f"{who} holds whole weights or their differences ({whole[0]}), which do not act by token. {NEXT}")
    strangers = [k for k in weights if k not in names and not k.endswith((".alpha", ".dora_scale"))]
    if strangers or not ours:
        some = f" Of its {len(weights)} keys these do not fit: {listed(strangers[:3])}." if strangers else ""
        raise ValueError(f"{who} does not fit the model ({type(model.model).__name__}).{some} Choose a LoRA of this model.")
    return tuple(_part(model, key, patch, who) for key, patch in ours.items())


def _part(model, key, adapter: WeightAdapterBase, who: str) -> AdapterPart:
    name, offset = (key, None) if isinstance(key, str) else key[:2]
    scale, layer = DORA.get(adapter.name), name.removesuffix(".weight")
    kind = OTHERS.get(adapter.name) or ("DoRA" if scale is None or adapter.weights[scale] is not None else "")
    kind = kind or ("a kind that reshapes weights" if adapter.name == "lora" and adapter.weights[5] is not None else "")
    if kind:
        raise ValueError(f"{who} is {kind} ({layer}), which needs whole weights and does not act by token. {NEXT}")
    if offset is not None and offset[0] != 0:
        raise ValueError(f"{who} changes a part of what {layer} is given, which does not act by token. {NEXT}")
    part = AdapterPart(layer, adapter, (None, None) if offset is None else (offset[1], offset[1] + offset[2]))
    module = model.model.get_submodule(layer)
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        raise ValueError(f"{who} changes {layer} ({type(module).__name__}), which is no linear layer or convolution. {NEXT}")
    given, made = _sizes(module)
    try:
        part.added(1.0, module, torch.zeros(given), torch.zeros(made)[:, slice(*part.outputs)])
    except RuntimeError as error:
        raise ValueError(f"{who} does not fit {layer} of the model ({type(model.model).__name__}): {error}. Choose a LoRA of this model.") from error
    return part


def _sizes(module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the least that a layer is given, and of what it makes of it."""
    if hasattr(module, "kernel_size"):
        return (1, module.in_channels, *module.kernel_size), (1, module.out_channels, *(1 + 2 * p // s for p, s in zip(module.padding, module.stride)))
    return (1, module.in_features), (1, module.out_features)


@dataclass(frozen=True, eq=False)
class CallMasks:
    """Masks of a region in one call of the network: of the image (rows, [frames,] H, W), and of the text's tokens (rows, tokens)."""

    dit: Dit | None
    image: torch.Tensor
    text: torch.Tensor
    known: RunCache = field(default_factory=RunCache)

    def of(self, layer: str, out: torch.Tensor) -> torch.Tensor | None:
        """For what a layer gives; None where that is not of tokens."""
        key = layer.endswith(TEXT_LAYERS) and self.dit is None, tuple(out.shape[1:]) if out.ndim > 3 else out.shape[1 : out.ndim - 1]
        if len(out) != len(self.image):
            return None
        return self.known.get((*key, out.dtype), lambda: self._made(*key, out))

    def _made(self, is_text: bool, shape: Sequence[int], out: torch.Tensor) -> torch.Tensor | None:
        found = self._unet(is_text, shape) if self.dit is None else self._dit(shape, out.shape)
        return None if found is None else found.to(out)

    def _unet(self, is_text: bool, shape: Sequence[int]) -> torch.Tensor | None:
        if len(shape) == 3:
            return pooled(self.image, shape[1:])[:, None]
        if len(shape) != 1:
            return None
        if is_text:
            return in_slots(shape[0], [(slice(0, min(shape[0], self.text.shape[1])), self.text)])
        size = grid_of(shape[0], self.image.shape[1:])
        return None if size is None else pooled(self.image, size).flatten(1)[..., None]

    def _dit(self, shape: Sequence[int], whole: Sequence[int]) -> torch.Tensor | None:
        grid = self.dit.grid((1, 1, *self.image.shape[1:]))
        size = grid[-(self.image.ndim - 1) :]
        if len(whole) > 3:
            last = tuple(whole[1:-1]) in (size, grid)
            cells = pooled(self.image, size).reshape(len(self.image), *(whole[1:-1] if last else whole[2:])) if last or math.prod(whole[2:]) == math.prod(grid) else None
            return None if cells is None else cells[..., None] if last else cells[:, None]
        if len(shape) != 1 or shape[0] == 1:  # of the timestep
            return None
        image, text, tokens = math.prod(grid), self.text.shape[1], shape[0]
        values = pooled(self.image, size).flatten(1)
        ranges = None if self.dit.cross else self.dit.token_ranges(tokens, image, text)
        if ranges:
            return in_slots(tokens, [(ranges[0], values), (ranges[1], self.text)])
        if tokens in (image, self.dit.filled(image)):
            return in_slots(tokens, [(slice(0, image), values)])
        return in_slots(tokens, [(slice(0, text), self.text)]) if tokens in (text, self.dit.filled(text)) else None


def check(dit: Dit | None, call, latent: tuple[int, ...]) -> None:
    """Refuses a `NetworkCall` in which the tokens of the image ([frames,] H, W) are not known. Raises ValueError."""
    if call.x.shape[2:] != latent:
        raise ValueError(
            "Word Regions: a conditioning acts in an area, or context windows cut the video, but LoRAs of regions need the whole image. Use masks "
            "(Conditioning (Set Mask)) and no windows, or connect no LoRA."
        )
    if dit is None:
        return
    if call.more or call.conditions.get("ref_latents"):
        what = "a second text (Negative Attention)" if call.more else "reference latents"
        raise ValueError(f"Word Regions: beside {what}, LoRAs of regions do not know the tokens of {dit.name}. Remove it, or connect no LoRA.")
    image = math.prod(dit.grid(call.x.shape))
    if dit.filled(image) == dit.filled(call.text):
        raise ValueError(
            f"The text of the prompt has as many tokens as the image, {image}, and cannot be told apart from it in {dit.name}. Use another size of the "
            "image, or another prompt."
        )


@contextmanager
def acting(model, loras: Sequence[tuple[Sequence[AdapterPart], float, CallMasks]], reached: dict[str, bool]) -> Iterator[None]:
    """Inside, LoRAs act on a BaseModel: (parts on its device, strength, masks) of each. Keeps in `reached`, by layer, whether it was of tokens."""
    with ExitStack() as stack:
        for parts, strength, masks in loras:
            for part in parts if strength else ():
                handle = model.get_submodule(part.layer).register_forward_hook(partial(_add, part, strength, masks, reached))
                stack.callback(handle.remove)
        yield


def _add(part: AdapterPart, strength: float, masks: CallMasks, reached: dict[str, bool], module, given: tuple, out: torch.Tensor) -> torch.Tensor:
    """A forward hook: the layer's output, and at the tokens of the region what the LoRA adds."""
    mask = masks.of(part.layer, out)
    reached[part.layer] = mask is not None
    if mask is None:
        return out
    axis = 1 if hasattr(module, "kernel_size") else -1
    own = out.movedim(axis, -1)[..., slice(*part.outputs)].movedim(-1, axis)
    added = mask * part.added(strength, module, given[0], own)
    if part.outputs == (None, None):
        return out + added
    out = out.clone()
    out.movedim(axis, -1)[..., slice(*part.outputs)] += added.movedim(axis, -1)
    return out
