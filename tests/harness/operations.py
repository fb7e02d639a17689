"""Counts what a run asks of torch: operations, each a launch on a GPU, and values that Python waits for, each a stop until the GPU is idle. And how
many functions it calls."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# `resolve_neg` is how `tolist` shows, which reads without an operation of its own.
WAITS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "resolve_neg", "masked_select", "_unique2"}
NO_WORK = {"detach", "detach_", "lift", "lift_fresh", "resolve_conj", "empty", "empty_like", "empty_strided", "new_empty", "set_"}
MAYBE_NONE = {"to", "contiguous", "type_as"}  # nothing is done where the tensor is so already


def _caller() -> str:
    """Where an operation was called: the innermost place outside of torch."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class Operations(TorchDispatchMode):
    """`names` counts operations that are no views, `reads` tells of those whose value Python asks for, and where."""

    def __init__(self):
        super().__init__()
        self.names, self.reads = Counter(), []

    @property
    def launched(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, result = func.overloadpacket.__name__, func(*args, **kwargs or {})
        if name in WAITS or (name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.reads.append(f"{name} in {_caller()}")
        elif not (func.is_view or name in NO_WORK or (name in MAYBE_NONE and result is args[0])):
            self.names[name] += 1
        return result


class LayersWithoutValues(TorchDispatchMode):
    """A network of a MODEL whose tensors have shapes and no values (torch's meta device), so that reading one there, or copying it to the CPU,
    is an error of torch. Outside of the network all have values, those that came out of it are 0."""

    def __init__(self, model):
        super().__init__()
        self.network, self.inside = model.get_model_object("diffusion_model"), False

    def __enter__(self):
        self.network.to("meta")
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = (args, kwargs or {}) if self.inside else tree_map_only(torch.Tensor, self._with_values, (args, kwargs or {}))
        return func(*args, **kwargs)

    @staticmethod
    def _with_values(t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(t, device="cpu") if t.is_meta else t

    @staticmethod
    def _without(value):
        return value.to("meta") if torch.is_tensor(value) else value

    def evaluate(self, executor, *args, **kwargs) -> torch.Tensor:
        """A wrapper around the network (DIFFUSION_MODEL). The options keep their values: other wrappers read the noise level there."""
        args, kwargs = [self._without(a) for a in args], {name: self._without(a) for name, a in kwargs.items()}
        self.inside = True
        try:
            out = executor(*args, **kwargs)
        finally:
            self.inside = False
        return self._with_values(out)


def calls(run: Callable[[], object]) -> int:
    """How many functions a run calls, Python's and built-in ones: its work in Python, whatever else the machine does."""
    count = 0

    def seen(frame, event: str, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count
