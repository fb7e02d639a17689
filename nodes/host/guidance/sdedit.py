"""Noising a latent and sampling it back with ComfyUI's samplers, in all or in part of the image."""

from __future__ import annotations

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ....guidance.sdedit import frozen, geometric_sigmas, sigmas_from, start_sigma
from ..latents import check_latent_channels, decoded, samples_of
from ..noise_levels import grid_of, noise_scale
from ..progress import Progress


def sigmas(model, strength: float, unit: str, process: str, steps: int, scheduler: str) -> torch.Tensor:
    """The sigmas from a strength down to 0; empty where the strength is 0."""
    scale = noise_scale(model)
    start = start_sigma(strength, unit, scale, process)
    if start == 0.0:
        return torch.FloatTensor([])
    if process == "VE" and not scale.flow:
        return torch.FloatTensor(geometric_sigmas(start, steps, scale.sigmas[-1]))
    return torch.FloatTensor(sigmas_from(start, steps, grid_of(model, scheduler)))


def report(model, levels: torch.Tensor, process: str, repeats: int) -> str:
    """What was run, in one line."""
    if len(levels) == 0:
        return "strength 0: the guide is returned, no step was run"
    scale = noise_scale(model)
    start, path = float(levels[0]), "the model's flow" if scale.flow else process
    snr = torch.tensor(scale.log_snr(start)).exp().item()
    return (
        f"{path}: start at sigma {start:.4g} (SNR {snr:.4g}, {100 * (1 - scale.percent(start)):.1f} % of the noise scale), "
        f"{len(levels) - 1} steps x {repeats}"
    )


