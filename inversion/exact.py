"""What exact inversions share: settings that fit the number of steps, and the form of those that look at three levels at once.

Sampling undoes an exact inversion whatever the network predicts, because there are two states and each update of one evaluates the network
only at the other. The price: during the inversion the difference of the two states grows with every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .method import Derivative, Show, State, Trajectory

STEPS = 50  # for which the papers give p and gamma


def for_steps(value: float, steps: int) -> float:
    """p or gamma, given for 50 steps, for another number: `value ** (50 / steps)`, so that all steps together do as much as the 50.

    A value that no method takes stays as it is.
    """
    return value ** (STEPS / steps) if 0.0 < value <= 1.0 else value


def check_growth(name: str, value: float, rounds: int, steps: int, limit: float, usual: str) -> None:
    """Refuses a setting with which a disagreement grows more than `limit` times on the way up, `value ** -rounds` over all steps."""
    growth = value**-rounds
    if growth > limit:
        least = limit ** (-1 / rounds) + 5e-4
        raise ValueError(
            f"{name} is {value:g}, with which small errors grow {growth:.0e} times over the {steps} steps of the inversion, and the noise "
            f"is lost in them. For {steps} steps give {least:.3f} to 1, usually {usual}; or switch rescale on, or take fewer steps."
        )


@torch.no_grad()
def encode_pairs(derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show, weights: Sequence[float]) -> Trajectory:
    """The trajectory of the method whose `step_pair` has these weights, one for each level between the first and the last.

    The first step up is DDIM's, at the level it goes to, so the network is never asked at sigma 0. The pair at the noisiest level is
    (x_0, x_1), at any other (x_i, x_{i-1}).
    """
    if len(sigmas) < 3:
        raise ValueError(f"There is {len(sigmas) - 1} step, but a method over three levels needs 2 or more (usually 50); raise steps.")
    states = [x0, x0 + (sigmas[-2] - sigmas[-1]) * derivative(x0, sigmas[-2], sigmas[-1])]
    show(states[-1], derivative.denoised)
    for i in range(len(sigmas) - 2, 0, -1):
        before, now, after = sigmas[i - 1 : i + 2]
        x, d = states[-1], derivative(states[-1], now)
        states.append(x + (before - now) * d + (states[-2] - x - (after - now) * d) / weights[i - 1])
        show(states[-1], derivative.denoised)
    states.reverse()
    return Trajectory(tuple(sigmas), ((states[0], states[1]), *zip(states[1:], states)))


def step_pair(derivative: Derivative, state: State, i: int, sigmas: Sequence[float], weight: float) -> State:
    """One step down: x_{i+1} = F(x_i, i+1) + weight (x_{i-1} - F(x_i, i-1)), with F(x_i, j) the DDIM step from level i to j.

    The noisiest step has nothing before it: there the pair itself holds the next state, and nothing is evaluated.
    """
    x, other = state
    if i == 0:
        return other, x
    before, now, after = sigmas[i - 1 : i + 2]
    d = derivative(x, now)
    return x + (after - now) * d + weight * (other - x - (before - now) * d), x
