"""Training a classifier of noisy latents (arXiv 2105.05233, section 4.1): the same labels at every noise level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from .loop import Loop, Step

LOG_SNR = (-6.0, 6.0)  # from nearly pure noise to nearly clean


def noised(x0: torch.Tensor, log_snr: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Clean latents (B, C, H, W) of unit variance at a log-SNR (B,), again of unit variance."""
    signal = log_snr.sigmoid().sqrt()[:, None, None, None]
    return signal * x0 + (1 - signal.square()).sqrt() * noise


def classification_loss(logits: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross entropy of `targets` (B, labels) in [0, 1]: of every label by itself, or of one distribution over all."""
    if kind == "independent":
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets)


def train_noisy_classifier(
    network: torch.nn.Module,
    latents: torch.Tensor,
    targets: torch.Tensor,
    loop: Loop,
    *,
    kind: str = "independent",
    batch: int = 64,
    seed: int = 0,
) -> Iterator[Step]:
    """Trains `network` on latents (N, C, H, W) and targets (N, labels); log-SNRs are spread evenly over each batch."""

    def loss_of(index):
        rng = np.random.default_rng((seed, index))
        picks = torch.from_numpy(rng.integers(len(latents), size=batch))
        spread = torch.from_numpy((np.arange(batch) + rng.random(batch)) / batch).float()
        log_snr = LOG_SNR[0] + (LOG_SNR[1] - LOG_SNR[0]) * spread
        noise = torch.from_numpy(rng.standard_normal((batch, *latents.shape[1:]), dtype=np.float32))
        return classification_loss(network(noised(latents[picks], log_snr, noise), log_snr), targets[picks], kind)

    return loop.run(loss_of)
