"""The memory that a training will take, found by passes through the denoiser before its first step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_management import get_free_memory
from torch.multiprocessing.reductions import StorageWeakRef

from ....training.loop import Loop
from ....training.optimizers import NUMBERS
from ..checkpointing import blocks_of, passes, recomputable
from ..gradients import KEY
from ..saved_tensors import map_tensors, measured_by
from .denoiser import TrainDenoiser

CHECKPOINTING = ("auto", "on", "off")
GB = 2**30
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassMemory:
    """Bytes that autograd keeps of one pass, and of one whose blocks run again in the backward pass; with what the largest block takes
    while its gradients are made, about as much as is kept of it."""

    plain: float
    recomputed: float


@contextmanager
def pass_memory(blocks: Iterable[torch.nn.Module], known: Iterable[torch.Tensor]) -> Iterator[Callable[[], PassMemory]]:
    """Inside, what autograd saves is measured and let go, without the tensors `known`: a pass takes no more memory than one without
    gradients. Gives what was found so far."""
    fixed, seen, saved = {StorageWeakRef(t.untyped_storage()) for t in known}, set(), Counter()

    def measure(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        own = StorageWeakRef(storage), tensor._version
        if own[0] not in fixed and own not in seen:
            seen.add(own)
            saved[running[-1] if running else "outside"] += storage.nbytes()

    def begin(block: torch.nn.Module, given: tuple) -> int:
        saved["inputs"] += _bytes(given)
        return id(block)

    def found() -> PassMemory:
        parts = [size for name, size in saved.items() if name not in ("outside", "inputs")]
        largest = max(parts, default=0)
        return PassMemory(saved["outside"] + sum(parts) + largest, saved["outside"] + saved["inputs"] + 2 * largest)

    with passes(blocks, begin) as running, measured_by(measure):
        yield found


def _bytes(value) -> int:
    sizes = []
    map_tensors(value, lambda t: sizes.append(t.nbytes))
    return sum(sizes)


def estimate(measure: Callable[[int], PassMemory], batch: int) -> tuple[PassMemory, PassMemory]:
    """(one image's memory, that of a batch), from `measure(count)` of one image and of two: each further image takes as much as the second."""
    one = measure(1)
    if batch == 1:
        return one, one
    two = measure(2)
    plain, recomputed = (a + (batch - 1) * (b - a) for a, b in ((one.plain, two.plain), (one.recomputed, two.recomputed)))
    return one, PassMemory(plain, recomputed)


@dataclass
class MemoryPlan:
    """Finds out before the first step whether a training fits into memory, and which blocks run again in its backward pass.

    `shape` is that of its largest batch of latents, with `size` images in its batch_size and `accumulate` batches in a step; `rows(count)`
    gives the conditionings of one, `place` a noise level. `modules` are further networks that gradients pass through.
    """

    checkpointing: str
    loop: Loop
    shape: torch.Size
    size: int
    accumulate: int
    rows: Callable[[int], list]
    place: float
    modules: Sequence[torch.nn.Module] = ()
    recompute: bool | None = None  # whether blocks run again; decided before the first step

    def blocks(self, denoiser: TrainDenoiser) -> Sequence[torch.nn.Module]:
        """The blocks that run again. Raises ValueError where the training cannot fit, and says what would."""
        model = denoiser.guider.inner_model
        known = blocks_of(model) if self.checkpointing == "on" or recomputable(model) else []
        if self.recompute is None:
            self.recompute = self._decide(denoiser, known)
        return known if self.recompute else ()

    def _decide(self, denoiser: TrainDenoiser, known: Sequence[torch.nn.Module]) -> bool:
        model, patcher = denoiser.guider.inner_model, denoiser.guider.model_patcher
        one, whole = self.measured(denoiser, known)
        learning = self.loop.to_come()
        wanted = whole.plain + learning + model.memory_required(list(self.shape))
        own = [patcher.model, *(p.model for p in patcher.get_additional_models_with_key(KEY))]
        free = free_after_unloading(patcher.load_device, wanted, own)
        recompute = self.checkpointing == "on" or (self.checkpointing == "auto" and bool(known) and wanted > free)
        needed = (whole.recomputed if recompute else whole.plain) + learning
        if needed > free:
            raise ValueError(self._refusal(bool(known), one, whole, learning, recompute, free))
        if recompute:
            log.info("Blocks run again in the backward pass: %.1f GB instead of %.1f GB.", needed / GB, (whole.plain + learning) / GB)
        return recompute

    def measured(self, denoiser: TrainDenoiser, blocks: Sequence[torch.nn.Module]) -> tuple[PassMemory, PassMemory]:
        """(memory of one image, of a batch)."""
        model, sigma = denoiser.guider.inner_model, denoiser.scale.sigma(1 - self.place)
        device = denoiser.guider.model_patcher.load_device
        known = [t for m in (model, *self.modules) for t in (*m.parameters(), *m.buffers())] + list(self.loop.parameters.values())

        def measure(count: int) -> PassMemory:
            rows = count * self.shape[0] // self.size
            x = torch.zeros(rows, *self.shape[1:], device=device)
            with pass_memory(blocks, known) as found:
                denoiser.denoised(x, torch.full([rows], sigma, device=device), self.rows(rows))
                return found()

        return estimate(measure, self.size)

    def _refusal(self, known: bool, one: PassMemory, whole: PassMemory, learning: float, recompute: bool, free: float) -> str:
        numbers = sum(p.numel() for p in self.loop.parameters.values()) / 1e6
        now, less = (m.recomputed if recompute else m.plain for m in (whole, one))
        ways = []
        if not recompute and known and whole.recomputed < 0.9 * whole.plain:
            ways.append(f"set checkpointing to 'on' (about {_gb(whole.recomputed + learning)})")
        if self.size > 1:
            ways.append(f"set batch_size to 1 and accumulate to {self.size * self.accumulate} (about {_gb(less + learning)})")
        ways.append("take smaller images, train fewer layers or at a lower rank, or close what else uses the memory")
        return (
            f"This training needs about {_gb(now + learning)} of memory beside the model, and {_gb(free)} are free: {_gb(now)} for the backward "
            f"pass through {self.shape[0]} images at a time, {_gb(learning)} for gradients and what {self.loop.optimizer} keeps of "
            f"{numbers:.1f} million numbers. To make it fit, {'; '.join(ways)}."
        )


def free_after_unloading(device: torch.device, wanted: float, own: Sequence[torch.nn.Module] = ()) -> float:
    """Free bytes, after ComfyUI has unloaded other networks than `own` if there are too few."""
    if wanted > get_free_memory(device) and device.type != "cpu":
        loaded = comfy.model_management.current_loaded_models
        comfy.model_management.free_memory(wanted, device, [m for m in loaded if m.model is not None and m.model.model in own])
    return get_free_memory(device)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 2**20:.0f} MB"


def check_numbers(numbers: int, optimizer: str, average: float, device: torch.device, advice: str) -> None:
    """Refuses so many trained float32 numbers as cannot fit, with what the loop keeps of them, before they are made."""
    needed, free = numbers * 4 * (2 + NUMBERS[optimizer] + bool(average)), get_free_memory(device)
    if needed > free:
        raise ValueError(
            f"Training {numbers / 1e6:.0f} million numbers with {optimizer} needs {_gb(needed)} beside the model, and {_gb(free)} are free. {advice}"
        )
