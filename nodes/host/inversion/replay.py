"""Reconstructs or edits inverted images inside ComfyUI's sampling, in one or more branches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import comfy.utils
import torch

from ....guidance.diffedit import cells, mixed
from ....inversion.method import Trajectory, replay
from ..conditionings import KEY, branches_of, same_value
from ..sampling import Guidance, run
from .invert import Inversion

BRANCHES = ("edit", "source and edit", "direct")
_NAMES = {KEY: "what attention nodes do"}  # of values that have none for people

_log = logging.getLogger(__name__)


def check_rows(target: list, images: int, branches: str) -> None:
    """Refuses a target that is not for the inverted images: 1 row for all, or one for each, in each branch of Prompt-to-Prompt."""
    rows, own = max(1 if features is None else len(features) for features, _ in target), branches_of(target)
    if rows in (1, images) if own == 1 else (rows == own * images and branches != "edit"):
        return
    were, allowed = ("image was", "1") if images == 1 else ("images were", f"1, or {images}")
    count = f"{rows} rows" if own == 1 or images == 1 else f"{rows} rows in {own} branches"
    raise ValueError(
        f"positive has {count}, but {images} {were} inverted; give {allowed}. Rows of P2P Attention Patch need branches 'direct' or "
        "'source and edit', and this inversion at the input 'latent' of that node."
    )


def stacked_conditioning(source: list, target: list, images: int) -> list:
    """One CONDITIONING whose rows are the source for every image, then the target for every image; they may differ in rows only."""

    def rows(s, t):
        return torch.cat([comfy.utils.repeat_to_batch_size(t, images) for t in (s, t.to(s))])

    ((a, a_extra),), ((b, b_extra),) = source, target
    extra = {k: rows(a_extra[k], v) if k in a_extra and _are_rows(a_extra[k], v) else v for k, v in b_extra.items()}
    return [[rows(a, b), extra]]


def _are_rows(a, b) -> bool:
    return torch.is_tensor(a) and torch.is_tensor(b) and a.ndim > 1 and a.shape[1:] == b.shape[1:]


def differences(source: list, target: list) -> list[str]:
    """What keeps source and target out of one CONDITIONING: values that ComfyUI has once for all rows."""
    if len(source) != 1 or len(target) != 1:
        return ["number of parts"]
    ((a, a_extra),), ((b, b_extra),) = source, target
    lengths = [] if _are_rows(a, b) else ["number of tokens"]
    pairs = {k: (a_extra.get(k), b_extra.get(k)) for k in a_extra | b_extra}
    return lengths + sorted(_NAMES.get(k, k) for k, (s, t) in pairs.items() if not _are_rows(s, t) and not same_value(s, t))


@dataclass(frozen=True)
class Replay:
    """How an inversion is sampled again. `mask` (B or 1, 1, ..., h, w) at the latent's size: 1 = may change. `align` as of `replay`. Up to
    percent `value_end` of the sampling the edit uses the source's values (`share` is `with_shared_values`).

    Two branches are one batch where their conditionings allow it, so that attention control can read the source; otherwise each is
    predicted separately. The conditioning of Prompt-to-Prompt brings its branches along.
    """

    inversion: Inversion
    branches: str = "edit"
    mask: torch.Tensor | None = None
    align: bool = False
    value_end: float = 0.0
    share: Callable | None = None

    def run(self, model, positive, negative, cfg: float) -> torch.Tensor:
        """The latent (as a VAE takes it): the edit, or the source's rows and then the edits'."""
        inversion = self.inversion
        inversion.model.check(model)
        check_rows(positive, inversion.images, self.branches)
        if self.align:
            inversion.method.evaluated(inversion.trajectory, 0)
        count, positive, source = self._branches(positive)
        if self.value_end and count > 1:
            model, positive = self._with_values(model, positive, count, source)
        guider = Guidance(model, positive, negative, cfg, inversion.method.direction(cfg), source)
        trajectory = inversion.trajectory.branches(1 if source else count)
        clean = model.model.process_latent_out(trajectory.states[-1][0].float())

        def loop(guider, derivative, latent, show):
            here = on_device(inversion.trajectory.branches(count), latent.device)
            return replay(inversion.method, derivative, here, align=self.align, between=self._between(here, count), show=show)

        return run(guider, clean, trajectory.sigmas, loop, {"Sampling": trajectory.steps}).latent

    def _branches(self, positive: list) -> tuple[int, list, list | None]:
        """(number of branches, positive, source); a source that is predicted separately is one branch."""
        if self.branches == "edit":
            return 1, positive, None
        if branches_of(positive) > 1:
            return branches_of(positive), positive, None
        source = self.inversion.source
        if not (apart := differences(source, positive)):
            return 2, stacked_conditioning(source, positive, self.inversion.images), None
        names = ", ".join(apart)
        _log.info("Source and target differ in %s: each is predicted separately, attention control cannot read the source.", names)
        return 2, positive, source

    def _with_values(self, model, positive: list, count: int, source: list | None) -> tuple:
        """(model, positive) of branches in one batch, all with the values of the first. Raises ValueError where there is no such batch."""
        if source:
            raise ValueError(
                f"value_end is {self.value_end:g}, but source and target differ in {', '.join(differences(source, positive))}, and each is predicted "
                "separately. Set value_end to 0, or give both prompts as rows of P2P Attention Patch."
            )
        return self.share(model, positive, self.inversion.images, count, self.value_end)

    def _between(self, trajectory: Trajectory, count: int) -> Callable:
        """Keeps the source's rows, and what is outside the mask, on the inversion's own path."""
        first = self.inversion.images
        mask = self.mask if self.mask is None or len(self.mask) == 1 else torch.cat([self.mask] * count)

        def between(state, level):
            own = trajectory.states[level]
            if mask is not None:
                state = tuple(mixed(t, kept, mask.to(t)) for t, kept in zip(state, own))
            if self.branches == "direct":
                state = tuple(torch.cat([kept[:first], t[first:]]) for t, kept in zip(state, own))
            return state

        return between


def on_device(trajectory: Trajectory, device: torch.device) -> Trajectory:
    """A trajectory on the device that the model runs on, in float32 where that has no float64."""
    lacking = device.type == "mps"
    return trajectory.map(lambda t: t.to(device, torch.float32 if lacking and t.dtype == torch.float64 else t.dtype))


def mask_for(mask: torch.Tensor, inversion: Inversion) -> torch.Tensor:
    """A MASK (B or 1, H, W) of the image as it was given, at the size of the inverted latent: a cell that it touches may change."""
    mask = inversion.padding.mask(mask) if inversion.padding else mask
    clean = inversion.trajectory.states[-1][0]
    found = cells(mask.reshape(-1, *mask.shape[-2:]).float(), *clean.shape[-2:])
    if len(found) not in (1, inversion.images):
        raise ValueError(f"The mask holds {len(found)} images but the inversion {inversion.images}; give one mask, or one each.")
    return found.reshape(len(found), *[1] * (clean.ndim - 3), *found.shape[-2:])
