"""DiffEdit inside ComfyUI's sampling: a mask where two prompts disagree about an image, and an edit within it.

Both run as loops of `sampling.run`, so loading, conditionings, hooks, wrappers, previews and cancelling are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import comfy.sample
import comfy.utils
import torch

from ....guidance import diffedit
from ....guidance.sdedit import frozen
from ..latents import check_images, decoded, pixels_of
from ..noise_levels import noise_scale
from ..sampling import TwoPrompts, run
from . import sdedit


def seeds_of(seed: int, count: int) -> list[int]:
    """Seeds of independent noises."""
    return torch.randint(2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def group_of(guider: TwoPrompts, latent: torch.Tensor, maps: int) -> int:
    """How many of so many maps fit one evaluation, by ComfyUI's own estimate."""
    free = guider.model_patcher.get_free_memory(latent.device)
    rows, rest = latent.shape[0] * (1 if guider.cfg == 1.0 else 2), latent.shape[1:]
    fits = (k for k in range(maps, 1, -1) if guider.inner_model.memory_required([k * rows, *rest]) * 1.5 < free)
    return next(fits, 1)


def _predictions(guider: TwoPrompts, x: torch.Tensor, sigma: torch.Tensor, extra_args: dict, maps: int) -> torch.Tensor:
    """(2, maps, B, ...): under source and target."""
    rows, guider.copies = sigma * x.new_ones([x.shape[0]]), maps
    with guider.under_source(guider.cfg):
        source = guider.denoised(x, rows, **extra_args)
    return torch.stack([source, guider.denoised(x, rows, **extra_args)]).unflatten(1, (maps, -1))


class Comparison(Protocol):
    """How two prompts are compared on an image, and whether their latents are decoded to refine the mask."""

    refine: bool

    def compared(self, target: MaskTarget, guider: TwoPrompts) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """The heat (B, h, w) of the latent's cells, and pairs of latents (2, B, ...) to decode, in the model's own space."""


@dataclass(frozen=True)
class MaskSettings:
    """DiffEdit's comparison: at which percents of the sampling, under how many noises each, and whether decoded too."""

    percents: list[float]
    maps: int = 8
    seed: int = 0
    refine: bool = True

    def compared(self, target: MaskTarget, guider: TwoPrompts) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        scale = noise_scale(target.model)
        sigmas, noises = [scale.sigma(p) for p in self.percents], self.maps * len(self.percents)
        loop = partial(self._levels, target, torch.FloatTensor(sigmas))
        levels, means = zip(*run(guider, target.latent, sigmas, loop, {"Comparing the prompts": noises}, seed=self.seed, apart=True).result)
        return diffedit.heat(levels), means

    def _levels(self, target: MaskTarget, sigmas: torch.Tensor, guider: TwoPrompts, derivative, latent: torch.Tensor, show) -> list:
        """For each sigma the differences (maps, B, ...), and the mean predictions (2, B, ...) under source and target.

        Maps are evaluated together, as many as fit the memory; each has its own noise at every level.
        """
        seeds, group, found = seeds_of(self.seed, len(sigmas) * self.maps), group_of(guider, latent, self.maps), []
        for level, sigma in enumerate(sigmas.to(latent.device)):
            own, parts = seeds[level * self.maps : (level + 1) * self.maps], []
            for chosen in (own[i : i + group] for i in range(0, self.maps, group)):
                x = target.noised(guider, latent, sigma, chosen)
                parts.append(_predictions(guider, x, sigma, derivative.extra_args, len(chosen)))
                show(x[: len(latent)], parts[-1][1, 0], len(chosen))
            seen = torch.cat(parts, 1)
            found.append((seen[1] - seen[0], seen.mean(1)))
        return found


def _task(model, vae, image, mask: torch.Tensor | None) -> sdedit.Task:
    if isinstance(image, dict):
        check_images(image["samples"], "image")
    return sdedit.Task(model, vae, image, image, mask, "image")


