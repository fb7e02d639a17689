"""DDIM inversion: the deterministic sampler reversed (arXiv 2010.02502, section 4.3; as an inversion arXiv 2105.05233).

A step up evaluates the network at the level it goes to, with the state it comes from; the step down evaluates it with a slightly different
state, so the error is of the order of the step. The slope of the step before leads nearly to that state, at no cost (Uni-Inv, arXiv 2504.13109;
a predictor-corrector method). Midpoint steps bring the error to the square of the step (RF-Solver, arXiv 2411.04746, whose second-order
formula is the explicit midpoint method), fixed-point iterations to nothing where they converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..guidance.errors import check_choice
from .fixed_point import ACCELERATIONS, distance, solve
from .method import Derivative, Method, Show, State, Trajectory, rising


@dataclass(frozen=True)
class DDIM(Method):
    """Exact as the number of steps grows, or as the fixed-point iterations converge.

    `order` evaluations a step: 1 is DDIM (Euler), 2 midpoint. Up to `fixed_point_iterations` times as many again on the way up, until the
    relative residual is at most `tolerance`; the trajectory's extra "residuals" (N, B) then holds the residual of every step. With
    `extrapolate` a step up of order 1 begins where the slope of the step before leads to.
    """

    name: ClassVar[str] = "ddim"
    order: int = 1
    fixed_point_iterations: int = 0
    acceleration: str = "anderson"
    tolerance: float = 1e-6
    extrapolate: bool = False

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"order is {self.order}; give 1 (DDIM, Euler) or 2 (midpoint, RF-Solver).")
        if self.fixed_point_iterations < 0:
            raise ValueError(f"fixed_point_iterations is {self.fixed_point_iterations}; give 0 (plain inversion) or more, usually 3 to 10.")
        check_choice("acceleration", self.acceleration, ACCELERATIONS)
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance is {self.tolerance:g}; give 0 (all iterations) or more, usually 1e-6.")

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        states, residuals = [x0], []
        for now, goal in rising(sigmas):
            expected = extrapolated(states, sigmas[::-1]) if self.extrapolate and self.order == 1 else None
            x, left = self._up(derivative, states[-1], now, goal, expected)
            states.append(x)
            residuals += [] if left is None else [left]
            show(x, derivative.denoised)
        extras = {"residuals": torch.stack(residuals[::-1])} if residuals else {}
        return Trajectory(tuple(sigmas), tuple((x,) for x in reversed(states)), extras)

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        return (state[0] + self._move(derivative, state[0], *trajectory.sigmas[i : i + 2]),)

    def evaluated(self, trajectory: Trajectory, i: int) -> tuple[torch.Tensor, float]:
        if self.order != 1:
            raise ValueError("align is on, but the inversion is of order 2. Switch it off, or set order to 1 in DDIM Inverter.")
        if self.fixed_point_iterations:
            return trajectory.states[i][0], trajectory.sigmas[i]
        states, up = [x for (x,) in trajectory.states[:i:-1]], trajectory.sigmas[::-1]
        expected = extrapolated(states, up) if self.extrapolate else None
        return (states[-1], trajectory.sigmas[i + 1]) if expected is None else (expected, trajectory.sigmas[i])

    def _move(self, derivative: Derivative, x: torch.Tensor, now: float, goal: float, first: torch.Tensor | None = None) -> torch.Tensor:
        """What a step adds to x; `first` is the derivative at its start, evaluated here unless given."""
        first = derivative(x, now) if first is None else first
        if self.order == 1:
            return (goal - now) * first
        return (goal - now) * derivative(x + (goal - now) / 2 * first, (now + goal) / 2)

    def _up(
        self, derivative: Derivative, x: torch.Tensor, now: float, goal: float, expected: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(the state at `goal` from which a step down leads to x, its residual). The network is not evaluated at sigma 0.

        `expected` is about that state, if known. Without fixed-point iterations the first guess is taken, and the residual is None.
        """
        if expected is not None:
            start = x - self._move(derivative, expected, goal, now)
        else:
            first = derivative(x, goal, now) if self.order == 1 or now == 0.0 else None
            start = x + self._move(derivative, x, now, goal, first)
        if not self.fixed_point_iterations:
            return start, None
        settings = self.fixed_point_iterations, self.acceleration, self.tolerance
        return solve(lambda y: x - self._move(derivative, y, goal, now), start, distance(start, x), *settings)


def extrapolated(states: Sequence[torch.Tensor], up: Sequence[float]) -> torch.Tensor | None:
    """The next state after those of the first of the rising sigmas `up`, with the slope of the last step; None at the start.

    Going on with the change of the slope too is a little more exact in 50 steps, but less exact than nothing in 10.
    """
    if len(states) == 1:
        return None
    before, now, goal = up[len(states) - 2 : len(states) + 1]
    return states[-1] + (goal - now) * (states[-1] - states[-2]) / (now - before)
