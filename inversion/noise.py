"""Noise for methods that draw some: the same for every image of a batch, so that a batch is its images one by one."""

from __future__ import annotations

import torch


def draw_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise (1, ...) for a batch x (B, ...), drawn on the CPU in float32."""
    return torch.randn(1, *x.shape[1:], generator=generator).to(x)


def noised(x0: torch.Tensor, noise: torch.Tensor, sigma: float, flow: bool) -> torch.Tensor:
    """A clean latent at sigma: x0 + sigma n, or (1 - sigma) x0 + sigma n for flow models."""
    return (1 - sigma if flow else 1.0) * x0 + sigma * noise