def _paired(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two latents of one size with equal batches."""
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"Guide and original differ in size: latents {tuple(a.shape)} and {tuple(b.shape)}. Scale one to the other.")
    n = max(a.shape[0], b.shape[0])
    if {a.shape[0], b.shape[0]} - {1, n}:
        raise ValueError(f"Guide holds {a.shape[0]} images and original {b.shape[0]}; give equal numbers, or one of them once.")
    return comfy.utils.repeat_to_batch_size(a, n), comfy.utils.repeat_to_batch_size(b, n)


def _checked_mask(mask: torch.Tensor, guide: torch.Tensor, frame_length: int) -> torch.Tensor:
    """A mask as float (B or 1, 1 or frames, H, W), refused where it does not fit; a frame of a latent is `frame_length` of the image."""
    mask, lasting = mask.float(), guide.ndim == 5
    mask = mask.amax(1) if lasting and mask.ndim == 5 else mask.reshape(-1, 1, *mask.shape[-2:])
    frames = {1, guide.shape[2], (guide.shape[2] - 1) * frame_length + 1} if lasting else {1}
    if guide.shape[0] == 1 and len(mask) in frames and mask.shape[1] == 1:
        mask = mask.movedim(0, 1)
    if len(mask) not in (1, len(guide)) or mask.shape[1] not in frames:
        held = f"{len(mask)} images" if mask.shape[1] == 1 else f"{len(mask)} videos of {mask.shape[1]} frames"
        each = f", for one video also one for each of its {guide.shape[2]} latent or {max(frames)} image frames" if lasting else ""
        raise ValueError(f"The mask holds {held} but the guide {len(guide)}; give one mask, or one each{each}.")
    return mask


def _over_images(mask: torch.Tensor, images: torch.Tensor, batch: int) -> torch.Tensor:
    """A mask (B or 1, 1 or frames, H, W) at all images of a batch, (B * images of each, height, width, 1).

    The first latent frame of a video is its first image, each further one as many images as the next.
    """
    each, frames = len(images) // batch, mask.shape[1]
    mask = mask[:, [-(-i * (frames - 1) // max(1, each - 1)) for i in range(each)]]
    mask = torch.nn.functional.interpolate(mask.to(images), images.shape[1:3], mode="bilinear")
    return comfy.utils.repeat_to_batch_size(mask, batch).flatten(0, 1)[..., None]


class Task:
    """A guide to noise, an original that shows outside the mask, and the mask (1 = may change) at the latent's size."""

    def __init__(self, model, vae, guide, original, mask: torch.Tensor | None, name: str = "guide"):
        self.model, self.vae = model, vae
        self.guide_image, self.original_image = (p if torch.is_tensor(p) else None for p in (guide, original))
        self.template = guide if isinstance(guide, dict) else {}
        mask = self.template.get("noise_mask") if mask is None else mask
        start = comfy.sample.fix_empty_latent_channels(model, samples_of(vae, guide, name))
        shown = start if original is guide else comfy.sample.fix_empty_latent_channels(model, samples_of(vae, original, "original"))
        for samples in (start, shown):
            check_latent_channels(model, samples)
        self.guide, self.original = _paired(start, shown)
        self.mask = self.mask_image = None
        if mask is not None:
            ratio = getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", 1)
            found = _checked_mask(mask, self.guide, ratio)
            self.mask_image = found[:, 0] if found.shape[1] == 1 else found
            self.mask = comfy.sampler_helpers.prepare_mask(
                found[:, None] if self.guide.ndim == 5 else found[:, 0], self.guide.shape, self.guide.device
            )
            self.guide = frozen(self.guide * self.mask + self.original * (1 - self.mask), self.original, self.mask)

    def latent(self, samples: torch.Tensor) -> dict:
        """A LATENT like the guide's."""
        kept = {k: v for k, v in self.template.items() if not k.startswith("downscale_ratio")}
        return {**kept, "samples": samples}

    def sample(
        self, levels: torch.Tensor, positive, negative, cfg: float, sampler_name: str, seed: int, repeats: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(result, first noisy start) of `repeats` rounds; round k uses seed + k."""
        current = start = self.guide
        if len(levels) == 0:
            return current, start
        total, hidden = len(levels) - 1, not comfy.utils.PROGRESS_BAR_ENABLED
        show, progress = latent_preview.prepare_callback(self.model, total * repeats), Progress({"Sampling": total * repeats})
        sampler = comfy.samplers.sampler_object(sampler_name)
        for k in range(repeats):
            noise = comfy.sample.prepare_noise(current, seed + k, self.template.get("batch_index"))
            start = self._noised(current, noise, levels) if k == 0 else start
            run = self.model, noise, cfg, sampler, levels, positive, negative, current, self.mask

            def shown(i, x0, x, _, before=k * total):
                show(before + i, x0, x, total * repeats)
                progress.advance()

            result = comfy.sample.sample_custom(*run, callback=shown, disable_pbar=hidden, seed=seed + k)
            current = self._frozen(result)
        return current, start

    def _frozen(self, result: torch.Tensor) -> torch.Tensor:
        return result if self.mask is None else frozen(result, self.original.to(result), self.mask.to(result))

    def _noised(self, latent: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        model_sampling = self.model.get_model_object("model_sampling")
        at_top = float(levels[0]) >= float(model_sampling.sigma_max) * (1 - 1e-5)
        clean = self.model.model.process_latent_in(latent.float())
        return self.model.model.process_latent_out(model_sampling.noise_scaling(levels[:1], noise.clone(), clean, at_top))

    def image(self, samples: torch.Tensor) -> torch.Tensor:
        """The decoded result; where the mask is 0, the pixels of the original itself. A guide that was not touched stays.

        ComfyUI's sampling has blended a gray mask into the latent, so that the pixels take only what that left: `mask / mask of the latent`.
        """
        if samples is self.guide and self.guide_image is not None and self.mask is None:
            return self.guide_image
        image = decoded(self.vae, samples)
        if self.mask is None:
            return image
        original = decoded(self.vae, self.original) if self.original_image is None else self.original_image
        original = comfy.utils.repeat_to_batch_size(original[..., :3].to(image), image.shape[0])
        mask = self.mask_image if self.mask_image.ndim == 4 else self.mask_image[:, None]
        done = self.mask[:, 0] if self.mask.ndim == 5 else self.mask[:, :1]
        mask, done = (_over_images(each, image, len(samples)) for each in (mask, done))
        mask = (mask / done.clamp(min=1e-6)).clamp(max=1)
        return torch.where(mask > 0, image * mask + original * (1 - mask), original)
