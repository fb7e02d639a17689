"""BDIA: exact inversion by averaging the DDIM steps to both sides (arXiv 2307.10829, the BDIA-DDIM update and its inverse).

In VP the next state is z_{i+1} = F(z_i, i+1) + gamma (z_{i-1} - F(z_i, i-1)); a state of another level has another scale in ComfyUI's sigma
space, which is where the factor beside gamma comes from. A flow model puts no scale on its input, and the factor is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .exact import check_growth, encode_pairs, step_pair
from .method import Derivative, Method, Show, State, Trajectory

GROWTH = 1e4  # of the error of the first step up, which is about a hundredth of the state


@dataclass(frozen=True)
class BDIA(Method):
    """Exact for any network; one evaluation a step. The state is (x at this level, x at the level before).

    `gamma` (0 <= gamma <= 1) is how much of the step before is taken back: 0 is DDIM and has no inverse, 1 is a leapfrog.
    """

    name: ClassVar[str] = "bdia"
    gamma: float = 0.94

    def __post_init__(self):
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma:g}; give 0.92 to 1 for inversion (paper), 0 to 1 for sampling.")

    def weight(self, derivative: Derivative, sigmas: Sequence[float], i: int) -> float:
        """What multiplies the state before level i."""
        return self.gamma * derivative.input_scale(sigmas[i - 1]) / derivative.input_scale(sigmas[i + 1])

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """Raises ValueError where gamma is 0 or so small that the image is lost."""
        if self.gamma == 0.0:
            raise ValueError("gamma is 0, which is DDIM and has no exact inverse; give 0.92 to 1, or use DDIM Inverter.")
        steps = len(sigmas) - 1
        check_growth("gamma", self.gamma, steps, steps, GROWTH, "0.92 to 1 for 50")
        return encode_pairs(derivative, x0, sigmas, show, [self.weight(derivative, sigmas, i) for i in range(1, steps)])

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        weight = self.weight(derivative, trajectory.sigmas, i) if i else 0.0
        return step_pair(derivative, state, i, trajectory.sigmas, weight)
