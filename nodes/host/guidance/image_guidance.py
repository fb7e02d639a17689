"""Losses on the predicted clean image: through ComfyUI's VAE decoder, and through its CLIP vision tower."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch

from ....guidance.image_guidance import DISTANCES, embedding_distance
from .. import gradients

Loss = Callable[[torch.Tensor], torch.Tensor]
LARGEST = 512  # pixels of a reference's longer side


def the_only(reference: torch.Tensor) -> torch.Tensor:
    """A reference IMAGE. Raises ValueError where it holds several: only one would count."""
    if len(reference) != 1:
        raise ValueError(f"'image' holds {len(reference)} images, but one guides all. Choose one, as Image From Batch does, or add a channel for each.")
    return reference[..., :3]


def matches(decode: Loss, image: torch.Tensor, kind: str) -> Loss:
    """Distance in color, brightness or layout from an IMAGE (1, H, W, 3)."""
    with torch.inference_mode(False):
        reference = the_only(image).movedim(-1, 1).float().clone()
    return lambda latents: DISTANCES[kind](decode(latents), reference.to(latents.device))


def embedding(clip_vision, images: torch.Tensor) -> torch.Tensor:
    """The projected embedding of images (B, 3, H, W) in [0, 1] with a graph, (B, width)."""
    size = clip_vision.image_size
    images = torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (clip_vision.image_mean, clip_vision.image_std))
    gradients.to_normal_tensors(clip_vision.model, images.device)
    return clip_vision.model(pixel_values=(images - mean) / deviation, intermediate_output=-2)[2].float()


def resembles(decode: Loss, clip_vision, wanted: torch.Tensor) -> Loss:
    """1 - cosine of the CLIP embedding of the predicted image and a wanted embedding (1, width)."""
    return lambda latents: embedding_distance(embedding(clip_vision, decode(latents)), wanted.to(latents.device))


def wanted_embedding(clip_vision, image: torch.Tensor | None, text) -> torch.Tensor:
    """The embedding of an IMAGE, or of a CONDITIONING whose text tower shares the space."""
    if image is not None:
        comfy.model_management.load_model_gpu(clip_vision.patcher)
        found = embedding(clip_vision, the_only(image).movedim(-1, 1).to(clip_vision.load_device))
    else:
        if len(text) != 1 or len(text[0][0]) != 1:
            raise ValueError("'text' holds several prompts, but one guides all. Connect it as CLIP Text Encode gives it, or add a channel for each.")
        found = text[0][1].get("pooled_output")
        width = getattr(getattr(clip_vision.model, "visual_projection", None), "out_features", None)
        if found is None or found.shape[-1] != width:
            own = "none" if found is None else f"one of width {found.shape[-1]}"
            raise ValueError(
                f"The text has no embedding that this CLIP vision model understands: it makes embeddings of width {width}, the text has "
                f"{own}. Use the text encoder that belongs to the vision model, or give an image."
            )
    with torch.inference_mode(False):
        return found.float().clone()


def nearest_size(image: torch.Tensor) -> torch.Tensor:
    """An IMAGE no larger than needed."""
    share = LARGEST / max(image.shape[1:3])
    if share >= 1:
        return image
    height, width = (max(8, round(n * share)) for n in image.shape[1:3])
    return comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "area", "disabled").movedim(1, -1)
