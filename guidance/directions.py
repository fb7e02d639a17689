"""Shaping a guidance direction D_k - D_null before it is weighted: adaptive projected guidance and CFG-zero-star.

Both are the identity by default and work per sample on denoised predictions, of eps, v and flow models alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shaping:
    """Adaptive projected guidance (arXiv 2410.02416, section 4 and algorithm 1): `apg_eta` keeps that share of the part
    parallel to the prediction (1 = all, the paper takes 0), `apg_momentum` beta adds the running direction (0 = off, the
    paper takes -0.75 to -0.25), `apg_norm` r is the largest L2 norm (0 = off). `zero_star` fits the null to the prediction
    first (CFG-zero-star, arXiv 2503.18886, equation 7)."""

    apg_eta: float = 1.0
    apg_momentum: float = 0.0
    apg_norm: float = 0.0
    zero_star: bool = False

    def __post_init__(self):
        for name, low, high in (("apg_eta", 0.0, 10.0), ("apg_momentum", -1.0, 1.0), ("apg_norm", 0.0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from {low} to {high}.")

    @property
    def neutral(self) -> bool:
        return self == NO_SHAPING

    def __call__(
        self, prediction: torch.Tensor, null: torch.Tensor, x: torch.Tensor, running: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(direction, running direction for the next step) from two denoised predictions and the noisy latent, (B, C, ...)."""
        null = fitted_null(prediction, null, x) if self.zero_star else null
        delta = prediction - null
        if self.apg_momentum and running is not None:
            delta = delta + self.apg_momentum * running
        kept = delta
        if self.apg_norm > 0:
            delta = delta * (self.apg_norm / _dot(delta, delta).sqrt().clamp(min=1e-12)).clamp(max=1.0).to(delta.dtype)
        return (projected(delta, prediction, self.apg_eta) if self.apg_eta != 1.0 else delta), kept

    def direction(
        self, prediction: torch.Tensor, null: torch.Tensor, x: torch.Tensor, strength: float, running: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(direction, running direction for the next step) of a channel's term, which is `strength` times the direction.

        As in the papers, of a weight w the prediction itself has 1 and the shaped direction w - 1. So a weight from 0 to 1 acts as in
        plain CFG, and one below 0 is shaped as a whole.
        """
        delta, plain = prediction - null, min(max(strength, 0.0), 1.0)
        if self.neutral or strength == plain:
            return delta, running
        shaped, kept = self(prediction, null, x, running)
        return delta + (1 - plain / strength) * (shaped - delta), kept


NO_SHAPING = Shaping()


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each sample, in double precision, shaped to broadcast."""
    return (a.double() * b.double()).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def projected(delta: torch.Tensor, along: torch.Tensor, eta: float = 0.0, only_opposing: bool = False) -> torch.Tensor:
    """`delta` with its part parallel to `along` times `eta`, per sample; `only_opposing`: with only a part that points against it."""
    share = _dot(delta, along) / _dot(along, along).clamp(min=1e-30)
    share = share.clamp(max=0.0) if only_opposing else share
    return (delta.double() - (1 - eta) * (share * along.double())).to(delta.dtype)


def fitted_null(prediction: torch.Tensor, null: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The null whose velocity, x - null up to a factor, is scaled to lie nearest to that of the prediction."""
    velocity, null_velocity = x - prediction, x - null
    share = _dot(velocity, null_velocity) / _dot(null_velocity, null_velocity).clamp(min=1e-30)
    return (x.double() - share * null_velocity.double()).to(null.dtype)
