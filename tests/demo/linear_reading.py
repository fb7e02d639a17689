"""Tells by logistic regression on features whether an image shows something that its reader was not trained for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from demo import model as demo_model

DECAYS = (1e-3, 1e-2, 1e-1)  # of squared weights; the one that tells best a fifth of the examples which the others are fitted without


@dataclass(frozen=True)
class LinearReading:
    """Features (N, F) to whether each shows it, bool (N,)."""

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.scale @ self.weight + self.bias

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return self.logits(features) > 0


def fitted(features: torch.Tensor, shown: torch.Tensor) -> LinearReading:
    """The reading that tells best whether features (N, F) are of images that show it, bool (N,), in any order."""
    apart = torch.randperm(len(features), generator=torch.Generator().manual_seed(0)) % 5 == 0

    def right(decay: float) -> float:
        return float((_fitted(features[~apart], shown[~apart], decay)(features[apart]) == shown[apart]).float().mean())

    return _fitted(features, shown, max(reversed(DECAYS), key=right))


@torch.inference_mode(False)
def _fitted(features: torch.Tensor, shown: torch.Tensor, decay: float) -> LinearReading:
    features = features.clone().float()
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    weight, bias = (torch.zeros(n, requires_grad=True) for n in (features.shape[1], 1))
    target, unit = shown.clone().float(), (features - mean) / scale
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(unit @ weight + bias, target) + decay * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return LinearReading(mean, scale, weight.detach(), bias.detach())


@torch.no_grad()
def pooled(reader: torch.nn.Module, images: list[np.ndarray]) -> torch.Tensor:
    """What the reader of illustrated scenes bases ground and style on, (N, F), for images uint8 (192, 192, 3)."""
    found: list[torch.Tensor] = []
    hook = reader.ground.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))
    try:
        for part in demo_model.as_images(list(images)).split(16):
            reader(part)
    finally:
        hook.remove()
    return torch.cat(found)
