"""Training a classifier of noisy latents (arXiv 2105.05233, section 4.1): the same labels at every noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..guidance.errors import listed, quoted

LOG_SNR = (-6.0, 6.0)  # from nearly pure noise to nearly clean


def noised(x0: torch.Tensor, log_snr: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Clean latents (B, C, H, W) of unit variance at a log-SNR (B,), again of unit variance."""
    signal = log_snr.sigmoid().sqrt()[:, None, None, None]
    return signal * x0 + (1 - signal.square()).sqrt() * noise


def shares_as_logits(targets: torch.Tensor, kind: str) -> torch.Tensor:
    """The logits (labels,) that say of every image only how frequent each label is among targets (N, labels); finite where none has it."""
    share = (targets.sum(0) + 0.5) / (len(targets) + 1)
    return share.logit() if kind == "independent" else share.log()


def begin_at_shares(network: torch.nn.Module, targets: torch.Tensor, kind: str) -> torch.nn.Module:
    """Lets a NoisyClassifier's head begin there (arXiv 1708.02002, section 3.3); else its first steps go into that."""
    network.head[-1].bias.data.copy_(shares_as_logits(targets, kind))
    return network


def classification_loss(logits: torch.Tensor, targets: torch.Tensor, kind: str, known: torch.Tensor) -> torch.Tensor:
    """Cross entropy of `targets` (B, labels) in [0, 1]: of every label by itself, or of one distribution over all. `known` (labels,) are the
    logits of `shares_as_logits`.

    An "independent" label is weighed by the inverse of its variance, so that rare ones count as much as others; the logits remain those of
    p(label | image).
    """
    if kind == "independent":
        share = known.sigmoid()
        return F.binary_cross_entropy_with_logits(logits, targets, 0.25 / (share * (1 - share)))
    return F.cross_entropy(logits, targets)


def _draw(seed: int, index: int, batch: int, count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Picked samples (batch,), log-SNRs spread evenly over the batch (batch,), and noise (batch, ...) of one step."""
    rng = np.random.default_rng((seed, index))
    picks = torch.from_numpy(rng.integers(count, size=batch))
    spread = torch.from_numpy((np.arange(batch) + rng.random(batch)) / batch).float()
    noise = torch.from_numpy(rng.standard_normal((batch, *shape), dtype=np.float32))
    return picks, LOG_SNR[0] + (LOG_SNR[1] - LOG_SNR[0]) * spread, noise


def batch_loss(
    network: torch.nn.Module,
    latents: torch.Tensor,
    targets: torch.Tensor,
    index: int,
    *,
    kind: str = "independent",
    batch: int,
    seed: int = 0,
) -> torch.Tensor:
    """The loss of batch `index` of latents (N, C, H, W) of unit variance and targets (N, labels), wherever the network is; log-SNRs are spread
    evenly over each batch."""
    picks, log_snr, noise = _draw(seed, index, batch, len(latents), latents.shape[1:])
    device, known = next(network.parameters()).device, shares_as_logits(targets, kind)
    x0, wanted, known, noise, log_snr = (t.to(device) for t in (latents[picks], targets[picks], known, noise, log_snr))
    return classification_loss(network(noised(x0, log_snr, noise), log_snr).float(), wanted, kind, known)


def targets_of(given: Sequence[str], kind: str) -> tuple[tuple[str, ...], torch.Tensor]:
    """(labels, targets (N, labels)) of one text an image: its labels between commas.

    Raises ValueError where an image has no label, where kind "exclusive" has several on one, and where there is nothing to tell apart.
    """
    sets = [tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip())) for text in given]
    labels = tuple(dict.fromkeys(label for own in sets for label in own))
    for number, own in enumerate(sets, 1):
        if kind == "exclusive" and len(own) != 1:
            raise ValueError(f"Image {number} has {len(own)} labels ({listed(own)}); of kind 'exclusive' each has just one.")
        if ":" in "".join(own):
            raise ValueError(f"A label of image {number} holds a colon, which means a weight in Classifier Channel. Use another sign.")
    if not labels or (kind == "exclusive" and len(labels) < 2):
        raise ValueError(f"There is nothing to tell apart: the labels are {listed(labels)}. Label the images, one line each.")
    targets = torch.tensor([[float(label in own) for label in labels] for own in sets])
    for label, share in zip(labels, targets.mean(0).tolist()):
        if share == 1.0:
            raise ValueError(
                f"Every image has the label {quoted(label)}, so there is nothing to tell apart. Add images without it, or leave it out."
            )
    return labels, targets


def held_out(count: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the images to train on and to test on, at random; with a share of 0 all are both."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"A share of {share} of the images is held out; give 0 to less than 1. Typical: 0.1–0.2.")
    order, cut = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63)), round(count * share)
    if cut == count:
        raise ValueError(f"A share of {share} of {count} images holds all of them out, with none left to learn from. Hold out less.")
    return (order[cut:], order[:cut]) if cut else (order, order)


@torch.no_grad()
def accuracy(
    network: torch.nn.Module, latents: torch.Tensor, targets: torch.Tensor, kind: str, known: torch.Tensor, levels: int = 9
) -> list[tuple[float, float]]:
    """(log-SNR, accuracy in [0, 1]) over the noise levels; at chance 1 / labels for "exclusive", one half for "independent".

    Of "independent" labels it is the mean of the shares right where a label is and where it is not, over labels that have both; no rows
    where none has. A label is said where its logit is above `known` (labels,), those of `shares_as_logits`: a rare one is seldom likelier than
    not, but can be likelier than on average.
    """
    rows, device, tested = [], next(network.parameters()).device, _tested(targets, kind)
    if not bool(tested.any()):
        return rows
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for level in np.linspace(*LOG_SNR, levels).tolist():
        log_snr = torch.full((len(latents),), level)
        parts = zip(noised(latents, log_snr, noise).split(64), log_snr.split(64))
        logits = torch.cat([network(x.to(device), s.to(device)).cpu() for x, s in parts])
        rows.append((level, _right(logits[:, tested], targets[:, tested], kind, known[tested])))
    return rows


def _tested(targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Which labels the images can test (labels,): all of an "exclusive" choice, else those that some have and some lack."""
    has = targets > 0.5
    return torch.ones_like(has[0]) if kind == "exclusive" else has.any(0) & ~has.all(0)


def _right(logits: torch.Tensor, targets: torch.Tensor, kind: str, known: torch.Tensor) -> float:
    if kind == "exclusive":
        return float((logits.argmax(1) == targets.argmax(1)).float().mean())
    has, says = targets > 0.5, logits > known
    shares = [(says[has[:, k] == v, k] == v).float().mean() for k in range(has.shape[1]) for v in (True, False)]
    return float(torch.stack(shares).mean())


_BRANCH_ENDS = ("conv.4.weight", "out_layers.3.weight", "proj_out.weight", "out.2.weight")  # start at zero


def initialize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter a start value (ComfyUI's layers are allocated without one)."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim < 2:
            value = torch.zeros(p.shape) if name.endswith("bias") else torch.ones(p.shape)
        else:
            value = torch.randn(p.shape, generator=generator) / math.sqrt(p[0].numel())
            value = torch.zeros(p.shape) if name.endswith(_BRANCH_ENDS) else value
        p.data = value.to(p.dtype)
    return module
