"""What every inversion is made of: the derivative of a model's flow, a state carried from level to level, and a method.

All of it in the host's sigma space, where `d = (x - denoised) / sigma` is the derivative of the deterministic sampler for eps, v and flow
models alike: a DDIM step is `x + (goal - now) d`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

State = tuple[torch.Tensor, ...]  # the state (B, C, ...) first; exact methods carry a second state beside it
Show = Callable[[torch.Tensor, torch.Tensor], None]  # (x, denoised), after every step


def single(x: torch.Tensor) -> torch.Tensor:
    """x in float32, from float64 a hair off the values that lie midway between two of float32.

    Sums of float32 numbers often lie there, and would round to either side after a change in their last digit: what was inverted in
    float64 would come back with the error of float32.
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

    def __call__(self, x: torch.Tensor, at: float, level: float | None = None) -> torch.Tensor:
        """The derivative at sigma `at` of a state x that lies at sigma `level` (unless given, at `at` too).

        A state of another level is scaled so that the network sees what it sees in its own space, where DDIM inversion is defined.
        """
        seen = x if level is None else x * (self.input_scale(level) / self.input_scale(at))
        self.denoised = self.model(single(seen), torch.full([len(x)], at, dtype=torch.float32, device=x.device), **self.extra_args)
        self.calls += 1
        return (seen - self.denoised.to(x.dtype)) / at


@dataclass(frozen=True)
class Trajectory:
    """What an inversion leaves: falling `sigmas` (N + 1) and the carry at each of them, the image's own last.

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
        """The same for `count` branches beside each other: rows (count * B, ...), one whole batch after the other."""
        if count == 1:
            return self

        def beside(t, dim):
            return torch.cat([t] * count, dim)

        states = tuple(tuple(beside(t, 0) for t in carry) for carry in self.states)
        return Trajectory(self.sigmas, states, {k: beside(t, 1) for k, t in self.extras.items()})


class Method:
    """One way to invert: a frozen dataclass of its settings. Its subclasses are all there are; `name` is theirs in files."""

    name: ClassVar[str]

    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """Walks a clean latent up the falling `sigmas`, from their last to their first."""
        raise NotImplementedError

    def step(self, derivative: Derivative, carry: State, i: int, trajectory: Trajectory) -> State:
        """The carry at `trajectory.sigmas[i + 1]` from the one at `trajectory.sigmas[i]`."""
        raise NotImplementedError

    def direction(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What guidance on the way back makes of the difference (B, ...) of its predictions before it is scaled; None: nothing."""
        return None


def method_named(name: str) -> type[Method]:
    """The method that a file names."""
    known = {m.name: m for m in Method.__subclasses__()}
    if name not in known:
        raise ValueError(f"'{name}' is no inversion method of this version; it knows {', '.join(sorted(known))}. Update the pack.")
    return known[name]


def rising(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """(now, goal) of every step of an inversion along falling sigmas."""
    up = list(sigmas)[::-1]
    return list(zip(up, up[1:]))


@torch.no_grad()
def replay(
    method: Method,
    derivative: Derivative,
    trajectory: Trajectory,
    *,
    between: Callable[[State, int], State] = lambda carry, level: carry,
    show: Show = lambda x, denoised: None,
) -> torch.Tensor:
    """Walks a trajectory down again, under whatever condition the derivative now has; the latent at its last sigma.

    `between(carry, level)` may change the carry that has arrived at `trajectory.sigmas[level]`.
    """
    carry = trajectory.states[0]
    for i in range(trajectory.steps):
        carry = between(method.step(derivative, carry, i, trajectory), i + 1)
        show(carry[0], carry[0] if derivative.denoised is None else derivative.denoised)
    return carry[0]
