"""The one training loop: a resumable generator of steps with warm-up, a schedule and an average of the weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .optimizers import NUMBERS, rate_factor
from .optimizers import optimizer as make_optimizer


@dataclass(frozen=True)
class Step:
    """One optimizer step: 1-based `index` of `total`, its loss and learning rate."""

    index: int
    total: int
    loss: float
    learning_rate: float


class Diverged(ValueError):
    """The loss or its gradient is no number. The parameters are those of the last good step."""


def save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors to a temporary name beside `path` and moves it there."""
    temporary = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


class Loop:
    """Minimises a loss over named parameters.

    `optimizer` is a name in `optimizers.OPTIMIZERS`. The gradient of a step is the mean over `accumulate` parts, clipped at norm 1.
    `loss_scale` above 1 keeps gradients of half precision from vanishing; it is halved where they overflow. After each step
    `after_step()` may move the parameters, as a projection does. `averaged()` swaps in the exponential average of the weights.
    `save`/`restore` keep parameters, average, optimizer moments and the curve of losses in one safetensors file, so that an
    interrupted run continues where it stopped; `about` says what the run is, and another run's state is refused.
    """

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], *, steps: int, learning_rate: float, warmup: int = 100, average: float = 0.999,
        optimizer: str = "adamw", schedule: str = "cosine", accumulate: int = 1, loss_scale: float = 1.0,
        after_step: Callable[[], None] = lambda: None, about: dict[str, str] | None = None,
    ):  # fmt: skip
        self.parameters, self.steps, self.learning_rate = parameters, steps, learning_rate
        self.warmup, self.average, self.done = warmup, average, 0
        self.schedule, self.accumulate, self.loss_scale = schedule, accumulate, loss_scale
        self.after_step, self.about = after_step, about or {}
        self.continued = False  # whether an unfinished run was continued
        self.history: list[Step] = []
        self.optimizer, self.algorithm = optimizer, make_optimizer(optimizer, parameters.values())
        self.averages = {k: p.detach().clone() for k, p in parameters.items()} if average else {}

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> Iterator[Step]:
        """Yields after every step; `loss_of(index)` builds the loss of part `index`, 0-based, counted through all steps.

        Raises `Diverged` before a step whose loss or gradient is not finite. Whatever `loss_of` raises leaves the parameters as the last
        step left them; a new `run` goes on from there.
        """
        while self.done < self.steps:
            rate = self.learning_rate * rate_factor(self.schedule, self.done, self.steps, self.warmup)
            try:
                loss = self._gradient(loss_of)
                self._update(rate)
            finally:
                self._forget_gradients()
            self.done += 1
            self.after_step()
            self._update_averages()
            self.history.append(Step(self.done, self.steps, loss, rate))
            yield self.history[-1]

    def _gradient(self, loss_of: Callable[[int], torch.Tensor]) -> float:
        """Leaves the clipped mean gradient of this step's parts in the parameters; gives their mean loss."""
        while True:
            loss = sum(self._part(loss_of(self.done * self.accumulate + part)) for part in range(self.accumulate)) / self.accumulate
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            if self.loss_scale != 1.0:
                torch._foreach_div_(gradients, self.loss_scale)
            if math.isfinite(float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0))):
                return loss
            if self.loss_scale <= 1.0:
                raise self._diverged("gradient", math.nan)
            self.loss_scale /= 2
            self._forget_gradients()

    def _part(self, loss: torch.Tensor) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged("loss", value)
        factor = self.loss_scale / self.accumulate
        (loss if factor == 1.0 else loss * factor).backward()
        return value

    def _diverged(self, what: str, value: float) -> Diverged:
        return Diverged(
            f"The training diverged: the {what} became {value} at step {self.done + 1} of {self.steps}. Lower the learning rate or raise the "
            f"warm-up, and look for images or masks that are empty. The weights after the {self.done} steps before it are kept."
        )

    def _update(self, rate: float) -> None:
        for group in self.algorithm.param_groups:
            group["lr"] = rate
        self.algorithm.step()

    def _forget_gradients(self) -> None:
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def _update_averages(self) -> None:
        if self.averages:
            keep = min(self.average, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_(list(self.averages.values()), [p.detach() for p in self.parameters.values()], 1 - keep)

    @contextmanager
    def averaged(self):
        """Inside, the parameters hold their averages; with `average` 0 they are their own."""
        if not self.averages:
            yield
            return
        own = {k: p.detach().clone() for k, p in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        for k, p in self.parameters.items():
            p.copy_(values[k])

    def to_come(self) -> int:
        """Bytes that the first step takes and the later ones keep: gradients, and what the optimizer keeps of them."""
        numbers = 1 if self.algorithm.state else 1 + NUMBERS[self.optimizer]
        return numbers * sum(p.numel() * p.element_size() for p in self.parameters.values())

    def save(self, path: Path) -> None:
        state = {f"weight/{k}": p for k, p in self.parameters.items()}
        state |= {f"average/{k}": v for k, v in self.averages.items()}
        state |= {f"{name}/{k}": m for k, p in self.parameters.items() for name, m in self.algorithm.state.get(p, {}).items()}
        state["curve/losses"] = torch.tensor([[s.loss, s.learning_rate] for s in self.history], dtype=torch.float64).reshape(-1, 2)
        facts = {"done": self.done, "loss_scale": self.loss_scale, "continued": int(self.continued)}
        save_atomically(state, path, {"about": json.dumps(self.about), **{k: str(v) for k, v in facts.items()}})

    def restore(self, path: Path) -> bool:
        """Continues from `path` if it exists; says whether it did. Raises ValueError on the state of another run."""
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            self._check_same_run(json.loads(facts["about"]), path)
            self.done, self.loss_scale = int(facts["done"]), float(facts["loss_scale"])
            self.continued = facts["continued"] == "1" or self.done < self.steps
            self._fill({k: file.get_tensor(f"weight/{k}") for k in self.parameters})
            source = "average/" if any(n.startswith("average/") for n in file.keys()) else "weight/"
            self.averages = {k: file.get_tensor(source + k).to(self.parameters[k].device) for k in self.averages}
            curve = enumerate(file.get_tensor("curve/losses").tolist(), 1)
            self.history = [Step(i, self.steps, loss, rate) for i, (loss, rate) in curve]
            for name, key in (n.split("/", 1) for n in file.keys() if not n.startswith(("weight/", "average/", "curve/"))):
                p, moment = self.parameters[key], file.get_tensor(f"{name}/{key}")
                self.algorithm.state[p][name] = moment if name == "step" else moment.to(p.device)
        return True

    def _check_same_run(self, other: dict[str, str], path: Path) -> None:
        changed = [f"{k} was {other.get(k, 'not set')}, now {v}" for k, v in self.about.items() if other.get(k) != v]
        if changed:
            raise ValueError(
                f"{path.name} is the state of another training: {'; '.join(changed)}. Set these back to continue it, or start a new one under "
                "another name."
            )


def progress(path: Path) -> tuple[int, bool]:
    """(steps taken, whether the run was continued after a stop) of the training whose state is in a file; (0, False) without one."""
    if not path.is_file():
        return 0, False
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
    return int(facts.get("done", 0)), facts.get("continued") == "1"


def saving(loop: Loop, steps: Iterator[Step], path: Path, every_seconds: float = 120) -> Iterator[Step]:
    """Passes steps on and keeps the state file of the loop fresh, at the end too; a slow one is written less often."""
    last, took = time.monotonic(), 0.0
    for step in steps:
        begun = time.monotonic()
        if begun - last > max(every_seconds, 20 * took) or step.index == step.total:
            loop.save(path)
            last = time.monotonic()
            took = last - begun
        yield step
