"""What tells a model with its patches from another, as data for a key; where something acts on it that could be anything there is no key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from comfy.weight_adapter import WeightAdapterBase

from ....guidance.errors import quoted
from ..fingerprint import SAMPLES, Weights

_BESIDE = ("model_options", "injections", "wrappers", "callbacks", "forced_hooks")  # where ComfyUI keeps what acts beside the weights
_COMPARED = {"model_sampling", "latent_format"}  # patched objects that `_sampling` compares


class UnknownPatch(ValueError):
    """Something acts on a model that no key can tell from something else, such as a function of another node."""


def content(value, name: str):
    """A value for JSON: numbers and texts, of tensors their shape and some values, and of weight adapters their weights.

    Functions and other objects raise UnknownPatch with their name.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if torch.is_tensor(value):
        flat = value.detach().flatten()
        return [list(value.shape), flat[:: max(1, len(flat) // SAMPLES)].float().tolist()]
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, WeightAdapterBase):
        return [value.name, content(value.weights, name)]
    if isinstance(value, Mapping):
        return [[str(k), content(v, str(k))] for k, v in sorted(value.items(), key=lambda item: str(item[0]))]
    if isinstance(value, (list, tuple)):
        return [content(v, name) for v in value]
    raise UnknownPatch(f"{quoted(name)} ({type(value).__name__}) acts on the model, and what it does cannot be compared")


def _patcher(patcher, prefix: str) -> list:
    weights = Weights.of(patcher, prefix)
    beside = {part: held for part in _BESIDE if (held := getattr(patcher, part, None))}
    others = {name: held for name, held in patcher.object_patches.items() if name not in _COMPARED}
    return [weights.layout, weights.signs, content([patcher.patches, beside, others], prefix)]


def _sampling(model) -> list:
    sampling, form = (model.get_model_object(name) for name in ("model_sampling", "latent_format"))
    kinds = [c.__name__ for c in type(sampling).__mro__]
    return [kinds, [f"{float(sampling.percent_to_sigma(p)):.5g}" for p in (0.1, 0.5, 0.9)], type(form).__name__]


def _short(patcher, prefix: str, *more) -> str:
    weights, parts = Weights.of(patcher, prefix), [patcher.patches, getattr(patcher, "model_options", {}), patcher.object_patches]
    return hashlib.sha256(json.dumps([weights.layout, weights.signs, [_told(part) for part in parts], more]).encode()).hexdigest()[:12]


def _told(value) -> object:
    """A value for JSON; of what cannot be compared, what it is."""
    try:
        return content(value, "it")
    except UnknownPatch as reason:
        return str(reason)


def base_keys(model, clip) -> dict[str, str]:
    """Short names for the MODEL and the CLIP that something is trained on, each by its weights and patches, the MODEL also by its noise schedule;
    of patches that cannot be compared only which kind they are counts."""
    return {"model": _short(model, "diffusion_model.", _sampling(model)), "clip": _short(clip.patcher, "", clip.layer_idx)}


def key_of(model, clip, vae, *settings) -> str:
    """A short name for what makes the images of these models: weights, patches, and `settings`. Raises UnknownPatch."""
    if not hasattr(vae, "patcher"):
        raise UnknownPatch(f"the VAE ({type(vae).__name__}) has no patcher, so its weights cannot be compared")
    parts = [_patcher(model, "diffusion_model."), _patcher(clip.patcher, ""), _patcher(vae.patcher, ""), _sampling(model)]
    text = content([clip.layer_idx, clip.apply_hooks_to_conds, clip.tokenizer_options, settings], "clip")
    return hashlib.sha256(json.dumps([parts, text]).encode()).hexdigest()[:16]
