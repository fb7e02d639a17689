"""Negative-prompt inversion (arXiv 2305.16807), proximal guidance (arXiv 2306.05414, algorithms 1 and 2) and Uni-Edit (arXiv 2504.13109).

With the source prompt as the negative, guidance adds nothing under the source prompt, whatever its scale: DDIM inversion comes back as
without guidance. Under another prompt guidance follows the difference of the two prompts; proximal guidance removes its small values,
Uni-Edit raises it where it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..guidance.errors import check_choice
from .ddim import DDIM
from .method import Derivative, Method, Show, State, Trajectory

PLAIN, L0, L1, UNI_EDIT = GUIDANCE = ("plain", "proximal l0", "proximal l1", "Uni-Edit")


def slerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Spherical interpolation from a (at share 0) to b (at 1), (B, ...), each sample as one vector."""
    if share in (0.0, 1.0):
        return b if share else a
    x, y = (t.double().flatten(1) for t in (a, b))
    cosine = torch.nn.functional.cosine_similarity(x, y).clamp(-1, 1)[:, None]
    angle = cosine.arccos()
    straight = angle.sin() < 1e-6
    one, other = (torch.where(straight, w, (w * angle).sin() / angle.sin()) for w in (torch.tensor(1 - share), torch.tensor(share)))
    return (one * x + other * y).view(torch.broadcast_shapes(a.shape, b.shape)).to(a)


def without_small(difference: torch.Tensor, kind: str, quantile: float) -> torch.Tensor:
    """A difference (B, ...) without its small values: those up to this quantile of each sample's absolute values.

    "proximal l0" keeps the others as they are, "proximal l1" brings them closer to 0 by as much. At quantile 0 it is unchanged, at 1 all
    is 0.
    """
    if quantile == 0.0:
        return difference
    size = difference.abs().flatten(1)
    rank = max(1, round(quantile * size.shape[1]))
    least = size.kthvalue(rank, dim=1).values.view(-1, *[1] * (difference.ndim - 1))
    if kind == L0:
        return torch.where(difference.abs() > least, difference, 0.0)
    return difference.sign() * (difference.abs() - least).clamp(min=0)


def by_region(difference: torch.Tensor, cfg: float) -> torch.Tensor:
    """A difference g (B, C, ...), target minus source, which guidance at `cfg` makes Uni-Edit's step: m g + cfg (1 + m) g.

    m is the mean of |g| over channels, from 0 to 1 in each sample. At cfg 0 it is unchanged.
    """
    size = difference.abs().mean(1, keepdim=True)
    rest = tuple(range(1, size.ndim))
    low, high = size.amin(rest, keepdim=True), size.amax(rest, keepdim=True)
    m = (size - low) / (high - low).clamp(min=torch.finfo(size.dtype).tiny)
    return difference * (1 + m + m / cfg) if cfg else difference


@dataclass(frozen=True)
class NegativePrompt(Method):
    """DDIM for a reconstruction with the source as the negative.

    `fixed_point_iterations` make the inversion exact, `extrapolate` makes it more exact for nothing, see `DDIM`; edits then keep less of the
    image. `interpolation` (0 to 1)
    moves the negative from the source towards the empty prompt. `guidance` is how an edit follows the difference of target and negative:
    "plain", by `without_small` with this `quantile`, or by `by_region`.
    """

    name: ClassVar[str] = "negative_prompt"
    fixed_point_iterations: int = 0
    extrapolate: bool = False
    interpolation: float = 0.0
    guidance: str = PLAIN
    quantile: float = 0.7

    def __post_init__(self):
        self._way()
        check_choice("guidance", self.guidance, GUIDANCE)
        for name in ("interpolation", "quantile"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name):g}; give 0 to 1.")

    def encode(self, derivative: Derivative, x0: torch.Tensor, sigmas: Sequence[float], show: Show) -> Trajectory:
        return self._way().encode(derivative, x0, sigmas, show)

    def _way(self) -> DDIM:
        return DDIM(fixed_point_iterations=self.fixed_point_iterations, extrapolate=self.extrapolate)

    def step(self, derivative: Derivative, state: State, i: int, trajectory: Trajectory) -> State:
        return DDIM().step(derivative, state, i, trajectory)

    def evaluated(self, trajectory: Trajectory, i: int) -> tuple[torch.Tensor, float]:
        return self._way().evaluated(trajectory, i)

    def direction(self, cfg: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if self.guidance == UNI_EDIT:
            return lambda difference: by_region(difference, cfg)
        return None if self.guidance == PLAIN else lambda difference: without_small(difference, self.guidance, self.quantile)
