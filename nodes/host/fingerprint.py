"""Tells one model's weights from another's, whatever their precision and device, and whatever LoRA lies on them; and one file from another."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import logging
import re
import types
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import torch

SAMPLES = 16  # values of every weight
COARSE = 1e-6  # below it a sign can be lost in half precision
_FORMAT = "comfy_quant"  # the host's entry beside the weight of a quantised layer
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
        return cls(layout, "".join("-0+"[s + 1] for s in _gathered(signs)))

    def same(self, other: Weights) -> bool:
        """Whether both can be roundings of the same weights."""
        alike = self.layout == other.layout and len(self.signs) == len(other.signs)
        return alike and all(a == b or "0" in (a, b) for a, b in zip(self.signs, other.signs))


def traits(value, coarse: bool = False, depth: int = 10, above: frozenset[int] = frozenset()):
    """What tells one patch from another, for JSON: numbers and texts, of tensors their shape and some values, of functions and objects their
    name and what they hold, down to a depth.

    What is drawn anew in every run does not count, nor what says only that a model is loaded. `coarse`: of tensors signs alone, which stay when
    the host brings them to a model's precision.
    """
    if value is None or isinstance(value, (int, float, bool)):
        return value
    if isinstance(value, str):
        return "" if re.fullmatch("[0-9a-f]{32}", value) else value  # the name of a run
    if torch.is_tensor(value):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLES)].float()
        return [list(value.shape), (some.sign() * (some.abs() > COARSE) if coarse else some).tolist()]
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    known = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    name = getattr(known, "__qualname__", type(value).__name__)
    held = _held(value) if depth and id(value) not in above else None
    if held is None:
        return name
    return [name, *([str(k), traits(v, coarse, depth - 1, above | {id(value)})] for k, v in held)]


_OPAQUE = (type, types.ModuleType, logging.Logger, torch.nn.Module, comfy.model_patcher.ModelPatcher)
_RUNNING = ("original_forward", "_curr_t", "_step")  # of the host's objects: they differ while a model is loaded or has sampled


def _held(value) -> list[tuple] | None:
    """What is in a container, a function or an object, by name; None of what has weights of its own, or leads anywhere."""
    if isinstance(value, dict):
        return sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, functools.partial) or inspect.ismethod(value):
        return [(k, getattr(value, k)) for k in ("func", "args", "keywords", "__self__") if hasattr(value, k)]
    if inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or ())
        return [*_bound(cells), ("defaults", value.__defaults__), ("more", value.__kwdefaults__)]
    if isinstance(value, _OPAQUE) or not hasattr(value, "__dict__"):
        return None
    return sorted((k, v) for k, v in vars(value).items() if k not in _RUNNING and not k.startswith("_current_"))


def _bound(cells) -> list[tuple]:
    """The variables of a closure that have a value by now."""
    found = []
    for name, cell in cells:
        with contextlib.suppress(ValueError):
            found.append((name, cell.cell_contents))
    return found


def _unpacked(model, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a MODEL by name; of layers that the host keeps quantised no scales and formats, and no packed storage."""
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
    """Signs of SAMPLES values at fixed places, int8, where the weight lies."""
    places = [(i * _GOLDEN % _WORD) * weight.numel() >> 32 for i in range(1, SAMPLES + 1)]
    found = weight.detach()[torch.unravel_index(torch.tensor(places), weight.shape)] if weight.ndim else weight.detach().view(1)
    return found.float().sign().to(torch.int8)


def _gathered(parts: list[torch.Tensor]) -> list[int]:
    """All values as numbers; one transfer from each device."""
    places = {device: [i for i, p in enumerate(parts) if p.device == device] for device in {p.device for p in parts}}
    found: list[list[int]] = [[]] * len(parts)
    for chosen in places.values():
        values = torch.cat([parts[i] for i in chosen]).tolist()
        for i in chosen:
            found[i], values = values[: len(parts[i])], values[len(parts[i]) :]
    return [v for part in found for v in part]
