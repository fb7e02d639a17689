"""LPIPS (arXiv 1801.03924), where the package `lpips` and its weights are already on the machine; nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch

SMALLEST = 32  # pixels of a side that its network needs
_ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's name of the weights


def available() -> bool:
    """Whether LPIPS can be measured."""
    installed = all(importlib.util.find_spec(name) for name in ("lpips", "torchvision"))
    return installed and (Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET).is_file()


def distance() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """LPIPS (AlexNet, version 0.1), (B,), of images (B, 3, H, W) in [0, 1], with a graph; see `available`."""
    with torch.inference_mode(False):
        network = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    network = network.eval().requires_grad_(False).to(comfy.model_management.get_torch_device())
    return lambda a, b: network(a * 2 - 1, b * 2 - 1).view(-1)


@torch.no_grad()
def lpips(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """LPIPS, (B,), of images (B, H, W, 3) in [0, 1]; 0 for equal ones. See `available`."""
    measure, device = distance(), comfy.model_management.get_torch_device()
    x, y = (t.movedim(-1, 1).to(device, torch.float32) for t in (a, b))
    return torch.cat([measure(i[None], j[None]) for i, j in zip(x, y)]).double().cpu()
