"""Images as the model's VAE takes and gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import comfy.utils
import torch
import torch.nn.functional as F

from ...guidance.errors import quoted
from ...guidance.latent_space import LatentSpace
from . import gradients
from .model_tag import kind_of
from .progress import keep

FITS = PAD, SCALE, REFUSE = "pad", "scale", "refuse"  # what becomes of an IMAGE whose sides the VAE cannot take


class Padding(NamedTuple):
    """Of an IMAGE whose right and lower edges were repeated: its height and width in pixels before and after."""

    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def added(self) -> tuple[int, int, int, int]:
        """As torch's `pad` takes it."""
        (height, width), (to_height, to_width) = self
        return 0, to_width - width, 0, to_height - height

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """The IMAGE with repeated edges."""
        return F.pad(image.movedim(-1, 1), self.added, mode="replicate").movedim(1, -1)

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A MASK over the padded image, 0 where that was added; one of its size stays."""
        if mask.shape[-2:] == self.after:
            return mask
        planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()
        if planes.shape[-2:] != self.before:
            planes = F.interpolate(planes, self.before, mode="bilinear")
        return F.pad(planes, self.added).reshape(*mask.shape[:-2], *self.after)

    def cropped(self, image: torch.Tensor) -> torch.Tensor:
        """An IMAGE or a MASK of the padded size at the size before."""
        height, width = self.before
        return image[:, :height, :width]


def scaled(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An IMAGE at another height and width."""
    return comfy.utils.common_upscale(image.movedim(-1, 1), size[1], size[0], "bicubic", "disabled").clamp(0, 1).movedim(1, -1)


def _pixels(vae, of: str) -> int | None:
    """Pixels of a latent's cell, where the VAE says it; `of`: "encode" or "decode". VAEs of other packs may not."""
    found = getattr(vae, f"spacial_compression_{of}", None)
    return None if found is None else found()


def pixels_of(model, vae) -> int:
    """Pixels of a latent's cell when it is decoded, by the VAE or else by the model's latent format."""
    return _pixels(vae, "decode") or model.get_model_object("latent_format").spacial_downscale_ratio


def fitting_size(vae, size: tuple[int, int], upwards: bool) -> tuple[int, int]:
    """A height and width in pixels that the VAE encodes whole: the same if they do, else the next larger or the nearest ones."""
    cell = _pixels(vae, "encode") or 1
    rounded = (-(-side // cell) if upwards else max(1, round(side / cell)) for side in size)
    return tuple(n * cell for n in rounded) if getattr(vae, "crop_input", True) or min(size) < cell else tuple(size)


def check_size(vae, image: torch.Tensor, name: str) -> None:
    """Refuses an IMAGE that the VAE would crop, or that is smaller than a cell of its latents."""
    height, width = image.shape[1:3]
    if fitting_size(vae, (height, width), True) != (height, width):
        cell = _pixels(vae, "encode")
        near = " x ".join(str(max(1, side // cell) * cell) for side in (width, height))
        raise ValueError(
            f"{quoted(name)} is {width} x {height} pixels, but this VAE takes multiples of {cell} and would cut the rest off. Crop or scale it, for "
            f"example to {near}."
        )


def round_trip(vae, image: torch.Tensor) -> torch.Tensor:
    """An IMAGE encoded and decoded, padded meanwhile where its sides ask for it."""
    size = tuple(image.shape[1:3])
    padding = Padding(size, fitting_size(vae, size, True))
    return padding.cropped(decoded(vae, vae.encode(padding.image(image[..., :3]))))


def encoded_image(vae, image: torch.Tensor, name: str) -> torch.Tensor:
    """The latent samples of an IMAGE that is the node's input `name`; nothing of it is cut off."""
    check_size(vae, image, name)
    return vae.encode(image[..., :3])


def check_images(samples: torch.Tensor, name: str, instead: str = "connect VAE Encode, or an IMAGE and the vae") -> None:
    """Refuses latent samples, the node's input `name`, that are not of images or a video."""
    if samples.is_nested or samples.ndim not in (4, 5):
        shape = "several tensors in one" if samples.is_nested else " x ".join(map(str, samples.shape))
        raise ValueError(
            f"{quoted(name)} is a latent of {shape}, but that of images or a video is needed: (batch, channels, [frames,] height, width). Please "
            f"{instead}."
        )


def samples_of(vae, image, name: str) -> torch.Tensor:
    """The latent samples of a LATENT or an IMAGE that is the node's input `name`."""
    if isinstance(image, dict):
        return image["samples"]
    if vae is None:
        raise ValueError(f"{quoted(name)} is an IMAGE, which needs the vae: connect it, or encode the image and connect the LATENT.")
    return encoded_image(vae, image, name)


def decoded(vae, samples: torch.Tensor) -> torch.Tensor:
    """Decoded latent samples, an IMAGE; of a video VAE, which gives (B, T, H, W, C), the frames one after the other."""
    images = vae.decode(samples)
    return images.reshape(-1, *images.shape[-3:])


def finite_images(vae, samples: torch.Tensor) -> torch.Tensor:
    """The same for images that are kept or trained on. Raises ValueError where they hold NaN or infinity."""
    images = decoded(vae, samples)
    if not bool(images.isfinite().all()):
        raise ValueError(
            "The sampled images hold NaN or infinity: the model diverged, or its VAE needs more precision. Lower cfg or the learning rate, or "
            "start ComfyUI with --fp32-vae."
        )
    return images


def decoder(model, vae) -> Callable[[torch.Tensor], torch.Tensor]:
    """Latents as the model predicts them (B, C, H, W) -> images (B, 3, height, width) in [0, 1], with a graph."""
    network = vae.first_stage_model

    def decode(latents: torch.Tensor) -> torch.Tensor:
        gradients.to_normal_tensors(network, latents.device)
        frames = latents if vae.latent_dim == 2 else latents.unsqueeze(2)  # before the latent format, whose levels may have a frame too
        image = network.decode(model.model.process_latent_out(frames).to(vae.vae_dtype)).float()
        return vae.process_output((image if image.ndim == 4 else image[:, :, 0]).clone())

    return decode


def latent_space(model) -> LatentSpace:
    """The latents that a MODEL takes."""
    form = model.get_model_object("latent_format")
    probe = torch.zeros(1, form.latent_channels, *[5, 4, 4][-form.latent_dimensions :])
    levels = [form.process_in(probe + value).movedim(1, 0).flatten(1).mean(1).tolist() for value in (0.0, 1.0)]
    colors = torch.tensor(form.latent_rgb_factors or ()).flatten().tolist()
    return LatentSpace(type(form).__name__, (*levels[0], *levels[1]), tuple(colors))


def check_latent_channels(model, samples: torch.Tensor) -> None:
    """Refuses latents that another model's VAE made."""
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels, but {kind_of(model)} takes {wanted}: another model's VAE made it. Encode the "
            "image with the VAE of this model."
        )


def latent_of(model, vae, image) -> torch.Tensor:
    """The latent samples, float32, of a LATENT or an IMAGE; the node says that a noise mask is left out."""
    if isinstance(image, dict) and image.get("noise_mask") is not None:
        keep("the latent's noise mask is not used: connect the mask to the node that samples")
    samples = samples_of(vae, image, "image")
    check_images(samples, "image")
    found = comfy.sample.fix_empty_latent_channels(model, samples.float())
    check_latent_channels(model, found)
    return found
