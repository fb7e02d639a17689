"""Null-text inversion: an unconditional embedding for every step, with which guidance reconstructs the image (arXiv 2211.09794).

DDIM inversion without guidance gives pivots. In the reconstruction, each step's embedding is optimized until the guided step leads to the
next pivot. Losses are in the network's own space, as the paper's are: of x in sigma space times the square of the network's input scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ..guidance.errors import check_choice
from .ddim import DDIM
from .method import Derivative, Method, Show, State, Trajectory

STARTS = ("source", "empty")
OPTIMIZERS = ("fast", "adam")
LEARNING_RATE = 1e-2
USUAL_STEPS = 50  # for which the paper's rate and thresholds are meant
REACH = 0.1  # of an embedding's norm: the largest change by one gradient of `Secant`, several times what is needed

ImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (denoised (b, ...), rows (b,)) -> (b,)


class Predictor(Protocol):
    """A guided model, split into its predictions. `rows` (b,) are the batch indices of the states x (b, ...).

    `plain`: a row's prediction depends on nothing but its own state and prompt. Then rows can be predicted without the others, and the
    source's embedding as the negative predicts what the source does.
    """

    plain = True

    def conditional(self, x: torch.Tensor, sigma: float, rows: torch.Tensor) -> torch.Tensor:
        """The prediction under the source."""

    def unconditional(self, x: torch.Tensor, sigma: float, null: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The prediction under embeddings (b, tokens, width), with a graph to them where autograd records."""

    def guided(self, x: torch.Tensor, sigma: float, conditional: torch.Tensor, unconditional: torch.Tensor, rows: torch.Tensor):
        """Guidance between the two predictions, of their shape."""


