"""The training images, encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import comfy.model_management
import torch

from ....guidance.errors import quoted
from ....training.augmentation import Variant
from ....training.settings import Data
from .. import gradients
from ..latents import PAD, REFUSE, SCALE, Padding, encoded_image, fitting_size, scaled
from ..progress import ProgressBar, keep


@dataclass(frozen=True)
class Images:
    """Training images: the latent of each image as the VAE gives it, (1, C, [1,] h, w), with a mask (1, 1, [1,] h, w) or None."""

    latents: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor | None, ...]
    originals: int = 0  # images as given; what follows them is the same, flipped or otherwise changed, in the same order
    hints: tuple[str, ...] = ()  # what the sentence of each begins with; none of any

    def __len__(self) -> int:
        return len(self.latents)

    def with_hint(self, number: int, text: str) -> str:
        """The sentence of an image with its hint."""
        return f"{self.hints[number]} {text}" if self.hints and self.hints[number] else text


def split_images(batches: Sequence[torch.Tensor], what: str) -> list[torch.Tensor]:
    """The single images (1, H, W, ...) of IMAGE or MASK batches of any sizes. Raises ValueError where there are none."""
    found = [image for batch in batches if len(batch) for image in batch.split(1)]
    if not found:
        raise ValueError(f"There are no {what}. Connect an IMAGE batch, or a node that loads a folder of images.")
    return found


def _with_masks(images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> list[Variant]:
    """Single images with the mask of each, if there are any: one for each or one for all."""
    found = split_images(images, "images")
    painted = split_images(masks, "masks") if masks else [None]
    painted = painted * len(found) if len(painted) == 1 else painted
    if len(painted) != len(found):
        raise ValueError(f"There are {len(painted)} masks for {len(found)} images; give one for each, one for all, or none.")
    for number, (image, mask) in enumerate(zip(found, painted), 1):
        if mask is not None and mask.shape[-2:] != image.shape[1:3]:
            sizes = [f"{x.shape[2]} x {x.shape[1]}" for x in (mask, image)]
            raise ValueError(f"Mask {number} is {sizes[0]}, its image {sizes[1]}. Give masks of the images' sizes.")
    return [Variant(image[..., :3], mask) for image, mask in zip(found, painted)]


def _small_mask(latent: torch.Tensor, mask: torch.Tensor | None, number: int) -> torch.Tensor | None:
    """A MASK (1, H, W) at the size of a latent that the VAE made of its image."""
    if mask is None:
        return None
    small = torch.nn.functional.interpolate(mask[:, None].float(), latent.shape[-2:], mode="area")
    if not bool(small.any()):
        raise ValueError(f"Mask {number} is empty: its image would not be trained on. Paint the area to train white, or leave the mask out.")
    return small.cpu().reshape(1, 1, *[1] * (latent.ndim - 4), *latent.shape[-2:])


def images_of(vae, data: Data, seed: int = 0) -> Images:
    """Encodes the images once; with `flip` each image also mirrored, after all others, and then the variants of all."""
    given = _with_masks(data.images, data.masks)
    shown = given + [Variant(v.image.flip(2), None if v.mask is None else v.mask.flip(-1)) for v in given if data.flip]
    variants = [(shown[i % len(shown)], i) for i in range(data.augmentation.variants * len(shown))]
    shown += [data.augmentation.variant(v.image, v.mask, number, seed) for v, number in variants]
    return encoded_variants(vae, shown, len(shown), data.fit, len(given), tuple(v.hint for v in shown))


def encoded_variants(vae, shown: Iterable[Variant], count: int, fit: str, originals: int, hints: tuple[str, ...] = ()) -> Images:
    """So many images, encoded one by one; ComfyUI's progress bar shows how far it is, and its stop button stops it."""
    progress, latents, masks, changed = ProgressBar({"Encoding images": count}), [], [], []
    for number, given in enumerate(shown, 1):
        variant = _fitted(vae, given, fit)
        if variant is not given:
            changed.append(" to ".join(f"{v.image.shape[2]} x {v.image.shape[1]}" for v in (given, variant)))
        latents.append(gradients.run_in_inference_mode(encoded_image, vae, variant.image, "images").float().cpu())
        masks.append(_small_mask(latents[-1], variant.mask, number))
        progress.advance()
        comfy.model_management.throw_exception_if_processing_interrupted()
    if changed:
        keep(f"fit {quoted(fit)} changed {len(changed)} of {count} images, the first from {changed[0]} pixels")
    return Images(tuple(latents), all_or_none(latents, masks), originals, hints if any(hints) else ())


def _fitted(vae, variant: Variant, fit: str) -> Variant:
    """An image with sides that the VAE can take; what was padded does not count."""
    size = tuple(variant.image.shape[1:3])
    goal = fitting_size(vae, size, fit == PAD)
    if fit == REFUSE or goal == size:
        return variant
    if fit == SCALE:
        return replace(variant, image=scaled(variant.image, goal))
    padding, mask = Padding(size, goal), torch.ones_like(variant.image[..., 0]) if variant.mask is None else variant.mask
    return replace(variant, image=padding.image(variant.image), mask=padding.mask(mask))


def all_or_none(latents: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """Where only some have masks, the others' cover everything."""
    if all(m is None for m in masks):
        return tuple(masks)
    return tuple(torch.ones_like(z[:, :1]) if m is None else m for z, m in zip(latents, masks))
