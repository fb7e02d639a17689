"""DDIM inversion: the deterministic sampler run backwards (arXiv 2010.02502, section 4.3; as an inversion arXiv 2105.05233).

Each step up asks the network at the level it goes to, with the state that it comes from. The way down asks at the level it comes from,
with a slightly different state: the error is of the order of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .method import Carry, Method, Show, Slope, Trail, rising


@dataclass(frozen=True)
class DDIM(Method):
    """Exact as the number of steps grows; one evaluation a step."""

    name: ClassVar[str] = "ddim"

    @torch.no_grad()
    def encode(self, slope: Slope, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trail:
        states = [x0]
        for now, goal in rising(sigmas):
            states.append(states[-1] + (goal - now) * slope(states[-1], goal, now))
            show(states[-1], slope.denoised)
        return Trail(tuple(sigmas), tuple((x,) for x in reversed(states)))

    def step(self, slope: Slope, carry: Carry, i: int, trail: Trail) -> Carry:
        now, goal = trail.sigmas[i : i + 2]
        return (carry[0] + (goal - now) * slope(carry[0], now),)
