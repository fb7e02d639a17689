"""Pairs of images for InstructPix2Pix: drawn by Prompt-to-Prompt with shared self-attention, filtered, and kept in a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from typing import ClassVar

import comfy.model_management
import comfy.sample
import torch

from ....attention.prompt_to_prompt import Window
from ....guidance.errors import quoted
from ....training.instruct_pix2pix import Draw, PromptPair, draws
from ..attention.hook import NONE, Control, ControlRun, install
from ..attention.shared_noise import with_shared_noise
from ..attention.unet import UnetCall, unet_places
from ..conditionings import marked
from ..latents import decoded
from ..progress import ProgressBar, preview_of
from ..prompts import as_rows, encoded
from .pair_filter import PairFilter
from .pair_folder import PairFolder
from .patch_key import UnknownPatch, key_of
from .run import Stopped
from .trainer import side_by_side

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How candidates are drawn: so many a prompt pair, each with a share and a cfg of its own from these ranges; `size` is height, width."""

    candidates: int = 8
    keep: int = 4
    seed: int = 0
    size: tuple[int, int] = (512, 512)
    share: tuple[float, float] = (0.1, 0.9)
    cfg: tuple[float, float] = (7.5, 15.0)
    steps: int = 30
    sampler_name: str = "euler_ancestral"
    scheduler: str = "normal"


class SharedRun(ControlRun):
    """Sharing during one run."""

    missing = "The conditionings of a pair lost their mark: another node replaced them."

    def sampler(self, sampler, noise, sigmas, seed, device):
        return with_shared_noise(sampler, noise[:1].to(device, torch.float32), 2, sigmas, seed)

    def wanted(self, kind: str) -> frozenset:
        return self.all_layers if kind == "self" and self.percent in self.control.window else NONE

    def share_qk(self, call: UnetCall, first: int, tokens: int) -> None:
        call.source_row[first + 1] = first


@dataclass(frozen=True)
class Sharing(Control):
    """A control by which the second of two rows looks, in self-attention, where the first does, while the window is open.

    That is Prompt-to-Prompt as InstructPix2Pix's pairs are made with it: queries and keys alone, with the prompt and without.
    """

    run: ClassVar = SharedRun
    window: Window


def _of_both(clip, pair: PromptPair) -> list:
    return as_rows([encoded(clip, text) for text in (pair.before, pair.after)], 1)[0]


