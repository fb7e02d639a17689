"""Copies of what autograd saves: many of ComfyUI's networks write in place into tensors that the backward pass still needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import comfy.model_management
import torch
from torch.multiprocessing.reductions import StorageWeakRef  # while one lives, no other storage can be equal to it

T = TypeVar("T")
log = logging.getLogger(__name__)
_END = object()


def map_tensors(value, change: Callable[[torch.Tensor], torch.Tensor]):
    """A value with each of its tensors changed; dictionaries, lists and tuples are made anew."""
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, change) for k, v in value.items()}
    return type(value)(map_tensors(v, change) for v in value) if type(value) in (list, tuple) else value


class _Copy:
    """The copy of a storage as it was at one of its versions."""

    def __init__(self, storage: torch.UntypedStorage):
        self.storage, self.typed = storage.clone(), {}

    def view(self, dtype: torch.dtype, offset: int, size: torch.Size, stride: tuple[int, ...]) -> torch.Tensor:
        if dtype not in self.typed:
            self.typed[dtype] = torch.empty(0, dtype=dtype, device=self.storage.device).set_(self.storage)
        return self.typed[dtype].as_strided(size, stride, offset)


class SavedTensor(NamedTuple):
    """A saved tensor: a view of a copied storage, or the tensor itself where it cannot change or is of an unusual kind."""

    tensor: torch.Tensor | None
    copy: _Copy | None = None
    dtype: torch.dtype | None = None
    layout: tuple = ()

    def load(self) -> torch.Tensor:
        return self.tensor if self.copy is None else self.copy.view(self.dtype, *self.layout)


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided


class Copies:
    """Copies every storage once at each of its versions, and frees it with the last tensor saved of it. `weights` are not copied.

    The original is freed as soon as the network itself no longer needs it, so the copies take little more memory. A copy has the layout of its
    original: kernels then run as before, and gradients are the same bit for bit.
    """

    def __init__(self, weights: Callable[[], Iterable[torch.Tensor]]):
        self.weights, self.fixed, self.copies = weights, None, WeakValueDictionary()

    def save(self, tensor: torch.Tensor) -> SavedTensor:
        if not _is_plain(tensor):
            return SavedTensor(tensor)
        if tensor.is_conj() or tensor.is_neg():
            return SavedTensor(tensor.clone())
        if self.fixed is None:  # not before: networks may get new weights at their first use
            self.fixed = {StorageWeakRef(w.untyped_storage()) for w in self.weights() if _is_plain(w)}
        storage = tensor.untyped_storage()
        own = StorageWeakRef(storage)
        if own in self.fixed:
            return SavedTensor(tensor)
        key = own, tensor._version
        copy = self.copies.get(key)
        if copy is None:
            copy = self.copies[key] = _Copy(storage)
        return SavedTensor(None, copy, tensor.dtype, (tensor.storage_offset(), tensor.size(), tensor.stride()))


def loaded_weights() -> list[torch.Tensor]:
    """The weights and buffers of all models that ComfyUI has in memory, ControlNets and text encoders among them."""
    networks = [patcher.model for patcher in comfy.model_management.loaded_models() if patcher is not None]
    return [w for network in networks for w in (*network.parameters(), *network.buffers())]


_measure: ContextVar[Callable[[torch.Tensor], None] | None] = ContextVar("who measures what autograd saves", default=None)


@contextmanager
def measured_by(measure: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Inside, `measure` sees all that autograd saves, which is let go; also where `mutations_allowed` is asked for."""
    token = _measure.set(measure)
    try:
        with mutations_allowed():
            yield
    finally:
        _measure.reset(token)


def mutations_allowed(weights: Callable[[], Iterable[torch.Tensor]] = loaded_weights) -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, networks may change in place what autograd has saved; gradients are those of the values that were saved.

    Not torch's `allow_mutation_on_saved_tensors`: in torch 2.13.0 it knows a saved tensor by (id, data pointer, version) and lets it go once it
    has copied it, so that a new tensor of the same id, address and version gets the old copy, and with it a wrong gradient.
    """
    measure = _measure.get()
    pair = (Copies(weights).save, SavedTensor.load) if measure is None else (measure, lambda nothing: nothing)
    return torch.autograd.graph.saved_tensors_hooks(*pair)


def _no_circle(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    return tensor if tensor.is_leaf else tensor.detach(), tensor._version


def _as_saved(saved: tuple[torch.Tensor, int]) -> torch.Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("a tensor that the backward pass needs was changed in place")
    return tensor


def mutations_refused() -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, a backward pass refuses tensors that were changed in place after they were saved, as it does anyway.

    Without this a refusal keeps the whole graph and its models forever: a tensor that is changed in place by what was made of it, as in
    `x += f(x)`, is held by its own history, and only a backward pass that succeeds lets go of it.
    """
    return torch.autograd.graph.saved_tensors_hooks(_no_circle, _as_saved)


class CopyIfNeeded:
    """Takes steps that need gradients, without copies as long as nothing that autograd saved is changed in place: copies take time.

    Where a step is refused, `steps` is asked anew, inside `mutations_allowed`, as are all that follow; what it did before it was refused must
    not count. Any step can be the first that writes: a patch may act at some noise levels alone. An error with another cause comes again.
    """

    def __init__(self):
        self.around: Callable[[], AbstractContextManager] = mutations_refused

    def __call__(self, steps: Callable[[], Iterator[T]]) -> Iterator[T]:
        taken = steps()
        while True:
            try:
                with self.around():
                    step = next(taken, _END)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if self.around is mutations_allowed:
                    raise
                log.info("Trying again with copies of what the backward pass needs: %s", error)
                self.around, taken = mutations_allowed, steps()
                continue
            if step is _END:
                return
            yield step
