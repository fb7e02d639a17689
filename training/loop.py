"""The one training loop: a resumable generator of steps with warm-up, cosine decay and an average of the weights."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Step:
    """One optimiser step: 1-based `index` of `total`, its loss and learning rate."""

    index: int
    total: int
    loss: float
    learning_rate: float


def save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors to a temporary name beside `path` and moves it there."""
    temporary = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def warm_cosine(index: int, total: int, warmup: int) -> float:
    """Factor of the learning rate at 0-based step `index`: linear rise over `warmup`, then a cosine to zero."""
    if index < warmup:
        return (index + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (index - warmup) / max(1, total - warmup)))


def matrix_view(weight: torch.Tensor) -> torch.nn.Parameter:
    """A weight as a matrix (outputs, inputs * kernel) that shares its memory."""
    flat = weight.detach()
    if flat.ndim == 4 and not flat.is_contiguous():
        flat = flat.permute(0, 2, 3, 1)
    return torch.nn.Parameter(flat.view(flat.shape[0], -1))


class Loop:
    """Minimises a loss over named parameters.

    Weights named in `matrices` (of linear layers and convolutions) are trained by Muon, all others by AdamW.
    `averaged()` swaps in the exponential average of the weights; `save`/`restore` keep parameters, average and
    optimiser moments in one safetensors file, so that an interrupted run continues where it stopped.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        *,
        steps: int,
        learning_rate: float,
        matrices: Collection[str] = (),
        warmup: int = 100,
        average: float = 0.999,
        clip: float = 1.0,
    ):
        self.parameters, self.steps, self.learning_rate = parameters, steps, learning_rate
        self.warmup, self.average, self.clip, self.done = warmup, average, clip, 0
        self.matrices = {k: matrix_view(parameters[k]) for k in matrices}
        self.trained = parameters | self.matrices  # what the optimisers hold, by name
        others = [p for k, p in parameters.items() if k not in self.matrices]
        self.optimizers = [torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0)]
        if self.matrices:
            self.optimizers.append(
                torch.optim.Muon(list(self.matrices.values()), weight_decay=0.0, ns_steps=4, adjust_lr_fn="match_rms_adamw")
            )
        self.averages = {k: p.detach().clone() for k, p in parameters.items()}

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> Iterator[Step]:
        """Yields after every step; `loss_of(index)` builds the loss of the 0-based step `index`."""
        while self.done < self.steps:
            rate = self.learning_rate * warm_cosine(self.done, self.steps, self.warmup)
            loss = loss_of(self.done)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
            self._update(rate)
            self.done += 1
            self._update_averages()
            yield Step(self.done, self.steps, float(loss.detach()), rate)

    def _update(self, rate: float) -> None:
        for name, matrix in self.matrices.items():
            grad = self.parameters[name].grad
            matrix.grad = (grad.permute(0, 2, 3, 1) if grad.ndim == 4 and not grad.is_contiguous() else grad).reshape(matrix.shape)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def _update_averages(self) -> None:
        keep = min(self.average, (1 + self.done) / (10 + self.done))
        old = list(self.averages.values())
        torch._foreach_lerp_(old, [p.detach() for p in self.parameters.values()], 1 - keep)

    @contextmanager
    def averaged(self):
        """Inside, the parameters hold their averages."""
        kept = {k: p.detach().clone() for k, p in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        for k, p in self.parameters.items():
            p.copy_(values[k])

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        states = {p: state for o in self.optimizers for p, state in o.state.items()}
        return {k: states.get(p, {}) for k, p in self.trained.items()}

    def save(self, path: Path) -> None:
        state = {f"weight/{k}": p for k, p in self.parameters.items()}
        state |= {f"average/{k}": v for k, v in self.averages.items()}
        state |= {f"{name}/{k}": m for k, moments in self._moments().items() for name, m in moments.items()}
        save_atomically(state, path, {"done": str(self.done)})

    def restore(self, path: Path) -> bool:
        """Continues from `path` if it exists; says whether it did."""
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            self.done = int(file.metadata()["done"])
            self._fill({k: file.get_tensor(f"weight/{k}") for k in self.parameters})
            self.averages = {k: file.get_tensor(f"average/{k}") for k in self.parameters}
            for name, key in (n.split("/", 1) for n in file.keys() if not n.startswith(("weight/", "average/"))):
                owner = self.optimizers[key in self.matrices]
                owner.state[self.trained[key]][name] = file.get_tensor(f"{name}/{key}")
        return True


def saving(loop: Loop, steps: Iterator[Step], path: Path, every_seconds: float = 120) -> Iterator[Step]:
    """Passes steps on and keeps the state file of the loop fresh, at the end too."""
    last = time.monotonic()
    for step in steps:
        if time.monotonic() - last > every_seconds or step.index == step.total:
            loop.save(path)
            last = time.monotonic()
        yield step
