"""Augmentation of a few images: crops, color jitter, and other scales as in Custom Diffusion (arXiv 2212.04488).

The prompt of an image that became far smaller or larger says so, and the loss leaves out what is not the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

SMALL, LARGE = ("a far away", "very small"), ("zoomed in", "close up")  # what a sentence begins with
EDGE = 8  # pixels at the edge of a shrunk image that are masked: latents there depend on what is beside


@dataclass(frozen=True)
class Variant:
    """An image (1, H, W, C), where it covered (1, H, W) or None for everywhere, and what its sentence begins with."""

    image: torch.Tensor
    mask: torch.Tensor | None
    hint: str = ""


@dataclass(frozen=True)
class Augmentation:
    """`variants` of every image beside itself.

    `crop`: up to which share of each side is cut off, what is left being brought to size again. `jitter`: how far brightness, contrast and
    saturation change. `scale`: which share of the variants is scaled, two thirds of them down to 1/3 .. 1 and the others up to 1.2 .. 1.4, as
    in the paper's code.
    """

    variants: int = 0
    crop: float = 0.0
    jitter: float = 0.0
    scale: float = 0.0

    def __post_init__(self):
        for name, value, high in (("crop", self.crop, 0.9), ("jitter", self.jitter, 1.0), ("scale", self.scale, 1.0)):
            if not 0.0 <= value <= high:
                raise ValueError(f"The augmentation's {name} is {value}; give 0 (none) to {high:g}.")
        changed = self.crop or self.jitter or self.scale
        if self.variants and not changed:
            raise ValueError(
                f"There are to be {self.variants} variants of each image, but crop, jitter and scale are all 0. Raise one of them."
            )
        if changed and not self.variants:
            raise ValueError("crop, jitter and scale change variants of the images, but variants is 0. Raise it (typical: 4–30), or set them to 0.")

    def variant(self, image: torch.Tensor, mask: torch.Tensor | None, number: int, seed: int) -> Variant:
        """Variant `number` of an image (1, H, W, C) in [0, 1], with its mask (1, H, W)."""
        draw = torch.Generator().manual_seed((seed * 1_000_003 + number + 7) % 2**63)
        changed = Variant(image, mask)
        if self.crop:
            changed = cropped(changed, self.crop, draw)
        if self.jitter:
            changed = Variant(jittered(changed.image, self.jitter, draw), changed.mask)
        return scaled(changed, draw) if _between(0, 1, draw) < self.scale else changed


def _between(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(1, H, W, C) at another size."""
    return F.interpolate(pixels.movedim(-1, 1).float(), (height, width), mode="bilinear", antialias=True).movedim(1, -1).clamp(0, 1)


def _both(variant: Variant, change) -> Variant:
    mask = None if variant.mask is None else change(variant.mask[..., None])[..., 0]
    return Variant(change(variant.image), mask, variant.hint)


def _window(variant: Variant, height: int, width: int, draw: torch.Generator) -> Variant:
    """A part of an image, anywhere in it."""
    top = round(_between(0, variant.image.shape[1] - height, draw))
    left = round(_between(0, variant.image.shape[2] - width, draw))
    return _both(variant, lambda p: p[:, top : top + height, left : left + width])


def cropped(variant: Variant, share: float, draw: torch.Generator) -> Variant:
    """A part of an image, at the size of the whole; one that has none of what covered is not taken."""
    _, height, width, _ = variant.image.shape
    rest = 1 - _between(0, share, draw)
    part = _window(variant, max(1, round(height * rest)), max(1, round(width * rest)), draw)
    if part.mask is not None and not bool(part.mask.any()):
        return variant
    return _both(part, lambda p: _resized(p, height, width))


def jittered(image: torch.Tensor, amount: float, draw: torch.Generator) -> torch.Tensor:
    """Other brightness, contrast and saturation, each by a factor of up to 1 -+ `amount`."""
    brightness, contrast, saturation = (_between(1 - amount, 1 + amount, draw) for _ in range(3))
    changed = image * brightness
    changed = changed.mean() + (changed - changed.mean()) * contrast
    gray = changed.mean(-1, keepdim=True)
    return (gray + (changed - gray) * saturation).clamp(0, 1)


def scaled(variant: Variant, draw: torch.Generator) -> Variant:
    """An image smaller, somewhere on gray that does not count, or larger than its frame."""
    _, height, width, _ = variant.image.shape
    factor = _between(1 / 3, 1, draw) if _between(0, 1, draw) < 2 / 3 else _between(1.2, 1.4, draw)
    tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
    changed = _both(variant, lambda p: _resized(p, tall, wide))
    hints = SMALL if factor < 0.6 else LARGE if factor > 1 else ("",)
    hint = hints[int(_between(0, len(hints), draw))]
    if factor > 1:
        part = _window(changed, height, width, draw)
        return Variant(part.image, part.mask, hint) if part.mask is None or bool(part.mask.any()) else variant
    top, left = round(_between(0, height - tall, draw)), round(_between(0, width - wide, draw))
    paper, covered = torch.full_like(variant.image, 0.5), torch.zeros_like(variant.image[..., 0])
    paper[:, top : top + tall, left : left + wide] = changed.image
    edge = min(EDGE, tall // 4, wide // 4)
    inner = torch.ones(1, tall, wide) if changed.mask is None else changed.mask
    covered[:, top + edge : top + tall - edge, left + edge : left + wide - edge] = inner[:, edge : tall - edge, edge : wide - edge]
    return Variant(paper, covered, hint) if bool(covered.any()) else variant
