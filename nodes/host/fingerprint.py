"""Tells one model's weights from another's, whatever their precision and device, and whatever LoRA is on them; and one file from another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

SAMPLES = 16  # values of every weight
COARSE = 1e-6  # below it a sign can be lost in half precision
_FORMAT = "comfy_quant"  # ComfyUI's entry beside the weight of a quantized layer
_GOLDEN, _WORD = 0x9E3779B1, 1 << 32  # multiples of the golden ratio spread evenly, in every dimension


def stamp(path: Path) -> str:
    """Changes when a file does; of one that is not there it is empty."""
    return f"{path.stat().st_mtime_ns} {path.stat().st_size}" if path.is_file() else ""


@dataclass(frozen=True)
class Weights:
    """`layout` is a digest of the names and shapes of all weights, `signs` the sign of some values of each: '+', '-' or '0'.

    Rounding to another precision changes no sign, it can only make a value 0; other training changes some of thousands.
    """

    layout: str
    signs: str

    @classmethod
    def of(cls, model, prefix: str = "diffusion_model.") -> Weights:
        """Those of a MODEL as it was loaded, without the LoRA and hooks that may be baked into it; copies no weight. Of the patcher of a CLIP
        or VAE those of all its weights, with the prefix ""."""
        named = sorted((k, unpatched(model, k, weight)) for k, weight in _unpacked(model, prefix).items())
        layout = hashlib.sha256("".join(f"{k} {tuple(w.shape)}\n" for k, w in named).encode()).hexdigest()[:32]
        signs = [_signs(w) for _, w in named if w.is_floating_point() and w.numel()]
        gathered = torch.cat([s.to(signs[0].device) for s in signs]).tolist() if signs else []  # on one device: few transfers
        return cls(layout, "".join("-0+"[s + 1] for s in gathered))

    def same(self, other: Weights) -> bool:
        """Whether both can be roundings of the same weights."""
        alike = self.layout == other.layout and len(self.signs) == len(other.signs)
        return alike and all(a == b or "0" in (a, b) for a, b in zip(self.signs, other.signs))


def _unpacked(model, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a MODEL by name; of layers that ComfyUI keeps quantized no scales and formats, and no packed storage."""
    whole = model.model_state_dict(prefix)
    packed = {k.removesuffix(_FORMAT) for k in whole if k.endswith(_FORMAT)}
    held = dict(model.model.named_parameters()) if packed else {}
    found = {}
    for k, weight in whole.items():
        layer, name = k[: k.rfind(".") + 1], k[k.rfind(".") + 1 :]
        if layer not in packed:
            found[k] = weight
        elif name in ("weight", "bias"):
            stored = weight.shape == held[k].shape and weight.is_floating_point()  # fp8, whose scales are positive
            found[k] = weight if stored else held[k].dequantize()
    return found


def unpatched(model, key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight of a MODEL as it was loaded; `weight` is what it is now."""
    if key in model.hook_backup:
        return model.hook_backup[key][0]
    return model.backup[key].weight if key in model.backup else weight


def _signs(weight: torch.Tensor) -> torch.Tensor:
    """Signs of SAMPLES values at fixed places, int8, on the weight's device."""
    places = [(i * _GOLDEN % _WORD) * weight.numel() >> 32 for i in range(1, SAMPLES + 1)]
    found = weight.detach()[torch.unravel_index(torch.tensor(places), weight.shape)] if weight.ndim else weight.detach().view(1)
    return found.float().sign().to(torch.int8)
