"""The training images, encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch

from ....training.augmentation import Augmentation, Variant
from .. import gradients
from ..latents import encoded_image
from ..progress import ProgressBar


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


def images_of(
    vae, images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] = (), flip: bool = False,
    augmentation: Augmentation = Augmentation(), seed: int = 0,
) -> Images:  # fmt: skip
    """Encodes IMAGE batches once; with `flip` each image also mirrored, after all others, and then the variants of all."""
    given = _with_masks(images, masks)
    shown = given + [Variant(v.image.flip(2), None if v.mask is None else v.mask.flip(-1)) for v in given if flip]
    variants = [(shown[i % len(shown)], i) for i in range(augmentation.variants * len(shown))]
    shown += [augmentation.variant(v.image, v.mask, number, seed) for v, number in variants]
    latents = list(latents_of(vae, shown, len(shown)))
    small = [_small_mask(z, v.mask, i) for i, (z, v) in enumerate(zip(latents, shown), 1)]
    hints = tuple(v.hint for v in shown)
    return Images(tuple(latents), all_or_none(latents, small), len(given), hints if any(hints) else ())


def latents_of(vae, shown: Iterable[Variant], count: int) -> Iterator[torch.Tensor]:
    """The latents of so many, on the CPU; ComfyUI's progress bar shows how far it is, and its stop button stops it."""
    progress = ProgressBar({"Encoding images": count})
    for variant in shown:
        yield gradients.run_in_inference_mode(encoded_image, vae, variant.image, "images").float().cpu()
        progress.advance()
        comfy.model_management.throw_exception_if_processing_interrupted()


def all_or_none(latents: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """Where only some have masks, the others' cover everything."""
    if all(m is None for m in masks):
        return tuple(masks)
    return tuple(torch.ones_like(z[:, :1]) if m is None else m for z, m in zip(latents, masks))
