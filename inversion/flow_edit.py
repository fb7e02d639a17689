"""Edits without inversion, straight from image to image: FlowEdit (arXiv 2412.08629, algorithm 1) and FlowAlign (arXiv 2505.23145).

At each level source and edit get the same fresh noise, and the edit moves by the difference of their derivatives. The papers' is for flow
models; with x0 + sigma n instead of (1 - sigma) x0 + sigma n the same lines serve eps and v models. FlowAlign guides the edit away from the
source prompt instead of a negative one, and draws its clean prediction a little toward the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .method import Derivative, Show
from .noise import draw_like

Noised = Callable[[float, torch.Tensor, torch.Tensor], torch.Tensor]


def step_counts(steps: int, n_max: float, n_min: float) -> tuple[int, int]:
    """(n_max, n_min) as numbers of steps, from shares of all; a share above 0 is one step at least. Raises ValueError."""
    if not 0 <= n_min <= n_max <= 1:
        raise ValueError(
            f"n_max is {n_max:g} and n_min {n_min:g}; give shares of the steps, 0 <= n_min <= n_max <= 1, usually n_max 0.66 to 0.86 and n_min 0."
        )
    return tuple(max(round(share * steps), int(share > 0)) for share in (n_max, n_min))


@torch.no_grad()
def flow_edit(
    source: Callable[[torch.Tensor, float], torch.Tensor], target: Derivative, x0: torch.Tensor, sigmas: Sequence[float], noised: Noised, *,
    n_max: float, n_min: float = 0.0, n_avg: int = 1, zeta: float = 0.0, seed: int = 0,
    within: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda inside, outside: inside, show: Show = lambda x, denoised: None,
) -> torch.Tensor:  # fmt: skip
    """The edited latent of x0 (B, C, ...). `source` and `target` are derivatives under two prompts, `noised(sigma, noise, x0)` noises x0.

    Of the steps along falling `sigmas` (the last 0) only the share `n_max` with least noise is made; the last share `n_min` is plain
    sampling under the target. Every step averages `n_avg` noises, given to the derivatives as one batch (n_avg * B, ...), noise by noise,
    and adds `zeta` times the difference of the clean predictions, source minus edit (FlowAlign's 0.01; 0 = FlowEdit).
    `within(inside, outside)` puts a step into a mask: `z += ds M (v_target - v_source)`, so that a soft mask takes its share of every step
    once. Raises ValueError for shares that do not fit each other.
    """
    steps = len(sigmas) - 1
    n_max, n_min = step_counts(steps, n_max, n_min)
    if n_avg < 1:
        raise ValueError(f"n_avg is {n_avg}; give 1 (the paper's) or more, usually 1 to 4.")
    generator, edit = torch.Generator().manual_seed(seed), torch.zeros_like(x0)
    for i in range(steps - n_max, steps - n_min):
        now, goal = sigmas[i : i + 2]
        z = torch.stack([noised(now, draw_like(x0, generator), x0) for _ in range(n_avg)])
        before, after = (side(x.flatten(0, 1), now).unflatten(0, z.shape[:2]) for side, x in ((source, z), (target, z + edit)))
        push = (after - before).mean(0)
        apart = now * push - edit  # the source's clean prediction minus the edit's
        edit = within(edit + (goal - now) * push + zeta * apart, edit)
        show(x0 + edit, target.denoised[: len(x0)])
    if n_min == 0:
        return x0 + edit
    noise = draw_like(x0, generator)
    x = noised(sigmas[-1 - n_min], noise, x0) + edit
    for now, goal in zip(sigmas[-1 - n_min :], sigmas[-n_min:]):
        kept = (x - noised(now, noise, x0)) + noised(goal, noise, x0)  # with the edit as it was
        x = within(x + (goal - now) * target(x, now), kept)
        show(x, target.denoised)
    return x
