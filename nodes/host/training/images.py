"""The training images, encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import comfy.utils
import torch

from ....training.augmentation import Augmentation, Variant, with_hint
from .. import gradients
from ..latents import encoded_part


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
        return with_hint(self.hints[number], text) if self.hints else text


def split_images(batches: Sequence[torch.Tensor], what: str) -> list[torch.Tensor]:
    """The single images (1, H, W, ...) of IMAGE or MASK batches of any sizes. Raises ValueError on none and on numbers that are none."""
    found = [image for batch in batches if len(batch) for image in batch.split(1)]
    if not found:
        raise ValueError(f"There are no {what}. Connect an IMAGE batch, or a node that loads a folder of images.")
    for i, image in enumerate(found, 1):
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"Number {i} of the {what} holds NaN or infinite values. Take it out, or repair the node that made it.")
    return found


def _mask_for(vae, latent: torch.Tensor, mask: torch.Tensor, image: torch.Tensor, number: int) -> torch.Tensor:
    """A MASK (1, H, W) at the size of a latent that the VAE made of its image."""
    if mask.shape[-2:] != image.shape[1:3]:
        raise ValueError(
            f"Mask {number} is {mask.shape[-1]} x {mask.shape[-2]}, its image {image.shape[2]} x {image.shape[1]}. Give masks of the "
            "images' sizes."
        )
    small = torch.nn.functional.interpolate(encoded_part(vae, mask)[:, None].float(), latent.shape[-2:], mode="area")
    if not bool(small.any()):
        raise ValueError(f"Mask {number} is empty: its image would not be trained on. Paint the area to train white, or leave the mask out.")
    return small.cpu().reshape(1, 1, *[1] * (latent.ndim - 4), *latent.shape[-2:])


def images_of(
    vae,
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor] = (),
    flip: bool = False,
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
) -> Images:
    """Encodes IMAGE batches once; with `flip` each image also left and right exchanged, after all others, and then the variants of all."""
    found = [image[..., :3] for image in split_images(images, "images")]
    painted = split_images(masks, "masks") if masks else [None] * len(found)
    if len(painted) == 1:
        painted = painted * len(found)
    if len(painted) != len(found):
        raise ValueError(f"There are {len(painted)} masks for {len(found)} images; give one for each, one for all, or none.")
    originals = len(found)
    if flip:
        found += [p.flip(2) for p in found]
        painted += [None if m is None else m.flip(-1) for m in painted]
    shown = _varied(found, painted, augmentation, seed)
    latents = list(latents_of(vae, shown, len(shown)))
    cut = [None if v.mask is None else _mask_for(vae, z, v.mask, v.image, i) for i, (z, v) in enumerate(zip(latents, shown), 1)]
    hints = tuple(v.hint for v in shown)
    return Images(tuple(latents), all_or_none(latents, cut), originals, hints if any(hints) else ())


def latents_of(vae, shown: Iterable[Variant], count: int) -> Iterator[torch.Tensor]:
    """The latents of so many, on the CPU; ComfyUI's progress bar shows how far it is, and its stop button stops it."""
    bar = comfy.utils.ProgressBar(count)
    for variant in shown:
        yield gradients.run_in_inference_mode(vae.encode, variant.image[..., :3]).float().cpu()
        bar.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _varied(found: Sequence[torch.Tensor], painted: Sequence[torch.Tensor | None], augmentation: Augmentation, seed: int) -> list[Variant]:
    """Images with their masks, and the variants of them."""
    shown = [Variant(p, m) for p, m in zip(found, painted)]
    for number in range(augmentation.variants * len(found)):
        image, mask = found[number % len(found)], painted[number % len(found)]
        if mask is not None and mask.shape[-2:] != image.shape[1:3]:
            mask = None  # which is told when the image itself is encoded
        shown.append(augmentation.of(image, mask, number, seed))
    return shown


def all_or_none(latents: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """Where only some have masks, the others' cover everything."""
    if all(m is None for m in masks):
        return tuple(masks)
    return tuple(torch.ones_like(z[:, :1]) if m is None else m for z, m in zip(latents, masks))
