"""What tells one patch on a model from another."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import types

import comfy.model_patcher
import torch

from ..fingerprint import COARSE, SAMPLES


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
