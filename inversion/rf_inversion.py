"""RF-Inversion: inversion and editing of flow models as optimal control (arXiv 2410.10792, algorithms 1 and 2).

The inversion is pulled towards a fixed noise, so that it ends at noise that the model was trained on; sampling is pulled back to the image
during its first steps only. With v the model's velocity and x = (1 - s) x0 + s n, the pulls are (y1 - x) / (1 - s) and (x - y0) / s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .method import Derivative, Method, Show, State, Trajectory, rising
from .noise import draw_like


@dataclass(frozen=True)
class RFInversion(Method):
    """For flow models; one evaluation a step.

    `gamma` (0 to 1) is the pull to the noise of `seed`: 0 is DDIM inversion, 1 ends at that noise. `eta` (0 to 1) is the pull to the image
    at the steps that begin at sigmas from `start_sigma` down to `end_sigma`: 0 is plain sampling, 1 at all steps gives the image back. At
    step i of N it is eta (1 - i / N)^decay.
    """

    name: ClassVar[str] = "rf-inversion"
    gamma: float = 0.5
    eta: float = 0.9
    start_sigma: float = 1.0
    end_sigma: float = 0.0
    decay: float = 0.0
    seed: int = 0
    noise_scale: float = 1.0

    def __post_init__(self):
        for name, usual in (("gamma", "0.5"), ("eta", "0.7 to 1")):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name):g}; give 0 (no pull) to 1 (nothing but the pull), usually {usual}.")
        if self.start_sigma < self.end_sigma:
            raise ValueError(
                f"start_sigma is {self.start_sigma:.4g} and end_sigma {self.end_sigma:.4g}; the start has to be the noisier, so the larger "
                "one."
            )
        if not self.decay >= 0.0:
            raise ValueError(f"decay is {self.decay:g}; give 0 (eta stays as it is) or more, usually 0 or 1.")

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        noise = self.noise_scale * draw_like(x0, torch.Generator().manual_seed(self.seed))
        states = [x0]
        for now, goal in rising(sigmas):
            v = derivative(states[-1], goal, now)
            states.append(states[-1] + (goal - now) * (v + self.gamma * ((noise - states[-1]) / (1 - now) - v)))
            show(states[-1], derivative.denoised)
        return Trajectory(tuple(sigmas), tuple((x,) for x in reversed(states)))

    def pull(self, i: int, trajectory: Trajectory) -> float:
        """eta at step i."""
        near = 1 + 1e-6  # a level and its sigma are found on different ways
        within = self.end_sigma <= trajectory.sigmas[i] * near and trajectory.sigmas[i] <= self.start_sigma * near
        return self.eta * (1 - i / trajectory.steps) ** self.decay if within else 0.0

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        (now, goal), x, image = trajectory.sigmas[i : i + 2], state[0], trajectory.states[-1][0]
        v = derivative(x, now)
        return (x + (goal - now) * (v + self.pull(i, trajectory) * ((x - image) / now - v)),)
