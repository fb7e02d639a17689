"""Replays an inversion as a sampler of ComfyUI, with one or two branches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.utils
import torch

from ....guidance.diffedit import cells, mixed
from ....inversion.method import Trajectory, replay
from ..conditionings import KEY as MARK
from ..conditionings import same_value
from ..sampling import Guidance, run
from .invert import Inversion

log = logging.getLogger(__name__)

BRANCHES = ("edit", "source and edit", "direct")


def row_count(conditioning: list) -> int:
    """How many rows a CONDITIONING has, 1 for all images or one for each."""
    return max(1 if features is None else len(features) for features, _ in conditioning)


def check_rows(target: list, images: int, branches: str) -> None:
    """Refuses a target with rows for other images than were inverted; with two branches, whole batches are the rows of Prompt-to-Prompt."""
    rows = row_count(target)
    if rows in (1, images) or (branches != "edit" and rows % images == 0):
        return
    were, allowed = ("image was", "1") if images == 1 else ("images were", f"1, or {images}")
    raise ValueError(
        f"positive has {rows} rows, but {images} {were} inverted; give {allowed}. Rows of P2P Attention Patch need branches 'direct' or "
        f"'source and edit', and its batch_size {images}."
    )


def stacked_conditioning(source: list, target: list, images: int) -> list:
    """One CONDITIONING whose rows are the source for every image, then the target for every image; both differ in nothing but rows."""

    def rows(s, t):
        return torch.cat([comfy.utils.repeat_to_batch_size(t, images) for t in (s, t.to(s))])

    ((a, a_extra),), ((b, b_extra),) = source, target
    extra = {k: rows(a_extra[k], v) if k in a_extra and _are_rows(a_extra[k], v) else v for k, v in b_extra.items()}
    return [[rows(a, b), extra]]


def _are_rows(a, b) -> bool:
    return torch.is_tensor(a) and torch.is_tensor(b) and a.ndim > 1 and a.shape[1:] == b.shape[1:]


def differences(source: list, target: list) -> list[str]:
    """What keeps source and target out of one CONDITIONING: what the host knows only for all of its rows."""
    if len(source) != 1 or len(target) != 1:
        return ["number of parts"]
    ((a, a_extra),), ((b, b_extra),) = source, target
    lengths = [] if _are_rows(a, b) else ["number of tokens"]
    pairs = {k: (a_extra.get(k), b_extra.get(k)) for k in (a_extra | b_extra).keys() - {MARK}}
    return lengths + sorted(k for k, (s, t) in pairs.items() if not _are_rows(s, t) and not same_value(s, t))


@dataclass(frozen=True)
class Replay:
    """How an inversion is walked down again. `mask` (B or 1, 1, ..., h, w) at the latent's size: 1 = may change.

    Two branches are one batch where their conditionings allow it, so that attention control can read the source; else each is predicted by
    itself.
    """

    inversion: Inversion
    branches: str = "edit"
    mask: torch.Tensor | None = None

    def run(self, model, positive, negative, cfg: float) -> torch.Tensor:
        """The latent (as a VAE takes it): the edit, or the source's rows and then the edit's."""
        inversion, images = self.inversion, self.inversion.images
        inversion.model.check(model)
        check_rows(positive, images, self.branches)
        count, source = 1 if self.branches == "edit" else max(2, row_count(positive) // images), None
        if count == 2 and row_count(positive) <= images:
            if apart := differences(inversion.source, positive):
                source = inversion.source
                told = ", ".join(apart)
                log.info("Source and target differ in %s: each is predicted by itself, attention control cannot read the source.", told)
            else:
                positive = stacked_conditioning(inversion.source, positive, images)
        guider = Guidance(model, positive, negative, cfg, inversion.method.direction(), source)
        trajectory = inversion.trajectory.branches(1 if source else count)
        clean = model.model.process_latent_out(trajectory.states[-1][0].float())

        def loop(guider, derivative, latent, show):
            here = _on(inversion.trajectory.branches(count), latent.device)
            return replay(inversion.method, derivative, here, between=self._between(here, count), show=show)

        sampler = run(guider, clean, trajectory.sigmas, loop, trajectory.steps)
        return model.model.process_latent_out(sampler.result.float()).to(comfy.model_management.intermediate_device())

    def _between(self, trajectory: Trajectory, count: int) -> Callable:
        """Keeps the source's rows, and what lies off the mask, on the inversion's own path."""
        first = self.inversion.images
        mask = self.mask if self.mask is None or len(self.mask) == 1 else torch.cat([self.mask] * count)

        def between(carry, level):
            own = trajectory.states[level]
            if mask is not None:
                carry = tuple(mixed(t, kept, mask.to(t)) for t, kept in zip(carry, own))
            if self.branches == "direct":
                carry = tuple(torch.cat([kept[:first], t[first:]]) for t, kept in zip(carry, own))
            return carry

        return between


def _on(trajectory: Trajectory, device: torch.device) -> Trajectory:
    """A trajectory on the device that the model runs on, in float32 where that has nothing finer."""

    def moved(t: torch.Tensor) -> torch.Tensor:
        return t.to(device, torch.float32 if device.type == "mps" and t.dtype == torch.float64 else t.dtype)

    return replace(
        trajectory,
        states=tuple(tuple(moved(t) for t in carry) for carry in trajectory.states),
        extras={k: moved(t) for k, t in trajectory.extras.items()},
    )


def mask_for(mask: torch.Tensor, inversion: Inversion) -> torch.Tensor:
    """A MASK (B or 1, H, W) at the size of the inverted latent: a cell that it touches may change."""
    clean = inversion.trajectory.states[-1][0]
    found = cells(mask.reshape(-1, *mask.shape[-2:]).float(), *clean.shape[-2:])
    if len(found) not in (1, inversion.images):
        raise ValueError(f"The mask holds {len(found)} images but the inversion {inversion.images}; give one mask, or one each.")
    return found.reshape(len(found), *[1] * (clean.ndim - 3), *found.shape[-2:])
