"""Normalized Attention Guidance: a negative prompt inside the attention, without a second pass of the network (arXiv 2505.21179)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Strength:
    """`scale` is the paper's phi, 1 for off; `tau` bounds how much larger than the positive the result may be, `alpha` is its share."""

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25

    @property
    def neutral(self) -> bool:
        return self.scale == 1.0 or self.alpha == 0.0

    def times(self, factor: float) -> Strength:
        """The same with the part of the scale that guides, scale - 1, times a factor."""
        return Strength(1.0 + (self.scale - 1.0) * factor, self.tau, self.alpha)

    def guided(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """What attention gives (..., heads * width) for the positive text, guided away from what it gives for the negative.

        g = scale z+ - (scale - 1) z-, shortened to |g|_1 <= tau |z+|_1 for each token, and alpha g + (1 - alpha) z+ (section 3.2).
        """
        guided = torch.lerp(negative, positive, self.scale)
        own, new = (torch.linalg.vector_norm(t, 1, -1, keepdim=True, dtype=torch.float32) for t in (positive, guided))
        shortened = guided * (own / new.clamp_min_(1e-6)).mul_(self.tau).clamp_max_(1.0).to(guided)
        return torch.lerp(positive, shortened, self.alpha)
