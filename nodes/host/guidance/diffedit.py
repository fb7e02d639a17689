"""DiffEdit inside ComfyUI's sampling: a mask where two prompts disagree about an image, and an edit within it.

Both run as a ComfyUI `Sampler` under its own CFG, so loading, conditionings, hooks, wrappers, previews and cancelling are its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ....guidance import diffedit
from ....guidance.sdedit import frozen
from ..latents import check_images, decoded
from ..noise_levels import noise_scale
from ..sampling import TwoPrompts, derivative_of
from . import sdedit


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds of independent noises."""
    return torch.randint(2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Probe(comfy.samplers.Sampler):
    """Compares two prompts on noised copies of a latent.

    `levels[i]` are the (maps, B, ...) differences at sigma i, `means[i]` the mean predictions (2, B, ...) under source and
    target. Maps are evaluated together, as many as fit the memory; each has its own noise at every level.
    """

    maps: int
    measure: str
    seed: int
    batch_index: list[int] | None = None
    levels: tuple[torch.Tensor, ...] = ()
    means: tuple[torch.Tensor, ...] = ()

    def _group(self, guider: TwoPrompts, latent: torch.Tensor) -> int:
        """How many maps fit one evaluation, by ComfyUI's own estimate."""
        free = guider.model_patcher.get_free_memory(latent.device)
        rows, rest = latent.shape[0] * (1 if guider.cfg == 1.0 else 2), latent.shape[1:]
        fits = (k for k in range(self.maps, 1, -1) if guider.inner_model.memory_required([k * rows, *rest]) * 1.5 < free)
        return next(fits, 1)

    def _noised(self, guider: TwoPrompts, latent: torch.Tensor, sigma: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Copies of the latent at `sigma`, map by map, each with the noise of its seed."""
        like = torch.zeros_like(latent, device="cpu")
        drawn = torch.cat([comfy.sample.prepare_noise(like, s, self.batch_index) for s in seeds]).to(latent)
        copies = latent.repeat(len(seeds), *[1] * (latent.ndim - 1))
        return guider.inner_model.model_sampling.noise_scaling(sigma, drawn, copies)

    @staticmethod
    def _predictions(guider: TwoPrompts, x: torch.Tensor, sigma: torch.Tensor, extra_args: dict, maps: int) -> torch.Tensor:
        """(2, maps, B, ...): under source and target."""
        rows = sigma * x.new_ones([x.shape[0]])
        with guider.under_source(guider.cfg):
            source = guider.denoised(x, rows, **extra_args)
        return torch.stack([source, guider.denoised(x, rows, **extra_args)]).unflatten(1, (maps, -1))

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        seeds, group, done = _seeds(self.seed, len(sigmas) * self.maps), self._group(model_wrap, latent_image), 0
        for level, sigma in enumerate(sigmas):
            own, parts = seeds[level * self.maps : (level + 1) * self.maps], []
            for chosen in (own[i : i + group] for i in range(0, self.maps, group)):
                x = self._noised(model_wrap, latent_image, sigma, chosen)
                parts.append(self._predictions(model_wrap, x, sigma, extra_args, len(chosen)))
                done += len(chosen)
                if callback is not None:
                    callback(done - 1, parts[-1][1, 0], x[: len(latent_image)], len(seeds))
            seen = torch.cat(parts, 1)
            self.levels += (diffedit.difference(*seen, float(sigma), self.measure),)
            self.means += (seen.mean(1),)
        return latent_image


@dataclass(frozen=True)
class MaskSettings:
    """How two prompts are compared: at which percents of the sampling, under how many noises each, and measured how."""

    percents: list[float]
    maps: int = 8
    measure: str = diffedit.MEASURES[0]
    aggregation: str = diffedit.AGGREGATIONS[0]
    seed: int = 0
    refine: bool = True

    def __post_init__(self):
        if self.maps < 1:
            raise ValueError(f"There are {self.maps} maps; give 1 or more, 10 in the paper.")


def _task(model, vae, image, mask: torch.Tensor | None) -> sdedit.Task:
    if isinstance(image, dict):
        check_images(image["samples"], "image")
    return sdedit.Task(model, vae, image, image, mask, "image")


def _per_video(images: torch.Tensor, batch: int) -> torch.Tensor:
    """(B, H, W): of all frames (B * T, H, W) the largest value."""
    return images.reshape(batch, -1, *images.shape[-2:]).amax(1)


class MaskTarget:
    """An image, as LATENT or IMAGE, that two prompts are compared on."""

    def __init__(self, model, vae, image):
        self.task = _task(model, vae, image, None)
        self.model, self.vae, self.image = model, vae, self.task.guide_image
        self.latent = self.task.original.float()
        scale = model.get_model_object("latent_format").spacial_downscale_ratio if vae is None else vae.spacial_compression_decode()
        self.size = tuple(int(n * scale) for n in self.latent.shape[-2:])
        if self.image is not None:
            self.size = tuple(self.image.shape[1:3])

    def heat(self, guider: TwoPrompts, settings: MaskSettings) -> torch.Tensor:
        """The heat map (B, H, W) of what the guider's two prompts disagree about; nothing is evaluated where they are the same."""
        if guider.agree():
            return self.latent.new_zeros([self.latent.shape[0], *self.size])
        scale = noise_scale(self.model)
        sigmas = torch.FloatTensor([scale.sigma(p) for p in settings.percents])
        probe = Probe(settings.maps, settings.measure, settings.seed, self.task.template.get("batch_index"))
        show = latent_preview.prepare_callback(self.model, settings.maps * len(sigmas))
        blank = torch.zeros_like(self.latent)
        guider.sample(
            blank, self.latent, probe, sigmas, callback=show, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=settings.seed
        )
        found = diffedit.resized(diffedit.heat(probe.levels, settings.aggregation).to(self.latent), *self.size)
        return diffedit.sharpened(found, self._pixels(probe.means)) if settings.refine and self.vae is not None else found

    def _pixels(self, means: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The mean difference (B, H, W) of the decoded mean predictions."""
        out = self.model.model.process_latent_out
        seen = [[decoded(self.vae, out(side).to(self.latent)) for side in pair] for pair in means]
        apart = torch.stack([(target - source).abs().mean(-1) for source, target in seen]).mean(0)
        return _per_video(apart, self.latent.shape[0]).to(self.latent)

    def latent_with(self, mask: torch.Tensor) -> dict:
        """The LATENT with its noise mask, in the shape in which ComfyUI keeps the masks of a batch apart."""
        return {
            **self.task.latent(self.task.original),
            "noise_mask": mask.reshape(len(mask), *[1] * (self.latent.ndim - 3), *mask.shape[-2:]),
        }

    def shown(self, mask: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
        """The heat over the gray image, with the mask's outline: an IMAGE."""
        if self.image is not None:
            below = self.image[..., :3]
        elif self.vae is not None:
            below = decoded(self.vae, self.latent)
        else:
            below = mask.new_zeros([*mask.shape, 3])
        frames = max(1, len(below) // len(mask))
        return overlay(below.to(mask), *(m.repeat_interleave(frames, 0) for m in (mask, heat)))


def overlay(images: torch.Tensor, mask: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Heat (B, H, W) from black over red and yellow to white on gray images (B, H, W, 3), the mask's outline in cyan."""
    gray = images.mean(-1, keepdim=True) * 0.7
    warm = torch.stack([3 * heat, 3 * heat - 1, 3 * heat - 2], -1).clamp(0, 1)
    strength = (1.5 * heat).clamp(0, 0.85)[..., None]
    outline = (diffedit.dilated(mask, 1) > 0.5) & (mask <= 0.5)
    return torch.where(outline[..., None], gray.new_tensor([0.0, 0.9, 1.0]), gray * (1 - strength) + warm * strength)


@dataclass
class MaskedDDIM(comfy.samplers.Sampler):
    """Encodes under the source prompt without guidance, then denoises under the target within the mask.

    `encode(derivative, clean, sigmas, show)` inverts to a `Trajectory`.
    """

    rule: str
    encode: Callable

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        guider, done, total = model_wrap, itertools.count(), 2 * (len(sigmas) - 1)

        def show(x: torch.Tensor, denoised: torch.Tensor) -> None:
            if callback is not None:
                callback(next(done), denoised, x, total)

        with guider.under_source(1.0, alone=True):
            trajectory = self.encode(derivative_of(guider, extra_args), latent_image, sigmas.tolist(), show)
        states = [x for (x,) in trajectory.states]
        return diffedit.sample_diffedit(
            guider.denoised,
            states[0],
            sigmas,
            extra_args,
            lambda at: show(at["x"], at["denoised"]),
            trajectory=states,
            mask=denoise_mask,
            rule=self.rule,
        )


def _check_mask_fits(mask: torch.Tensor, latent: torch.Tensor) -> None:
    """Refuses a mask of another shape than the latent's image, up to the rim that a VAE cuts off."""
    (height, width), (h, w) = mask.shape[-2:], latent.shape[-2:]
    if max(height / (h + 1), width / (w + 1)) >= min(height / h, width / w):
        raise ValueError(
            f"The mask is {width} x {height} but the latent {w} x {h}, of another shape. Give the mask of this image, or scale one to the other."
        )


class MaskedImage:
    """An image, and the mask (1 = may change) at the size of its latent; the latent's own where none is given."""

    def __init__(self, model, vae, image, mask: torch.Tensor | None, soft: bool):
        mask = image.get("noise_mask") if mask is None and isinstance(image, dict) else mask
        self.task = _task(model, vae, image, mask)
        if not soft and self.task.mask_image is not None:
            self.task.mask_image = (self.task.mask_image > 0.5).float()
        self.latent, found = self.task.original, self.task.mask_image
        self.mask = torch.ones_like(self.latent[:, :1], dtype=torch.float32)
        if found is not None:
            _check_mask_fits(found, self.latent)
            within = diffedit.cells(found, *self.latent.shape[-2:], soft)
            self.mask = self.mask * within.reshape(len(within), *[1] * (self.latent.ndim - 3), *within.shape[-2:]).to(self.mask)

    def keep_outside(self, result: torch.Tensor) -> torch.Tensor:
        """An edit's result, with the original bit for bit where the mask is 0."""
        return frozen(result.to(self.latent), self.latent, self.mask.to(self.latent.device))


class DiffEdit(MaskedImage):
    """DiffEdit's edit."""

    def run(self, guider: TwoPrompts, sigmas: torch.Tensor, rule: str, encode: Callable) -> torch.Tensor:
        """The edited latent; where the mask is 0, the original's bit for bit."""
        if len(sigmas) == 0:
            return self.latent
        show = latent_preview.prepare_callback(self.task.model, 2 * (len(sigmas) - 1))
        blank, hidden = torch.zeros_like(self.latent), not comfy.utils.PROGRESS_BAR_ENABLED
        result = guider.sample(blank, self.latent, MaskedDDIM(rule, encode), sigmas, self.mask, callback=show, disable_pbar=hidden, seed=0)
        return self.keep_outside(result)
