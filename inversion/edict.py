"""EDICT: exact inversion by two coupled states (arXiv 2211.12446; the order of the steps is the reference code's).

Each of two states makes the DDIM step with the noise that the network sees in the other, which can be undone exactly; then both are mixed,
so that they stay together. In VP the states are those of the paper; `Derivative` scales what the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .exact import check_growth
from .method import Derivative, Method, Show, State, Trajectory

GROWTH = 1e5  # of what the pair disagrees about, on the way up: it starts at about a hundred-thousandth of the state


def _ordered(state: State, i: int) -> State:
    """(the state that moves first, the other) of step i: they take turns. The same call puts them back."""
    return state if i % 2 == 0 else state[::-1]


@dataclass(frozen=True)
class EDICT(Method):
    """Exact for any network; two evaluations a step. The state is (x, y), at sigma 0 twice the image.

    `p` (0 < p <= 1) is a state's own share in the mixing: each step down brings the pair together by p^2, each step up drives it apart by
    as much.
    """

    name: ClassVar[str] = "edict"
    p: float = 0.93

    def __post_init__(self):
        if not 0.0 < self.p <= 1.0:
            raise ValueError(f"p is {self.p:g}; give more than 0, up to 1, usually 0.93 (paper) for 50 steps.")

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """Raises ValueError where p lets the pair drift apart until the image is lost."""
        steps, states = len(sigmas) - 1, [(x0, x0)]
        check_growth("p", self.p, 2 * steps, steps, GROWTH, "0.93 for 50")
        for i in reversed(range(steps)):
            states.append(self._up(derivative, states[-1], i, sigmas))
            show(states[-1][0], derivative.denoised)
        return Trajectory(tuple(sigmas), tuple(reversed(states)))

    def _up(self, derivative: Derivative, state: State, i: int, sigmas: Sequence[float]) -> State:
        """Undoes `step`, its lines in the opposite order."""
        (now, goal), (x, y) = sigmas[i : i + 2], state
        y = (y - (1 - self.p) * x) / self.p
        x = (x - (1 - self.p) * y) / self.p
        first, second = _ordered((x, y), i)
        second = second - (goal - now) * derivative(first, now, goal)
        first = first - (goal - now) * derivative(second, now)
        return _ordered((first, second), i)

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        now, goal = trajectory.sigmas[i : i + 2]
        first, second = _ordered(state, i)
        first = first + (goal - now) * derivative(second, now)
        second = second + (goal - now) * derivative(first, now, goal)
        x, y = _ordered((first, second), i)
        x = self.p * x + (1 - self.p) * y
        y = self.p * y + (1 - self.p) * x
        return x, y
