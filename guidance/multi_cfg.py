"""Multi-condition guidance: any number of positive and negative conditions, each with its own null, weight and mask.

`D = D_u + sum_k w_k(sigma) (D_k - D_null_k) - sum_m w_m(sigma) (D_m - D_null_m)` on denoised predictions, which for
every parametrization is the same as mixing scores (composable diffusion, arXiv 2206.01714, equation 12, with a null
and a weight per condition).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .directions import NO_SHAPING, Shaping, projected
from .errors import check_choice, quoted
from .latent_space import LatentSpace
from .schedules import ALWAYS, CfgPlusPlus, NoiseScale, Schedule

CONFLICTS = ("sum", "project", "perpendicular")


class GradientTerm(Protocol):
    """What a channel adds that is no difference of two predictions, such as the gradient of a classifier."""

    through_denoiser: bool  # whether `denoised` must come with its graph back to x
    latent_format: LatentSpace | None  # the latents that it was made for; None = any

    def __call__(self, x: torch.Tensor, sigma: float, denoised: torch.Tensor, scale: NoiseScale) -> torch.Tensor:
        """The change of the denoised prediction at weight 1, of the shape of the noisy latent x (B, C, ...)."""


@dataclass(frozen=True)
class Channel:
    """One condition that the guidance pulls towards, or pushes away from (`negative`).

    `conditioning` and `null` are ComfyUI's values; a null of None means the guider's unconditional. A channel with a
    `gradient` has neither. `mask` is (B or 1, H, W) in [0, 1], any size; `region` names one that becomes known while sampling, "" = none.
    """

    conditioning: object
    weight: float = 1.0
    negative: bool = False
    null: object = None
    schedule: Schedule = ALWAYS
    interval: Schedule = ALWAYS
    mask: torch.Tensor | None = None
    priority: int = 0
    name: str = ""
    gradient: GradientTerm | None = None
    region: str = ""

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(f"The weight of channel {quoted(self.name)} is {self.weight}; give a finite number, usually 0 to 15.")
        if isinstance(self.schedule.shape, CfgPlusPlus) and abs(self.weight) > 1.0:
            raise ValueError(
                f"The weight of channel {quoted(self.name)} is {self.weight}, but under a schedule of the shape cfg++ it is lambda, from 0 to 1. Set it "
                "to 0.2 to 1, usually 0.6."
            )
        if self.mask is not None and not (self.mask.numel() and float(self.mask.min()) >= 0 and float(self.mask.max()) <= 1):
            raise ValueError(
                f"The mask of channel {quoted(self.name)} has the shape {tuple(self.mask.shape)} and values outside 0 to 1 or "
                "none at all; give a mask of 0 (off) to 1 (on)."
            )

    @property
    def everywhere(self) -> bool:
        return self.mask is None and not self.region

    def strength(self, sigma: float, scale: NoiseScale, weight: float | None = None) -> float:
        """The signed weight at `sigma`, schedule and interval included; `weight` replaces the channel's own."""
        weight = self.weight if weight is None else weight
        return (-weight if self.negative else weight) * (self.schedule(sigma, scale) * self.interval(sigma, scale))


@dataclass(frozen=True)
class Rules:
    """How the terms of channels are made and added. `norm_cap` is the largest RMS of their sum in latent units, 0 = none;
    `rescale` is the share phi of CFG-rescale (arXiv 2305.08891, section 3.4), 0 = none.

    Outside `interval` (arXiv 2404.07724, section 3) every positive conditioning acts with weight 1 and nothing else does.
    Before `zero_init_percent` the prediction is the noisy latent itself, so the latent is unchanged (arXiv 2503.18886).
    """

    conflict: str = "sum"
    norm_cap: float = 0.0
    rescale: float = 0.0
    shaping: Shaping = NO_SHAPING
    interval: Schedule = ALWAYS
    zero_init_percent: float = 0.0

    def __post_init__(self):
        check_choice("conflict", self.conflict, CONFLICTS)
        for name, high in (("norm_cap", math.inf), ("rescale", 1.0), ("zero_init_percent", 1.0)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 (off) to {high}.")

    @property
    def plain(self) -> bool:
        """Whether terms are simply added to the prediction."""
        return self.conflict == "sum" and self.norm_cap == self.rescale == 0.0 and self.shaping.neutral

    def vary(self, channel: Channel) -> bool:
        """Whether the weight of a channel depends on sigma."""
        return self.interval.varies or channel.schedule.varies or channel.interval.varies

    def strength(self, channel: Channel, sigma: float, scale: NoiseScale, weight: float | None = None) -> float:
        """The signed weight of a channel at `sigma`; `weight` replaces the channel's own."""
        strength = channel.strength(sigma, scale, weight)
        if self.interval(sigma, scale) > 0.0:
            return strength
        return 0.0 if channel.gradient is not None else min(1.0, max(0.0, strength))


@dataclass(frozen=True)
class GuidanceTerm:
    """What a channel, called `name` in the report, adds to one prediction at a signed weight; any shape (B, C, ...)."""

    delta: torch.Tensor
    priority: int = 0
    name: str = ""
    weight: float = 1.0


def term(direction: torch.Tensor, weight: float, mask: torch.Tensor | None = None, priority: int = 0, name: str = "") -> GuidanceTerm:
    """`weight` times a direction such as `D_k - D_null`, inside the mask (broadcastable to it) where there is one."""
    delta = direction * weight
    return GuidanceTerm(delta if mask is None else delta * mask, priority, name, weight)


def _added(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum, in double precision where there are several, so that their order does not matter."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.stack([t.double() for t in tensors]).sum(0).to(tensors[0].dtype)


def _per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def resolve(terms: Sequence[GuidanceTerm], conflict: str = "sum") -> torch.Tensor:
    """The sum of terms. With `project` a term of lower priority loses the part that works against the sum of all
    terms of higher priority; with `perpendicular` its whole component along that sum (Perp-Neg, arXiv 2304.04968)."""
    if conflict == "sum":
        return _added([t.delta for t in terms])
    total = None
    for priority in sorted({t.priority for t in terms}, reverse=True):
        group = [t.delta for t in terms if t.priority == priority]
        if total is not None:
            group = [projected(d, total, only_opposing=conflict == "project") for d in group]
        total = _added(group if total is None else [total, *group])
    return total


def capped(delta: torch.Tensor, norm_cap: float) -> torch.Tensor:
    """`delta` shrunk, per sample, to an RMS of at most `norm_cap`."""
    rms = delta.flatten(1).square().mean(1).sqrt()
    return delta * _per_sample((norm_cap / rms.clamp(min=1e-12)).clamp(max=1.0), delta)


def rescaled(prediction: torch.Tensor, positives: Sequence[torch.Tensor], phi: float) -> torch.Tensor:
    """CFG-rescale: the deviation of each sample moves, by the share phi, to the mean deviation of the positives."""
    own, *others = (t.flatten(1).std(1) for t in (prediction, *positives))
    gain = torch.stack(others).mean(0) / own.clamp(min=1e-12)
    return prediction * _per_sample(phi * gain + (1 - phi), prediction)


def combine(
    base: torch.Tensor, terms: Sequence[GuidanceTerm], rules: Rules = Rules(), positives: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """The guided prediction: `base` plus the terms under the rules; all denoised, (B, C, ...)."""
    if not terms:
        return base
    delta = resolve(terms, rules.conflict)
    if rules.norm_cap > 0:
        delta = capped(delta, rules.norm_cap)
    guided = base + delta
    return rescaled(guided, positives, rules.rescale) if rules.rescale > 0 and positives else guided
