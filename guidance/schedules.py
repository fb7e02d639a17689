"""Weights over noise: one schedule type, continuous in sigma, for everything in the pack that changes while sampling.

A schedule is never indexed by step, so it is right for second-order, ancestral and cut samplers. It can be read along
percent of the sampling, sigma or log-SNR.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

AXES = ("percent", "sigma", "log_snr")


@dataclass(frozen=True)
class NoiseScale:
    """The noise levels of a model as one continuous axis.

    `sigmas` are its sigmas at evenly spaced percents from 0 (noisiest) to 1, strictly falling and above 0.
    `flow` models mix `(1 - sigma) x0 + sigma n`, all others `x0 + sigma n`.
    """

    sigmas: tuple[float, ...]
    flow: bool = False

    def sigma(self, percent: float) -> float:
        """Sigma at a percent in [0, 1]."""
        place = min(max(percent, 0.0), 1.0) * (len(self.sigmas) - 1)
        low = min(int(place), len(self.sigmas) - 2)
        a, b = math.log(self.sigmas[low]), math.log(self.sigmas[low + 1])
        return math.exp(a + (place - low) * (b - a))

    def percent(self, sigma: float) -> float:
        """Percent in [0, 1] at a sigma; the inverse of `sigma`, clamped at the ends."""
        if sigma >= self.sigmas[0]:
            return 0.0
        if sigma <= self.sigmas[-1]:
            return 1.0
        high = bisect_left(self.sigmas, -sigma, key=lambda s: -s)
        a, b = math.log(self.sigmas[high - 1]), math.log(self.sigmas[high])
        return (high - 1 + (math.log(sigma) - a) / (b - a)) / (len(self.sigmas) - 1)

    def range_percent(self, sigma: float) -> float:
        """`percent` as ranges of the sampling read it, to four decimals: a step on the edge of a range is there, however its sigma was rounded."""
        return round(self.percent(sigma), 4)

    def range_sigmas(self, start: float, end: float) -> tuple[float, float]:
        """The largest and the smallest sigma whose `range_percent` is from `start` to `end`."""
        return self.sigma(start - 5e-5), self.sigma(end + 5e-5)

    def log_snr(self, sigma: float) -> float:
        """log of signal power over noise power: -2 log sigma, or 2 log((1 - sigma) / sigma) for flow models."""
        sigma = min(max(sigma, 1e-6), 1 - 1e-6 if self.flow else math.inf)
        return 2 * (math.log1p(-sigma) if self.flow else 0.0) - 2 * math.log(sigma)

    def sigma_of_log_snr(self, log_snr: float) -> float:
        """The inverse of `log_snr`."""
        return 1 / (1 + math.exp(log_snr / 2)) if self.flow else math.exp(-log_snr / 2)

    def reading(self, sigma: float, axis: str) -> float:
        """A sigma read along one of the axes."""
        if axis == "percent":
            return self.percent(sigma)
        return self.log_snr(sigma) if axis == "log_snr" else sigma


@dataclass(frozen=True)
class Span:
    """The part of a noise scale between two percents."""

    scale: NoiseScale
    start: float = 0.0
    end: float = 1.0

    def position(self, sigma: float, axis: str = "percent") -> float:
        """Where sigma lies between start (0) and end (1) of the span, measured along `axis`."""
        first, last = (self.scale.reading(self.scale.sigma(p), axis) for p in (self.start, self.end))
        if first == last:
            return 0.0
        return min(max((self.scale.reading(sigma, axis) - first) / (last - first), 0.0), 1.0)


class Shape(Protocol):
    def __call__(self, sigma: float, span: Span) -> float:
        """Factor of a weight at `sigma`."""


@dataclass(frozen=True)
class Constant:
    """The same factor everywhere."""

    value: float = 1.0

    def __call__(self, sigma: float, span: Span) -> float:
        return self.value


@dataclass(frozen=True)
class SnrPower:
    """(SNR(sigma) / SNR at `reference` percent) ** alpha, kept within [1 / limit, limit].

    Positive alpha strengthens the end of the sampling (detail), negative alpha the start (layout).
    """

    alpha: float
    reference: float = 0.5
    limit: float = 10.0

    def __call__(self, sigma: float, span: Span) -> float:
        scale = span.scale
        gain = scale.log_snr(sigma) - scale.log_snr(scale.sigma(self.reference))
        return _clamped_exp(self.alpha * gain, self.limit)


@dataclass(frozen=True)
class SigmaPower:
    """(sigma / sigma at `reference` percent) ** -beta, kept within [1 / limit, limit]."""

    beta: float
    reference: float = 0.5
    limit: float = 10.0

    def __call__(self, sigma: float, span: Span) -> float:
        gain = math.log(max(sigma, 1e-6) / span.scale.sigma(self.reference))
        return _clamped_exp(-self.beta * gain, self.limit)


def _clamped_exp(exponent: float, limit: float) -> float:
    top = math.log(limit)
    return math.exp(min(max(exponent, -top), top))


@dataclass(frozen=True)
class Ramp:
    """From `first` at the start of the span to `last` at its end, straight or (`cosine`) eased at both ends."""

    first: float
    last: float
    cosine: bool = False
    axis: str = "percent"

    def __call__(self, sigma: float, span: Span) -> float:
        place = span.position(sigma, self.axis)
        if self.cosine:
            place = 0.5 - 0.5 * math.cos(math.pi * place)
        return self.first + (self.last - self.first) * place


@dataclass(frozen=True)
class Curve:
    """Any function of the position in the span, for example ComfyUI's curve editor; times `height`."""

    function: Callable[[float], float]
    height: float = 1.0
    axis: str = "percent"

    def __call__(self, sigma: float, span: Span) -> float:
        return self.height * float(self.function(span.position(sigma, self.axis)))


@dataclass(frozen=True)
class CfgPlusPlus:
    """The weight with which plain CFG makes the deterministic step of CFG++ (arXiv 2406.08070): a channel's weight becomes
    its lambda, usually 0.2 to 1. `sigmas` are the falling sigmas of the run; between them the step ends at the next lower.

    `s / (s - s')` from s to s', and `s (1 - s') / (s - s')` for flow models.
    """

    sigmas: tuple[float, ...]

    def __call__(self, sigma: float, span: Span) -> float:
        after = max((s for s in self.sigmas if s < sigma * (1 - 1e-4)), default=0.0)
        return sigma * (1 - after if span.scale.flow else 1.0) / (sigma - after)


@dataclass(frozen=True)
class Schedule:
    """A shape inside an interval of percents, 0 outside (guidance interval, arXiv 2404.07724)."""

    shape: Shape = Constant()
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"A schedule runs from start_percent to end_percent with 0 <= start <= end <= 1, "
                f"got {self.start} to {self.end}. Swap or lower them."
            )

    @property
    def varies(self) -> bool:
        """Whether the factor depends on sigma."""
        return self.start > 0.0 or self.end < 1.0 or not isinstance(self.shape, Constant)

    def __call__(self, sigma: float, scale: NoiseScale) -> float:
        """Factor of a weight at `sigma`."""
        whole = self.start == 0.0 and self.end == 1.0
        inside = whole or self.start <= scale.range_percent(sigma) <= self.end
        return self.shape(sigma, Span(scale, self.start, self.end)) if inside else 0.0


ALWAYS = Schedule()
