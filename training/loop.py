"""The one training loop: a resumable generator of steps with warm-up, a schedule and an average of the weights."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..guidance.errors import listed, quoted
from .files import save_atomically
from .optimizers import MOMENTS, NUMBERS, rate_factor
from .optimizers import optimizer as make_optimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One optimizer step: 1-based `index` of `total`, its loss and learning rate."""

    index: int
    total: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Facts:
    """What the file of a state says of itself: what the run is, its steps, and the shape of each tensor."""

    about: dict[str, str]
    done: int
    steps: int
    loss_scale: float
    continued: bool
    before: list[float]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Reads no tensor. Raises ValueError where the file is damaged or none of ours."""
        with _readable(path), safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            about, done, scale = json.loads(facts["about"]), int(facts["done"]), float(facts["loss_scale"])
            before = [float(loss) for loss in json.loads(facts["before"])]
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
        if not isinstance(about, dict) or done < 0 or not 0 < scale < math.inf or not all(map(math.isfinite, before)):
            raise _damaged(path, "what it says of its run makes no sense")
        return cls(about, done, int(facts.get("steps", done)), scale, facts.get("continued") == "1", before, shapes)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged, or no state of a training: {reason}. Remove it, and start the training anew or under another name."
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Inside, what a damaged state raises becomes a ValueError that says so."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error


def _fits(shape: tuple[int, ...], parameter: Sequence[int]) -> bool:
    """Whether a moment of this shape can belong to a parameter of that one: a number, a row or column of it, or all of it."""
    whole = math.prod(shape) == math.prod(parameter)
    return whole or (len(shape) <= len(parameter) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(parameter))))


class Diverged(ValueError):
    """The loss or its gradient is no number. The parameters are those of the last good step."""


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
        self.before: list[float] = []  # the losses of the first batches before the first step, where the trainer asked for them
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
            losses = [self._part(loss_of(self.done * self.accumulate + part)) for part in range(self.accumulate)]
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            if self.loss_scale != 1.0:
                torch._foreach_div_(gradients, self.loss_scale)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            loss = self._mean(losses)
            if math.isfinite(float(norm)):
                return loss
            if self.loss_scale <= 1.0:
                raise self._diverged("gradient", math.nan)
            self.loss_scale /= 2
            self._forget_gradients()

    def _part(self, loss: torch.Tensor) -> torch.Tensor:
        factor = self.loss_scale / self.accumulate
        (loss if factor == 1.0 else loss * factor).backward()
        return loss.detach()

    def _mean(self, losses: Sequence[torch.Tensor]) -> float:
        """Read only when all is launched: a GPU would be idle from then until it has been."""
        values = [float(loss) for loss in losses]
        for value in values:
            if not math.isfinite(value):
                raise self._diverged("loss", value)
        return sum(values) / self.accumulate

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
        facts = {"done": self.done, "steps": self.steps, "loss_scale": self.loss_scale, "continued": int(self.continued), "before": json.dumps(self.before)}
        save_atomically(state, path, {"about": json.dumps(self.about), **{k: str(v) for k, v in facts.items()}})

    def restore(self, path: Path) -> bool:
        """Continues from `path` if it exists; says whether it did. Raises ValueError on the state of another run."""
        if not path.is_file():
            return False
        facts = Facts.read(path)
        self._check_same_run(facts.about, path)
        self._check_tensors(facts.shapes, path)
        with _readable(path), safe_open(path, "pt") as file:
            self.done, self.loss_scale, self.before = facts.done, facts.loss_scale, facts.before
            self.continued = facts.continued or self.done < self.steps
            self._fill({k: file.get_tensor(f"weight/{k}") for k in self.parameters})
            source = "average/" if any(n.startswith("average/") for n in file.keys()) else "weight/"
            self.averages = {k: file.get_tensor(source + k).to(self.parameters[k]) for k in self.averages}
            curve = enumerate(file.get_tensor("curve/losses").tolist(), 1)
            self.history = [Step(i, self.steps, loss, rate) for i, (loss, rate) in curve]
            for name, key in (n.split("/", 1) for n in file.keys() if not n.startswith(("weight/", "average/", "curve/"))):
                p, moment = self.parameters[key], file.get_tensor(f"{name}/{key}")
                self.algorithm.state[p][name] = moment if name == "step" else moment.to(p.device)
        return True

    def _check_tensors(self, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
        """Refuses a state whose tensors are not those of this loop, or hold NaN, before any is used."""
        held = {tuple(name.split("/", 1)): shape for name, shape in shapes.items() if "/" in name}
        parts = {part for part, _ in held}
        wanted = {(part, k): tuple(p.shape) for part in ("weight", *({"average"} & parts)) for k, p in self.parameters.items()}
        moments = {at: shape for at, shape in held.items() if at[0] not in ("weight", "average", "curve")}
        wrong = [f"{part}/{k}" for (part, k), shape in wanted.items() if held.get((part, k)) != shape]
        wrong += [
            f"{name}/{k}" for (name, k), shape in moments.items() if k not in self.parameters or not _fits(shape, self.parameters[k].shape)
        ]
        wrong += [name for name in shapes if "/" not in name or (name.startswith("curve/") and shapes[name][1:] != (2,))]
        kept = {k: {n for n, other in moments if other == k} for k in self.parameters}
        wrong += [f"a moment of {k}" for k, names in kept.items() if names and names not in MOMENTS]
        wrong += [] if "curve/losses" in shapes else ["curve/losses"]
        if wrong:
            raise _damaged(path, f"{quoted(wrong[0])} is missing, or not of the shape that this training has")
        with _readable(path), safe_open(path, "pt") as file:
            lost = [k for k in shapes if not bool(torch.isfinite(file.get_tensor(k)).all())]
        if lost:
            raise _damaged(path, f"{quoted(lost[0])} holds NaN or infinity")

    def _check_same_run(self, other: dict[str, str], path: Path) -> None:
        changed = [f"{k} was {other.get(k, 'not set')}, now {v}" for k, v in self.about.items() if other.get(k) != v]
        if changed:
            raise ValueError(
                f"{path.name} is the state of another training: {listed(changed)}. Set these back to continue it, or start a new one under "
                "another name."
            )


def progress(path: Path) -> tuple[int, int, bool]:
    """(steps taken, of how many, whether the run was continued after a stop) of the training whose state is in a file; (0, 0, False) without."""
    if not path.is_file():
        return 0, 0, False
    facts = Facts.read(path)
    return facts.done, facts.steps, facts.continued


def saving(loop: Loop, steps: Iterator[Step], path: Path, every: float = 120, first: float = 10) -> Iterator[Step]:
    """Passes steps on and keeps the state file of the loop fresh, at the end too: after `first` seconds, then at times that double up to
    `every` seconds; a slow one is written less often. The training goes on where the disk does not take it."""
    last, took, wait = time.monotonic(), 0.0, min(first, every)
    for step in steps:
        begun = time.monotonic()
        if begun - last > max(wait, 20 * took) or step.index == step.total:
            save_or_warn(loop, path)
            last, wait = time.monotonic(), min(every, 2 * wait)
            took = last - begun
        yield step


def save_or_warn(loop: Loop, path: Path) -> None:
    """Saves the state of a loop; where the disk does not take it, says that the training cannot be continued from there."""
    try:
        loop.save(path)
    except OSError as error:
        log.warning("The state of the training after %d steps is not saved, so it cannot be continued from there. %s", loop.done, error)
