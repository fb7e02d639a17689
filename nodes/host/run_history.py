"""The last runs of a patch, found again by the latent that each of them made: what a node shows belongs to the latent it is given."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import comfy.model_management
import torch

KEPT = 8  # runs of one patch that can still be shown


def digest(samples: torch.Tensor) -> str:
    """A name for the values of latent samples, whatever their device and float type; nested latents count as ComfyUI packs them."""
    parts = samples.unbind() if samples.is_nested else [samples]
    found = hashlib.sha256()
    for row in torch.cat([part.detach().float().cpu().flatten(1) for part in parts], 1):
        found.update(row.contiguous().numpy().tobytes())
    return found.hexdigest()


def _digests(samples: torch.Tensor) -> set[str]:
    """The digests of samples as guiders give them, and as ComfyUI's samplers store them."""
    stored = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()
    return {digest(samples), digest(samples.to(stored))}


class Made(NamedTuple):
    """The runs that made a latent: the parts of one sampling, in order, the last of which ended at sigma `end`."""

    runs: tuple
    end: float


@dataclass
class RunHistory:
    """`made` by the digest of the latent."""

    made: OrderedDict[str, Made] = field(default_factory=OrderedDict)

    def sample(self, run, model, sample: Callable, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
        """Samples by `sample`, the executor of OUTER_SAMPLE or a guider's own, and keeps `run` under what comes out: the latent, the last
        denoised latent, the `latents` of an `AnyOrderSampler`, and each with the original bit for bit off the mask, as nodes restore it.
        `model` is the guider's model patcher.
        """
        inner = []

        def watched(step, denoised, *more):
            inner[:] = [denoised]
            return callback(step, denoised, *more) if callback is not None else None

        result = sample(noise, latent_image, sampler, sigmas, denoise_mask, watched, *args, **kwargs)
        runs = (*self.before(noise, latent_image, sigmas), run)
        inner += [x.float() for x in getattr(sampler, "latents", ())]
        outputs = [result, *(model.model.process_latent_out(x.cpu()) for x in inner)]
        outputs += [latent_image] if getattr(sampler, "looks", False) else []
        if denoise_mask is not None:
            outputs += [torch.where(denoise_mask.to(x.device) > 0, x, latent_image.to(x)) for x in outputs]
        for name in set().union(*map(_digests, outputs)):
            self.made.pop(name, None)
            self.made[name] = Made(runs, float(sigmas[-1]))
        while self.count > KEPT:
            self.made.popitem(last=False)
        return result

    @property
    def count(self) -> int:
        """How many runs made the latents that are kept."""
        return len({id(made.runs[-1]) for made in self.made.values()})

    def before(self, noise: torch.Tensor, latent_image: torch.Tensor, sigmas: torch.Tensor) -> tuple:
        """The runs of which a sampling is a further part: without noise it goes on from the latent and the sigma at which they ended."""
        made = None if torch.count_nonzero(noise) else self.made.get(digest(latent_image))
        return made.runs if made is not None and made.end == float(sigmas[0]) else ()

    def of(self, latent: dict) -> tuple:
        """The runs that made a LATENT, in order; none where it came from elsewhere."""
        made = self.made.get(digest(latent["samples"]))
        return () if made is None else made.runs


def run_of(histories: list[RunHistory], latent: dict, instead: str) -> tuple:
    """The runs of the first history that knows a LATENT. Raises ValueError, with the next step to take, where none does."""
    for history in histories:
        if found := history.of(latent):
            return found
    known = sum(history.count for history in histories)
    what = "has not sampled yet" if not known else f"made other latents in its last {known} run(s), not this one"
    again = " If an older result comes from ComfyUI's cache, change the seed and sample again." if known >= KEPT else ""
    raise ValueError(f"There is nothing to show for this latent: the model {what}. {instead}{again}")