@dataclass(frozen=True)
class PairSampler:
    """Draws candidates with ComfyUI's own sampling."""

    model: object
    clip: object
    vae: object
    negative_prompt: str
    recipe: Recipe

    @cached_property
    def places(self) -> tuple:
        return unet_places(self.model)

    @cached_property
    def negative(self) -> list:
        return encoded(self.clip, self.negative_prompt)

    @cached_property
    def positive(self) -> Callable[[PromptPair], list]:
        """One CONDITIONING of both captions; the last is kept, as a prompt pair is drawn several times."""
        return lru_cache(1)(partial(_of_both, self.clip))  # holds no sampler: a circle would keep the model in memory

    def draw(self, pair: PromptPair, how: Draw) -> torch.Tensor:
        """Images (2, H, W, 3), before and after: the same noises, and while the window is open the same self-attention, with the prompt
        and without."""
        r, control = self.recipe, Sharing(Window(0.0, how.share), places=self.places)
        model = install(self.model, control)
        positive, negative = (marked(c, control.token) for c in (self.positive(pair), self.negative))
        form = model.get_model_object("latent_format")
        empty = torch.zeros(2, form.latent_channels, *(n // form.spacial_downscale_ratio for n in r.size))
        noise = comfy.sample.prepare_noise(empty, how.seed, [0, 0])
        knobs = (r.steps, how.cfg, r.sampler_name, r.scheduler, positive, negative, empty)
        return decoded(self.vae, comfy.sample.sample(model, noise, *knobs, disable_pbar=True, seed=how.seed))[..., :3].cpu()


def settings_key(sampler: PairSampler, choice: PairFilter) -> dict:
    """How pairs are drawn and chosen, as progress.jsonl keeps it. Raises UnknownPatch where that cannot be told."""
    if choice.key is None:
        raise UnknownPatch("the checker has no settings_key, so what it checks cannot be compared")
    models = key_of(sampler.model, sampler.clip, sampler.vae)
    settings = {**asdict(sampler.recipe), "negative": sampler.negative_prompt, "filter": choice.key, "models": models}
    return json.loads(json.dumps(settings))


def _check_settings(now: dict, pairs: Sequence[PromptPair], done: dict[PromptPair, dict], folder: PairFolder) -> None:
    """Refuses prompt pairs that were, or may have been, drawn in another way: their images are not what is asked for."""
    others = [was for p in pairs if (was := done.get(p)) is not None and (was != now or "unknown" in now)]
    if others:
        changed = "; ".join(f"{k} was {others[0].get(k, 'not set')}, now {v}" for k, v in now.items() if others[0].get(k, v) != v)
        unknown = now.get("unknown") or others[0].get("unknown")
        reason, step = (f"but {unknown}", "Name") if unknown else (f"drawn otherwise: {changed}", "Set these back to continue there, name")
        raise ValueError(
            f"{quoted(folder.name)} holds {len(others)} of these prompt pairs, {reason}. {step} another folder, or set if_exists to 'number it'."
        )


def make(sampler: PairSampler, choice: PairFilter, pairs: Sequence[PromptPair], folder: PairFolder) -> None:
    """Draws what is not done yet. A stop by the user goes on as one, so that ComfyUI runs the node again; what is done is in the folder."""
    done = folder.done()
    try:
        settings = settings_key(sampler, choice)
    except UnknownPatch as reason:
        settings = {"unknown": str(reason)}
    _check_settings(settings, pairs, done, folder)
    left = [p for p in pairs if p not in done and p in folder.shard]
    progress, kept = ProgressBar({"Sampling candidates": len(left) * sampler.recipe.candidates}), 0
    try:
        for number, pair in enumerate(left, 1):
            facts = f"prompt pair {number} of {len(left)}, {kept} image pairs kept"
            kept += _one_pair(sampler, choice, pair, folder, partial(_show, progress, facts), settings)
    except Stopped:
        log.info("Stopped; %d of %d prompt pairs are done in %s", len(folder.done().keys() & set(pairs)), len(pairs), folder.path)
        raise


def _one_pair(sampler: PairSampler, choice: PairFilter, pair: PromptPair, folder: PairFolder, show: Callable, settings: dict) -> int:
    """Draws, filters and saves the candidates of one prompt pair; those that an interrupted run has saved stay and count. The pairs saved."""
    r, listed = sampler.recipe, folder.seeds(pair)
    how = draws(r.seed, pair, r.candidates, r.share, r.cfg)
    candidates = torch.stack([_drawn(sampler, pair, one, show) for one in how])
    sound = candidates.isfinite().flatten(1).all(1).nonzero().flatten().tolist()  # a diverged image is no good one
    chosen = choice.best(candidates[sound], pair, r.keep) if sound else []
    best = [(sound[i], facts) for i, facts in chosen if how[sound[i]].seed not in listed]
    kept = best[: max(0, r.keep - len(listed))]
    for i, facts in kept:
        folder.add(candidates[i], pair, {**asdict(how[i]), **facts})
    folder.finish(pair, len(how), len(listed) + len(kept), settings)
    return len(kept)


def _drawn(sampler: PairSampler, pair: PromptPair, how: Draw, show: Callable[[torch.Tensor], None]) -> torch.Tensor:
    comfy.model_management.throw_exception_if_processing_interrupted()
    made = sampler.draw(pair, how)
    show(made)
    return made


def _show(progress: ProgressBar, facts: str, made: torch.Tensor) -> None:
    progress.advance(1, lambda: facts, lambda: preview_of(side_by_side(made)))
