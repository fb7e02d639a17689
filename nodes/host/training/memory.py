"""What a training will take in memory, found by small passes through the denoiser before its first step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import numpy as np
import torch

from ....training.loop import Loop
from ....training.optimizers import NUMBERS
from ..checkpointing import blocks_of, recomputable
from ..gradients import KEY
from .denoiser import Ground

CHECKPOINTING = ("auto", "on", "off")
EXACT = 1024  # cells of a batch of latents up to which the pass is the training's own
PASSES = ((1, 8), (1, 16), (1, 32), (2, 8))  # (batch, side): what larger batches are reckoned from
USUAL_PATCH = 2  # cells of a latent, whose multiples the sides above are
GB = 2**30
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of one pass, and of one whose blocks run `again` in the backward pass; with what the largest block takes
    while its gradients are made, about as much as is kept of it."""

    whole: float
    again: float


@contextmanager
def counted(blocks: Iterable[torch.nn.Module], known: Iterable[torch.Tensor]) -> Iterator[Callable[[], Kept]]:
    """Inside, what autograd keeps is counted, without the tensors `known`; gives what was found so far."""
    held, kept = {t.untyped_storage().data_ptr(): None for t in known}, Counter()  # held, so that no address is used twice
    running: list[int] = []

    def keep(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            held[storage.data_ptr()] = storage
            kept[running[-1] if running else "outside"] += storage.nbytes()

    def before(block, args, kwargs):
        running.append(id(block))
        kept["inputs"] += _bytes((args, kwargs))

    def after(block, args, output):
        running.pop()

    def found() -> Kept:
        parts = [size for name, size in kept.items() if name not in ("outside", "inputs")]
        largest = max(parts, default=0)
        return Kept(kept["outside"] + sum(parts) + largest, kept["outside"] + kept["inputs"] + 2 * largest)

    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(after, always_call=True) for b in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _bytes(value) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif type(value) not in (list, tuple):
        return 0
    return sum(_bytes(v) for v in value)


def cell_of(network: torch.nn.Module) -> int:
    """How many times larger than usual the patches are into which a denoiser cuts its input: networks of pixels have large ones."""
    patch = getattr(network, "patch_size", None)
    sides = patch if isinstance(patch, (list, tuple)) else [patch]
    return max([1, *(side // USUAL_PATCH for side in sides if isinstance(side, int))])


def reckoned(kept: Callable[[int, int, int], Kept], batch: int, height: int, width: int, cell: int = 1) -> Kept:
    """What a batch of latents needs, from `kept(batch, height, width)` of small ones where it is large itself.

    w + batch (t + a area + b area^2): weights that are made anew, text, images, and attention that keeps its maps. Small ones have sides
    that are multiples of `cell`.
    """
    if batch * height * width <= EXACT * cell**2:
        return kept(batch, height, width)
    passes = [(n, side * cell) for n, side in PASSES]
    found = np.array([(k.whole, k.again) for k in (kept(n, side, side) for n, side in passes)])
    terms = np.array([_terms(n, side * side) for n, side in passes])
    whole, again = _terms(batch, height * width) @ np.linalg.solve(terms, found)
    return Kept(float(whole), float(again))


def _terms(batch: int, area: int) -> np.ndarray:
    return np.array([1.0, batch, batch * area, batch * area**2])


@dataclass
class Room:
    """Looks before the first step whether a training fits into memory, and which blocks are to run again in its backward pass.

    `shape` is that of its largest batch of latents, with `size` images in its batch_size; `rows(count)` gives the conditionings of one,
    `place` a noise level. `modules` are further networks that gradients pass through. `free(device)` gives the bytes that are free.
    """

    checkpointing: str
    loop: Loop
    shape: torch.Size
    size: int
    rows: Callable[[int], list]
    place: float
    modules: Sequence[torch.nn.Module] = ()
    free: Callable[[torch.device], float] = comfy.model_management.get_free_memory
    again: bool | None = None  # whether blocks run again; found out before the first step

    def __post_init__(self):
        if self.checkpointing not in CHECKPOINTING:
            raise ValueError(f"There is no checkpointing '{self.checkpointing}'; choose one of {', '.join(CHECKPOINTING)}.")

    def blocks(self, ground: Ground) -> Sequence[torch.nn.Module]:
        """The blocks that run again. Raises ValueError where the training cannot fit, and says what would."""
        model = ground.guider.inner_model
        known = blocks_of(model) if self.checkpointing == "on" or recomputable(model) else []
        if self.again is None:
            self.again = self._decided(ground, known)
        return known if self.again else ()

    def _decided(self, ground: Ground, known: Sequence[torch.nn.Module]) -> bool:
        device, model = ground.guider.model_patcher.load_device, ground.guider.inner_model
        kept, learning = self._kept(ground, known, self.shape[0]), self.loop.to_come()
        wanted = kept.whole + learning + model.memory_required(list(self.shape))
        free = self._freed(ground, device, wanted)
        again = self.checkpointing == "on" or (self.checkpointing == "auto" and bool(known) and wanted > free)
        needed = (kept.again if again else kept.whole) + learning
        if needed > free:
            raise ValueError(self._told(ground, known, kept, learning, again, free))
        if again:
            log.info("Blocks run again in the backward pass: %.1f GB in the place of %.1f GB.", needed / GB, (kept.whole + learning) / GB)
        return again

    def _freed(self, ground: Ground, device: torch.device, wanted: float) -> float:
        """What is free, after the host has put other models out of the way if that is not enough."""
        free = self.free(device)
        if wanted > free and device.type != "cpu":
            patcher = ground.guider.model_patcher
            own = [patcher.model, *(p.model for p in patcher.get_additional_models_with_key(KEY))]
            loaded = comfy.model_management.current_loaded_models
            comfy.model_management.free_memory(wanted, device, [m for m in loaded if m.model is not None and m.model.model in own])
            free = self.free(device)
        return free

    def _kept(self, ground: Ground, blocks: Sequence[torch.nn.Module], batch: int) -> Kept:
        model, sigma = ground.guider.inner_model, ground.scale.sigma(1 - self.place)
        device = ground.guider.model_patcher.load_device
        known = [t for m in (model, *self.modules) for t in (*m.parameters(), *m.buffers())] + list(self.loop.parameters.values())

        def kept(batch: int, height: int, width: int) -> Kept:
            x = torch.zeros(batch, *self.shape[1:-2], height, width, device=device)
            with counted(blocks, known) as found:
                ground.denoised(x, torch.full([batch], sigma, device=device), self.rows(batch))
                return found()

        return reckoned(kept, batch, *self.shape[-2:], cell_of(model.diffusion_model))

    def _told(self, ground: Ground, known: Sequence[torch.nn.Module], kept: Kept, learning: float, again: bool, free: float) -> str:
        numbers = sum(p.numel() for p in self.loop.parameters.values()) / 1e6
        now = kept.again if again else kept.whole
        ways = []
        if not again and known and kept.again < 0.9 * kept.whole:
            ways.append(f"set checkpointing to 'on' (about {_gb(kept.again + learning)})")
        if self.size > 1:
            one = self._kept(ground, known, self.shape[0] // self.size)
            less = (one.again if again else one.whole) + learning
            ways.append(f"set batch_size to 1 and accumulate to {self.size * self.loop.accumulate} (about {_gb(less)})")
        ways.append("take smaller images, train fewer layers or at a lower rank, or close what else uses the memory")
        return (
            f"This training needs about {_gb(now + learning)} of memory beside the model, and {_gb(free)} are free: {_gb(now)} for the backward "
            f"pass through {self.shape[0]} images at a time, {_gb(learning)} for gradients and what {self.loop.optimizer} keeps of "
            f"{numbers:.1f} million numbers. To make it fit, {'; '.join(ways)}."
        )


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 2**20:.0f} MB"


def check_numbers(
    numbers: int, optimizer: str, average: float, device: torch.device, advice: str,
    free: Callable[[torch.device], float] = comfy.model_management.get_free_memory,
) -> None:  # fmt: skip
    """Refuses so many trained float32 numbers as cannot fit, with what the loop keeps of them, before they are made."""
    needed, room = numbers * 4 * (2 + NUMBERS[optimizer] + bool(average)), free(device)
    if needed > room:
        raise ValueError(
            f"Training {numbers / 1e6:.0f} million numbers with {optimizer} needs {_gb(needed)} beside the model, and {_gb(room)} are free. {advice}"
        )