@dataclass(frozen=True)
class StepTarget:
    """A step of the reconstruction, from states x at sigma `now` to `pivot` at `goal`; `unit` converts squares to the network's space.

    The optimization stops for an image whose loss is below `tolerance`. `before` is the embedding of the step before, if any.
    """

    x: torch.Tensor
    pivot: torch.Tensor
    now: float
    goal: float
    unit: float
    tolerance: float
    before: torch.Tensor | None

    def moved(self, denoised: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The states at `goal`, by a DDIM step with this prediction."""
        return self.x[rows] + (self.goal - self.now) * (self.x[rows] - denoised) / self.now

    def loss(self, denoised: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The paper's loss of each image, (b,)."""
        return (self.moved(denoised, rows) - self.pivot[rows]).square().flatten(1).mean(1) * self.unit


@dataclass
class Best:
    """The best result of a step so far: embeddings (B, tokens, width), the guided prediction with them, the states that it leads to.

    `loss` (B,) is its loss, `first` that of the start, `gradients` how many gradients were taken.
    """

    null: torch.Tensor
    denoised: torch.Tensor
    x: torch.Tensor
    loss: torch.Tensor
    first: torch.Tensor
    gradients: torch.Tensor

    @classmethod
    def nothing(cls, target: StepTarget, null: torch.Tensor) -> Best:
        none = torch.full([len(target.x)], torch.inf, device=target.x.device)
        return cls(null.clone(), target.x.clone(), target.x.clone(), none, none.clone(), torch.zeros_like(none))

    def offer(self, target: StepTarget, rows: torch.Tensor, null: torch.Tensor, denoised: torch.Tensor, loss: torch.Tensor) -> None:
        """Keeps the rows whose loss is lower than before."""
        better = loss < self.loss[rows]
        improved = rows[better]
        self.null[improved], self.denoised[improved], self.loss[improved] = null[better], denoised[better], loss[better]
        self.x[improved] = target.moved(denoised[better], improved)


class Secant:
    """Steepest descent in step lengths that need no rate.

    The first is Polyak's for a loss that can vanish; then those of Barzilai and Borwein (1988), from the last change of embedding and
    gradient. Where a prompt has hardly an effect they would diverge: a change is at most a tenth of the start.
    """

    def __init__(self, null: torch.Tensor):
        self.null, self.gradient = null.clone(), torch.full_like(null, torch.nan)
        self.reach = REACH * null.flatten(1).norm(dim=1)

    def __call__(self, null: torch.Tensor, gradient: torch.Tensor, loss: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The next embeddings (b, tokens, width), from these, their gradient and their loss (b,)."""

        def dot(a, b):
            return (a * b).flatten(1).sum(1)

        change, bend = null - self.null[rows], gradient - self.gradient[rows]
        length = dot(change, bend) / dot(bend, bend)
        steepness = dot(gradient, gradient).clamp(min=1e-30)
        length = torch.where(length > 0, length, loss / steepness).clamp(max=self.reach[rows] / steepness.sqrt())
        self.null[rows], self.gradient[rows] = null, gradient
        return null - length.view(-1, *[1] * (null.ndim - 1)) * gradient


class Adam:
    """Adam as in the paper; `rate` is that of this step."""

    def __init__(self, null: torch.Tensor, rate: float):
        self.rate, self.count = rate, 0
        self.mean, self.square = torch.zeros_like(null), torch.zeros_like(null)

    def __call__(self, null: torch.Tensor, gradient: torch.Tensor, loss: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self.count += 1
        a, b, n = 0.9, 0.999, self.count
        self.mean[rows] = a * self.mean[rows] + (1 - a) * gradient
        self.square[rows] = b * self.square[rows] + (1 - b) * gradient.square()
        return null - self.rate * self.mean[rows] / (1 - a**n) / ((self.square[rows] / (1 - b**n)).sqrt() + 1e-8)


def threshold(i: int, steps: int) -> float:
    """The loss at which the paper stops in step i of `steps`: 1e-5, and 2e-5 more with every fiftieth of the steps."""
    return 1e-5 + 2e-5 * i * USUAL_STEPS / steps


def rate(learning_rate: float, i: int, steps: int) -> float:
    """The learning rate of step i: it falls to its half over the steps, as in the paper, whatever their number."""
    return learning_rate * (1 - i / (2 * steps))


@dataclass(frozen=True)
class NullText(Method):
    """DDIM whose unconditional embeddings are optimized, in up to `inner_steps` gradients a step.

    `start` "source": each step begins at the source prompt's embedding, near which the optimum lies; "empty": at the step before's, the
    first at the empty prompt's, as in the paper. `optimizer` "fast" chooses its step lengths by itself, "adam" is the paper's with
    `learning_rate`. A step stops at `early_stop` times the paper's threshold. `smoothness` weighs the mean square of an embedding's change
    from step to step, `l1` and `perceptual` the distances of the predicted image from the image. `extrapolate` makes more
    exact pivots, from which fewer gradients lead to a closer image; edits then keep less of the target's words, see `DDIM`.
    """

    name: ClassVar[str] = "null_text"
    start: str = "source"
    optimizer: str = "fast"
    inner_steps: int = 3
    learning_rate: float = LEARNING_RATE
    early_stop: float = 0.8
    extrapolate: bool = False
    smoothness: float = 0.0
    l1: float = 0.0
    perceptual: float = 0.0

    def __post_init__(self):
        for name, value, known in (("start", self.start, STARTS), ("optimizer", self.optimizer, OPTIMIZERS)):
            check_choice(name, value, known)
        if self.inner_steps < 0:
            raise ValueError(f"inner_steps is {self.inner_steps}; give 0 (no optimization) or more, usually 3, with adam 10.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; give more than 0, usually 0.01.")
        for name in ("early_stop", "smoothness", "l1", "perceptual"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; give 0 (off) or more.")

    @property
    def compares_images(self) -> bool:
        """Whether the loss needs decoded images."""
        return self.l1 > 0 or self.perceptual > 0

    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """The pivots alone; `optimize` finds the embeddings."""
        return DDIM(extrapolate=self.extrapolate).encode(derivative, x0, sigmas, show)

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        return DDIM().step(derivative, state, i, trajectory)

    def optimize(
        self, predictor: Predictor, trajectory: Trajectory, null: torch.Tensor, input_scale: Callable, image_loss: ImageLoss | None = None
    ) -> Iterator[Best]:
        """The best embeddings of each step of the reconstruction along the pivots, starting from `null` (B, tokens, width).

        With the start "source", `null` is the source's embedding. `input_scale(sigma)` is as of `Derivative`, `image_loss` is added to the
        loss as it is. Each step continues from where the guided steps before have led, not from the pivot.
        """
        x, start, before = trajectory.states[0][0], null.float(), None
        for i in range(trajectory.steps):
            now, goal = trajectory.sigmas[i : i + 2]
            tolerance = self.early_stop * threshold(i, trajectory.steps)
            target = StepTarget(x, trajectory.states[i + 1][0], now, goal, input_scale(goal) ** 2, tolerance, before)
            begin = start if self.start == "source" or before is None else before
            best = self._optimize_step(predictor, target, begin, rate(self.learning_rate, i, trajectory.steps), image_loss)
            x, before = best.x, best.null
            yield best

    def _optimize_step(
        self, predictor: Predictor, target: StepTarget, null: torch.Tensor, rate: float, image_loss: ImageLoss | None
    ) -> Best:
        """The optimization of one step. Where the source's embedding predicts what the source does, one evaluation serves both."""
        best, images = Best.nothing(target, null), torch.arange(len(target.x), device=target.x.device)
        optimizer = Adam(null, rate) if self.optimizer == "adam" else Secant(null)
        same = self.start == "source" and predictor.plain
        conditional = None if same else predictor.conditional(target.x, target.now, images)
        null, active = null.clone(), torch.ones_like(images, dtype=torch.bool)
        for count in range(self.inner_steps + 1):
            rows = images[active] if predictor.plain else images
            with torch.set_grad_enabled(count < self.inner_steps):
                leaf = null[rows].requires_grad_(count < self.inner_steps)
                unconditional = predictor.unconditional(target.x[rows], target.now, leaf, rows)
                conditional = unconditional.detach() if conditional is None else conditional
                denoised = predictor.guided(target.x[rows], target.now, conditional[rows], unconditional, rows)
                loss = self._loss(target, leaf, denoised, rows, image_loss)
            value = loss.detach()
            if count == 0:
                best.first[rows] = value
            best.offer(target, rows, null[rows], denoised.detach(), value)
            active[rows] &= value >= target.tolerance
            if count == self.inner_steps or not active.any():
                break
            (gradient,) = torch.autograd.grad((loss / value.clamp(min=1e-30)).sum(), leaf)  # scaled by the loss, for half precision
            unfinished = active[rows]
            left = rows[unfinished]
            null[left] = optimizer(null[left], (gradient * value.view(-1, *[1] * (leaf.ndim - 1)))[unfinished], value[unfinished], left)
            best.gradients[left] += 1
        return best

    def _loss(
        self, target: StepTarget, null: torch.Tensor, denoised: torch.Tensor, rows: torch.Tensor, image_loss: ImageLoss | None
    ) -> torch.Tensor:
        loss = target.loss(denoised, rows)
        if self.smoothness and target.before is not None:
            loss = loss + self.smoothness * (null - target.before[rows]).square().flatten(1).mean(1)
        return loss if image_loss is None else loss + image_loss(denoised, rows)
