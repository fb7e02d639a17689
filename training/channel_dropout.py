"""Dropout of the channels of a condition, each by itself, so that a model learns every combination of them.

Guidance with several conditions mixes predictions in which some of them are left out. A model can only make those if it has seen
them in training: every channel is replaced by its own null with a rate of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def rate_for(unconditional: float, channels: int) -> float:
    """The rate q = u^(1/K) at which K independent channels are all dropped in a share u of the samples."""
    if not 0.0 <= unconditional <= 1.0 or channels < 1:
        raise ValueError(f"The unconditional rate is {unconditional} for {channels} channels; give 0 to 1, and one channel or more.")
    return unconditional ** (1 / channels)


@dataclass(frozen=True)
class ChannelDropout:
    """Independent keep masks m_k ~ Bernoulli(1 - q_k).

    `rates` are the q_k, one a channel. With `clean` the rate depends on the noise level: `rates` at pure noise, `clean` at clean
    images, between them along sigmoid(log SNR); so a channel that decides the layout can be left out mostly where detail is made.
    """

    rates: tuple[float, ...]
    clean: tuple[float, ...] | None = None

    def __post_init__(self):
        for q in (*self.rates, *(self.clean or ())):
            if not 0.0 <= q <= 1.0:
                raise ValueError(f"A channel is dropped at the rate {q}; give 0 (never) to 1 (always).")
        if self.clean is not None and len(self.clean) != len(self.rates):
            raise ValueError(
                f"There are {len(self.rates)} rates at pure noise but {len(self.clean)} at clean images; give one a channel."
            )

    def rate(self, log_snr: torch.Tensor) -> torch.Tensor:
        """q_k at log-SNR (B,): (B, K)."""
        noisy = torch.tensor(self.rates, dtype=torch.float64, device=log_snr.device)
        clean = noisy if self.clean is None else torch.tensor(self.clean, dtype=torch.float64, device=log_snr.device)
        return noisy + (clean - noisy) * log_snr.double().sigmoid()[:, None]

    def keep(self, log_snr: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Which channels stay, bool (B, K), of samples at log-SNR (B,), by uniform numbers (B, K)."""
        return draw.to(log_snr.device) >= self.rate(log_snr)

    @property
    def active(self) -> bool:
        """Whether anything is ever left out."""
        return any((*self.rates, *(self.clean or ())))


@dataclass(frozen=True)
class JointDropout:
    """InstructPix2Pix's dropout of (image, text) (arXiv 2211.09800, section 3.2.1), at every noise level.

    The image alone, both, and the text alone are each left out in a share `each` of the samples.
    """

    each: float = 0.05

    def __post_init__(self):
        if not 0.0 <= self.each <= 1 / 3:
            raise ValueError(f"dropout: each of three cases is to have a share of {self.each}; give 0 to 1/3, 0.05 in the paper.")

    def keep(self, log_snr: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Which channels stay, bool (B, 2), by uniform numbers (B, 2); the first decides."""
        first = draw[:, 0]
        return torch.stack([first >= 2 * self.each, (first < self.each) | (first >= 3 * self.each)], 1)


def draws(seed: int, first: int, count: int, channels: int) -> torch.Tensor:
    """Uniform numbers (count, channels) of samples first .. first + count - 1 of a training: the same in whatever batch a sample is."""
    return torch.from_numpy(np.stack([np.random.default_rng((seed, number, 2)).random(channels) for number in range(first, first + count)]))
