"""Guidance by a loss on the predicted clean image: universal guidance (arXiv 2302.07121, equation 6), and its cheap form
without a pass back through the denoiser (manifold preserving guidance, arXiv 2311.16424, algorithm 1).

With log p = -loss the exact change of the prediction is `sigma^2 grad_x log p(D(x))` (see `classifier.towards`), which equals
`Cov[x0 | x] grad_D log p`. The cheap form takes 1 / (1 + SNR) for the covariance, which is exact for data of unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .classifier import as_images, gradient_of, towards
from .latent_space import LatentSpace
from .schedules import NoiseScale

LAYOUT_CELLS = 8
LUMA = (0.299, 0.587, 0.114)


def color_distance(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Squared distance of mean and deviation of each color, (B, 3, H, W) and (1 or B, 3, ...) in [0, 1] -> (B,)."""

    def look(p):
        flat = p.flatten(2)
        varied = flat.var(2, correction=min(1, flat.shape[2] - 1))  # one pixel does not vary
        return torch.cat([flat.mean(2), varied.clamp(min=1e-6).sqrt()], 1)

    return (look(images) - look(reference)).square().sum(1)


def brightness_distance(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Squared distance of the light and dark of the image, blurred to 8 x 8 cells; color is free."""
    luma = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return layout_distance((images * luma).sum(1, True), (reference * luma).sum(1, True))


def layout_distance(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the low frequencies: the images as 8 x 8 cells, whatever their sizes."""
    a, b = (F.adaptive_avg_pool2d(p, LAYOUT_CELLS) for p in (images, reference))
    return (a - b).square().sum(1).mean((1, 2))


DISTANCES: dict[str, Callable] = {"color": color_distance, "brightness": brightness_distance, "layout": layout_distance}
KINDS = tuple(DISTANCES)


def embedding_distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cosine of two embeddings, (B, width) and (1 or B, width) -> (B,)."""
    return 1 - F.cosine_similarity(found, wanted, dim=1)


@dataclass(frozen=True)
class ImageGradient:
    """What a loss on the predicted clean latent, (B, C, H, W) -> (B,), adds to the prediction at weight 1.

    The loss is taken once for every latent cell, so that a weight means the same at every size. `models` are ComfyUI's
    patchers that the loss needs in memory; `batch` limits the images, of a video its frames, at a time (0 = all).
    """

    loss: Callable[[torch.Tensor], torch.Tensor]
    through_denoiser: bool = False
    latent_format: LatentSpace | None = None
    models: tuple = ()
    batch: int = 0

    def __call__(self, x: torch.Tensor, sigma: float, denoised: torch.Tensor, scale: NoiseScale) -> torch.Tensor:
        """(B, C, [frames,] H, W) noisy latent and prediction -> change of the prediction, same shape."""
        gradient = self._gradient(denoised)
        if self.through_denoiser:
            return towards(torch.autograd.grad(denoised, x, gradient, retain_graph=True)[0], sigma, scale.flow)
        return gradient / (1 + math.exp(scale.log_snr(sigma)))

    def _gradient(self, denoised: torch.Tensor) -> torch.Tensor:
        """The gradient of log p with respect to the prediction; the loss of a video is the mean of its frames'."""
        images, cells = as_images(denoised), denoised.shape[-1] * denoised.shape[-2]
        share = cells * len(denoised) / len(images)
        found = gradient_of(lambda part: -share * self.loss(part), images, self.batch)
        return found if denoised.ndim == 4 else found.unflatten(0, (len(denoised), -1)).movedim(1, 2)
