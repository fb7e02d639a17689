"""What every inversion is made of: the derivative of a model's flow, the state at each noise level, and a method.

All of it is in ComfyUI's sigma space, where `d = (x - denoised) / sigma` is the derivative of the deterministic sampler for eps, v and flow
models alike: a DDIM step is `x + (goal - now) d`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch

from ..guidance.errors import listed, quoted

State = tuple[torch.Tensor, ...]  # x (B, C, ...); exact methods have a second tensor of this shape
Show = Callable[[torch.Tensor, torch.Tensor], None]  # (x, denoised), after every step


def single(x: torch.Tensor) -> torch.Tensor:
    """x in float32, after a shift of float64 values off the midpoints between two float32 values.

    Sums of float32 numbers are often such midpoints and would round to either side after a change in their last digit: a float64 inversion
    would come back with the error of float32.
    """
    return (x * (1 + 3e-9) if x.dtype == torch.float64 else x).float()


class Derivative:
    """The derivative `d = (x - D(x, sigma)) / sigma` of a model, `model(x, sigma (B,), **extra_args) -> denoised`.

    `input_scale(sigma)` is the factor that the model puts on its input: 1 / sqrt(1 + sigma^2) for eps and v, 1 for flow. The network
    runs in float32; the derivative comes in the precision of x. `calls` counts predictions, `denoised` is the last one.
    """

    def __init__(self, model: Callable, input_scale: Callable[[float], float] = lambda sigma: 1.0, extra_args: dict | None = None):
        self.model, self.input_scale, self.extra_args = model, input_scale, extra_args or {}
        self.calls, self.denoised = 0, None

    def __call__(self, x: torch.Tensor, sigma: float, level: float | None = None) -> torch.Tensor:
        """The derivative at `sigma` of a state x whose own sigma is `level` (default: `sigma` too).

        A state of another level is scaled so that the network's input is as in its own space, where DDIM inversion is defined.
        """
        seen = x if level is None else x * (self.input_scale(level) / self.input_scale(sigma))
        self.denoised = self.model(single(seen), torch.full([len(x)], sigma, dtype=torch.float32, device=x.device), **self.extra_args)
        self.calls += 1
        return (seen - self.denoised.to(x.dtype)) / sigma


@dataclass(frozen=True)
class Trajectory:
    """The result of an inversion: falling `sigmas` (N + 1) and the state at each of them, the image's own last.

    `extras` are further tensors (N, B, ...), one row for each step from `sigmas[i]` to `sigmas[i + 1]`.
    """

    sigmas: tuple[float, ...]
    states: tuple[State, ...]
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.states) != len(self.sigmas):
            raise ValueError(f"The inversion has {len(self.states)} states for {len(self.sigmas)} sigmas; it needs one at each.")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def branches(self, count: int) -> Trajectory:
        """The same for `count` branches in one batch: rows (count * B, ...), one whole batch after the other."""
        if count == 1:
            return self
        states = tuple(tuple(torch.cat([t] * count) for t in state) for state in self.states)
        return Trajectory(self.sigmas, states, {k: torch.cat([t] * count, 1) for k, t in self.extras.items()})

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Trajectory:
        """The same with every tensor changed."""
        states = tuple(tuple(change(t) for t in state) for state in self.states)
        return Trajectory(self.sigmas, states, {k: change(t) for k, t in self.extras.items()})


class Method(Protocol):
    """A way to invert: a frozen dataclass of its settings. The subclasses are all methods; `name` identifies them in files."""

    name: ClassVar[str]

    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """The trajectory of a clean latent x0 along the falling `sigmas`, made from their last to their first."""

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        """The state at `trajectory.sigmas[i + 1]` from the one at `trajectory.sigmas[i]`."""

    def evaluated(self, trajectory: Trajectory, i: int) -> tuple[torch.Tensor, float]:
        """Where the inversion took the derivative of step i: (a state, the sigma that it is of). Raises ValueError if not known."""
        raise ValueError(
            f"align is on, but an inversion by {quoted(self.name)} cannot be aligned. Switch it off, or invert with DDIM Inverter (order 1) or "
            "Negative-Prompt Inverter."
        )

    def direction(self, cfg: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """How guidance at `cfg` in the reconstruction changes the difference (B, ...) of its predictions before scaling it; None: not at all."""
        return None


def method_named(name: str) -> type[Method]:
    """The method of a file, by its name."""
    known = {m.name: m for m in Method.__subclasses__()}
    if name not in known:
        raise ValueError(f"{quoted(name)} is no inversion method of this version; it knows {listed(sorted(known))}. Update the pack.")
    return known[name]


def rising(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """(now, goal) of every step of an inversion along falling sigmas."""
    up = list(sigmas)[::-1]
    return list(zip(up, up[1:]))


def aligned(method: Method, derivative: Derivative, trajectory: Trajectory, i: int) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The derivative of step i at a state moved as far as the inversion's own evaluation was from its path (arXiv 2605.02417)."""
    point, level = method.evaluated(trajectory, i)
    shift = point - trajectory.states[i][0]
    return lambda x, sigma: derivative(x + shift, sigma, level)


@torch.no_grad()
def replay(
    method: Method, derivative: Derivative, trajectory: Trajectory, *, align: bool = False,
    between: Callable[[State, int], State] = lambda state, level: state, show: Show = lambda x, denoised: None,
) -> torch.Tensor:  # fmt: skip
    """The latent at the last sigma of a trajectory, sampled from its first state with this derivative, under whatever prompt it has.

    `between(state, level)` may change the state at `trajectory.sigmas[level]`. With `align` the derivative is `aligned`: under the source, as
    it was inverted, the image then comes back exactly.
    """
    state = trajectory.states[0]
    for i in range(trajectory.steps):
        here = aligned(method, derivative, trajectory, i) if align else derivative
        state = between(method.step(here, state, i, trajectory), i + 1)
        show(state[0], state[0] if derivative.denoised is None else derivative.denoised)
    return state[0]
