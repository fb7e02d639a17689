"""Edit-friendly inversion: the noise maps with which the stochastic sampler makes this image (arXiv 2304.06140, algorithm 1).

Every level gets the image under noise of its own, and a noise map is what ancestral sampling has to add at a step to get from one level to
the next. Such maps are no normal noise: they are larger and carry the image's layout, which is why they keep it under another prompt.
The step is Euler ancestral with eta 1, ComfyUI's `euler_ancestral`, whose form for flow models differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .method import Derivative, Method, Show, State, Trajectory
from .noise import draw_like, noised


@dataclass(frozen=True)
class EditFriendly(Method):
    """Exact for any network, under the same prompt and cfg; one evaluation a step.

    The noise maps are the trajectory's extra "noise_maps" (N, B, ...). The last step adds no noise; the paper leaves out what it misses of
    the image, here that is its map. `flow` and `noise_scale` say what a noisy state of the model is: see `noise.noised`.
    """

    name: ClassVar[str] = "edit-friendly"
    seed: int = 0
    flow: bool = False
    noise_scale: float = 1.0

    def _mean(self, derivative: Derivative, x: torch.Tensor, now: float, goal: float) -> tuple[torch.Tensor, float]:
        """(mean, deviation) of the state at `goal` from x at `now`; the deviation is 1 where the step adds no noise."""
        down = goal**2 / now
        kept = (1 - goal) / (1 - down) if self.flow else 1.0
        deviation = self.noise_scale * max(goal**2 - (kept * down) ** 2, 0.0) ** 0.5
        return kept * (x + (down - now) * derivative(x, now)), deviation or 1.0

    @torch.no_grad()
    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        generator, steps = torch.Generator().manual_seed(self.seed), len(sigmas) - 1
        noises = [self.noise_scale * draw_like(x0, generator) for _ in range(steps)][::-1]  # a level's own, however many lie above it
        goals = [noised(x0, n, s, self.flow) for n, s in zip(noises, sigmas)] + [x0]
        states, maps = [(goals[0],)], []
        for i in range(steps):
            mean, deviation = self._mean(derivative, states[-1][0], *sigmas[i : i + 2])
            maps.append((goals[i + 1] - mean) / deviation)
            states.append((mean + deviation * maps[-1],))
            show(states[-1][0], derivative.denoised)
        return Trajectory(tuple(sigmas), (*states[:-1], (x0,)), {"noise_maps": torch.stack(maps)})

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        mean, deviation = self._mean(derivative, state[0], *trajectory.sigmas[i : i + 2])
        return (mean + deviation * trajectory.extras["noise_maps"][i],)