class MaskTarget:
    """An image, as LATENT or IMAGE, that two prompts are compared on; or the mask that a user painted on it, which needs no comparison."""

    def __init__(self, model, vae, image, painted: torch.Tensor | None = None):
        self.is_painted = painted is not None and bool(painted.any())
        self.task = _task(model, vae, image, painted if self.is_painted else None)
        self.model, self.vae, self.image = model, vae, self.task.guide_image
        self.latent = self.task.original.float()
        self.size = tuple(int(n * pixels_of(model, vae)) for n in self.latent.shape[-2:])
        if self.image is not None:
            self.size = tuple(self.image.shape[1:3])

    @property
    def cell(self) -> float:
        """Pixels of a cell of the latent."""
        return self.size[0] / self.latent.shape[-2]

    def heat(self, guider: TwoPrompts, settings: Comparison) -> torch.Tensor:
        """The heat map (B, H, W) of what the guider's two prompts disagree about; nothing is evaluated where they are the same."""
        if guider.agree():
            return self.latent.new_zeros([self.latent.shape[0], *self.size])
        found, pairs = settings.compared(self, guider)
        found = diffedit.resized(found.to(self.latent), *self.size)
        return diffedit.sharpened(found, self._pixels(pairs)) if settings.refine and self.vae is not None else found

    def painted(self, soft: bool) -> torch.Tensor:
        """The painted mask (B, H, W), of all frames of a video the largest; cut at 0.5 unless it is soft."""
        mask = self.task.mask_image
        _check_mask_fits(mask, self.latent)
        mask = torch.nn.functional.interpolate(mask.reshape(len(mask), -1, *mask.shape[-2:]), self.size, mode="bilinear").amax(1)
        mask = comfy.utils.repeat_to_batch_size(mask, len(self.latent))
        return mask if soft else (mask > 0.5).float()

    def noised(self, guider: TwoPrompts, latent: torch.Tensor, sigma: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Copies of the latent at `sigma`, map by map, each with the noise of its seed."""
        like, index = torch.zeros_like(latent, device="cpu"), self.task.template.get("batch_index")
        drawn = torch.cat([comfy.sample.prepare_noise(like, s, index) for s in seeds]).to(latent)
        copies = latent.repeat(len(seeds), *[1] * (latent.ndim - 1))
        return guider.inner_model.model_sampling.noise_scaling(sigma, drawn, copies)

    def _pixels(self, pairs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean difference (B, H, W) of decoded pairs of latents (2, B, ...), in the model's own space."""
        out = self.model.model.process_latent_out
        seen = [[decoded(self.vae, out(side).to(self.latent)) for side in pair] for pair in pairs]
        apart = torch.stack([(target - source).abs().mean(-1) for source, target in seen]).mean(0)
        return apart.reshape(len(self.latent), -1, *apart.shape[-2:]).amax(1).to(self.latent)  # of all frames of a video the largest

    def latent_with(self, mask: torch.Tensor) -> dict:
        """The LATENT with its noise mask, in the shape in which ComfyUI keeps the masks of a batch apart."""
        noise_mask = mask.reshape(len(mask), *[1] * (self.latent.ndim - 3), *mask.shape[-2:])
        return {**self.task.latent(self.task.original), "noise_mask": noise_mask}

    def shown(self, mask: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
        """The heat over the gray image, with the mask's outline: an IMAGE."""
        if self.image is not None:
            below = self.image[..., :3]
        else:
            below = mask.new_zeros([*mask.shape, 3]) if self.vae is None else decoded(self.vae, self.latent)
        frames = max(1, len(below) // len(mask))
        return overlay(below.to(mask), *(m.repeat_interleave(frames, 0) for m in (mask, heat)))


def overlay(images: torch.Tensor, mask: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Heat (B, H, W) from black over red and yellow to white on gray images (B, H, W, 3), the mask's outline in cyan."""
    gray = images.mean(-1, keepdim=True) * 0.7
    warm = torch.stack([3 * heat, 3 * heat - 1, 3 * heat - 2], -1).clamp(0, 1)
    strength = (1.5 * heat).clamp(0, 0.85)[..., None]
    outline = (diffedit.dilated(mask, 1) > 0.5) & (mask <= 0.5)
    return torch.where(outline[..., None], gray.new_tensor([0.0, 0.9, 1.0]), gray * (1 - strength) + warm * strength)


def _check_mask_fits(mask: torch.Tensor, latent: torch.Tensor) -> None:
    """Refuses a mask of another shape than the latent's image, up to the rim that a VAE cuts off. One that leaves nothing out fits all: Load
    Image gives one of 64 x 64 where nothing was painted, for Invert Mask."""
    if bool((mask > 0.5).all()):
        return
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
            self.task.mask = torch.ones_like(self.mask)  # a gray mask is each step's share here, and no blend of the result

    def keep_outside(self, result: torch.Tensor) -> torch.Tensor:
        """An edit's result, with the original bit for bit where the mask is 0."""
        return frozen(result.to(self.latent), self.latent, self.mask.to(self.latent.device))


class DiffEdit(MaskedImage):
    """DiffEdit's edit."""

    def run(self, guider: TwoPrompts, sigmas: torch.Tensor, rule: str, encode: Callable) -> torch.Tensor:
        """The edited latent; where the mask is 0, the original's bit for bit. Encodes under the source prompt without guidance, by
        `encode(derivative, clean, sigmas, show)`, then denoises under the target within the mask."""
        if len(sigmas) == 0:
            return self.latent

        def loop(guider, derivative, clean, show):
            with guider.under_source(1.0, alone=True):
                states = [x for (x,) in encode(derivative, clean, sigmas.tolist(), show).states]
            mask, extra_args = self.mask.to(clean), derivative.extra_args
            return diffedit.sample_diffedit(guider.denoised, states, sigmas.to(clean), mask, rule, extra_args, show)

        phases = dict.fromkeys(("Inverting", "Editing"), len(sigmas) - 1)
        return self.keep_outside(run(guider, self.latent, sigmas.tolist(), loop, phases, self.mask).latent)
