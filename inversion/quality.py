"""How near an image is to another: PSNR, SSIM (Wang et al. 2004, doi 10.1109/TIP.2003.819861), the largest error, and edges."""

from __future__ import annotations

import torch
from torch.nn import functional

WINDOW, DEVIATION, K1, K2 = 11, 1.5, 0.01, 0.03  # those of the SSIM paper


def check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    """Refuses images that cannot be compared."""
    if a.shape != b.shape:
        raise ValueError(
            f"Images of {tuple(a.shape)} and {tuple(b.shape)} (batch, height, width, channels) cannot be compared; give equal sizes."
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio in dB, (B,), of images (B, H, W, C) in [0, 1]; infinite for equal ones."""
    check_pair(a, b)
    return -10 * (a.double() - b.double()).square().mean((1, 2, 3)).log10()


def largest_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The largest difference of any value, (B,), of images (B, H, W, C)."""
    check_pair(a, b)
    return (a.double() - b.double()).abs().amax((1, 2, 3))


def _window() -> torch.Tensor:
    """The Gaussian window in one dimension, of sum 1."""
    place = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = (-place.square() / (2 * DEVIATION**2)).exp()
    return weights / weights.sum()


def _local_mean(x: torch.Tensor) -> torch.Tensor:
    """The weighted mean over every window that lies inside of (N, 1, H, W)."""
    window = _window().to(x.device)
    return functional.conv2d(functional.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity, (B,), of images (B, H, W, C) in [0, 1]: the mean over all windows and channels; 1 for equal ones.

    Windows of 11 x 11 with Gaussian weights of deviation 1.5, only such that lie inside of the image; in float64.
    """
    check_pair(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {a.shape[1]} x {a.shape[2]}.")
    x, y = (t.double().movedim(-1, 1).flatten(0, 1).unsqueeze(1) for t in (a, b))
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    spread = _local_mean(x * x) - mean_x**2 + _local_mean(y * y) - mean_y**2
    common = _local_mean(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    similar = (2 * mean_x * mean_y + c1) * (2 * common + c2) / ((mean_x**2 + mean_y**2 + c1) * (spread + c2))
    return similar.mean((1, 2, 3)).view(a.shape[0], -1).mean(1)


def edges_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the edges of images (B, C, H, W) at four scales, each half of the one before; (B,), with a graph.

    Edges are the differences of neighboring pixels. What is compared is where things end and how fine they are, not their color.
    """
    error, found = a - b, []
    for _ in range(4):
        found += [error.diff(dim=d).abs().flatten(1).mean(1) for d in (-1, -2) if error.shape[d] > 1]
        if min(error.shape[-2:]) < 4:
            break
        error = functional.avg_pool2d(error, 2)
    return torch.stack(found).mean(0)
