"""O-BELM: the exact inversion over three levels with the smallest local error (arXiv 2410.07273, the O-BELM proposition).

Let h be the step to come and H the step made, both falling. x_{i+1} = A x_{i-1} + B x_i + C d_i matches the Taylor series of x along sigma
up to its second order for just one choice: A = (h / H)^2, B = 1 - A, C = -h - A H. That is `step_pair` with the weight A. The coefficients
know nothing but sigma, so they are the same for eps, v and flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .exact import encode_pairs, step_pair
from .method import Derivative, Method, Show, State, Trajectory

LOSS = 1e-3  # of the image, by rounding


def weight(sigmas: Sequence[float], i: int) -> float:
    """What multiplies the state before level i."""
    before, now, after = sigmas[i - 1 : i + 2]
    return ((now - after) / (before - now)) ** 2


def check_steps(sigmas: Sequence[float], dtype: torch.dtype) -> None:
    """Refuses steps of no length, and steps that grow so much on the way down that the precision of `dtype` is lost.

    A rounding error at the start of a step h is amplified by (k / h)^2 at every later step k.
    """
    same = [a for a, b in zip(sigmas, sigmas[1:]) if not a > b]
    if same:
        raise ValueError(
            f"The sigmas do not fall after {same[0]:.4g}; O-BELM needs steps of some length. Take fewer, or another scheduler."
        )
    lengths = [a - b for a, b in zip(sigmas, sigmas[1:])]
    loss = max(s * (max(lengths[i:]) / lengths[i]) ** 2 for i, s in enumerate(sigmas[:-1])) * torch.finfo(dtype).eps
    if loss > LOSS:
        raise ValueError(
            f"The scheduler's steps become {max(lengths) / lengths[0]:.0f} times longer on the way down, which would cost O-BELM about "
            f"{loss:.0e} of the image in {str(dtype).removeprefix('torch.')}. Choose precision float64, or a scheduler like karras or "
            "normal."
        )


@dataclass(frozen=True)
class OBELM(Method):
    """Exact for any network, second order; one evaluation a step, no setting. The state is (x at this level, x at the level before)."""

    name: ClassVar[str] = "o-belm"

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        """Raises ValueError for steps with which the inverse would not be exact."""
        check_steps(sigmas, x0.dtype)
        return encode_pairs(derivative, x0, sigmas, show, [weight(sigmas, i) for i in range(1, len(sigmas) - 1)])

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        return step_pair(derivative, state, i, trajectory.sigmas, weight(trajectory.sigmas, i) if i else 0.0)
