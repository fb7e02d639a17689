"""Pairs of images for InstructPix2Pix: drawn by Prompt-to-Prompt with shared self-attention, filtered, and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import torch
from comfy.clip_model import CLIPTextModel

from ....attention.layers import Place
from ....attention.prompt_to_prompt import Window
from ....guidance.schedules import NoiseScale
from ....training.instruct_pix2pix import Draw, Filter, PlainFilter, PromptPair, draws, likeness
from .. import images
from ..attention.hook import Control, ControlRun, install
from ..attention.shared_noise import with_shared_noise
from ..attention.unet import UnetCall, unet_places
from ..conditionings import marked
from ..fingerprint import Weights, stamp
from ..latents import decoded
from ..prompts import as_rows, encoded
from . import file_names
from .patch_key import traits
from .run import Stopped
from .trainer import side_by_side

log = logging.getLogger(__name__)
IF_EXISTS = ("continue", "number it", "refuse")
Checker = Callable[[torch.Tensor, torch.Tensor, PromptPair], Sequence[float]]




@dataclass(frozen=True)
class OnDisk(Sequence):
    """Images (1, H, W, 3) of a folder, each read when it is asked for."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return images.read(self.paths[number])


@dataclass(frozen=True)
class Found:
    """A pair as it is kept: its prompts, and what is known of it."""

    pair: PromptPair
    facts: dict[str, float]


class Folder:
    """Pairs among the host's outputs: before/00001.png, after/00001.png with its instruction in after/00001.txt, and metadata.jsonl.

    So it is also what trainers of editors with reference latents read: `before` holds the control images, `after` the targets with
    captions beside them. progress.jsonl says which prompt pairs are done. Nothing that is there is written over.
    """

    def __init__(self, name: str):
        self.name = file_names.check_name(name)
        self.path = Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "pairs" / self.name

    @classmethod
    def chosen(cls, name: str, if_exists: str) -> Folder:
        """The folder to write into: one that is there is gone on with, left for another with a number, or refused."""
        if if_exists not in IF_EXISTS:
            raise ValueError(f"There is no way '{if_exists}' with an existing folder; choose one of {', '.join(IF_EXISTS)}.")
        folder = cls(name)
        if if_exists == "continue" or not folder.path.exists():
            return folder
        if if_exists == "number it":
            return next(f for i in range(2, 100_000) if not (f := cls(f"{name}_{i}")).path.exists())
        raise ValueError(f"'{name}' exists: {folder.path}. Choose another name, or set if_exists to 'continue' or 'number it'.")

    def _lines(self, name: str) -> list[dict]:
        """What a file of lines holds, without a line that was torn when it was written."""
        path, found = self.path / name, []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            try:
                found += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError:
                log.warning("A line of %s is torn and is left out: %s", path, line[:80])
        return found

    def _add(self, name: str, line: dict) -> None:
        with (self.path / name).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")  # after a torn line
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())

    def done(self) -> dict[PromptPair, dict]:
        """The prompt pairs of which nothing more is to be drawn, and how they were: see `way`."""
        return {PromptPair(**line["pair"]): line.get("way", {}) for line in self._lines("progress.jsonl")}

    def finish(self, pair: PromptPair, tried: int, kept: int, way: dict) -> None:
        """Notes that nothing more is to be drawn for a prompt pair."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._add("progress.jsonl", {"pair": asdict(pair), "tried": tried, "kept": kept, "way": way})

    def add(self, both: torch.Tensor, found: Found) -> None:
        """Saves images (2, H, W, 3), before and after. The line that lists them comes first: one whose images are not there does not
        count, so nothing is in the folder twice when a run breaks off in between."""
        for side in ("before", "after"):
            (self.path / side).mkdir(parents=True, exist_ok=True)
        named = [*self.path.glob("*/*.*"), *(Path(m["edited_image"]) for m in self._lines("metadata.jsonl"))]
        number = 1 + max((int(p.stem) for p in named if p.stem.isdigit()), default=0)
        files = [f"{side}/{number:05d}.png" for side in ("before", "after")]
        captions = {"original_prompt": found.pair.before, "edited_prompt": found.pair.after, "edit_prompt": found.pair.instruction}
        self._add("metadata.jsonl", {"original_image": files[0], "edited_image": files[1], **captions, **found.facts})
        (self.path / files[1]).with_suffix(".txt").write_text(found.pair.instruction, encoding="utf-8")
        images.write({self.path / file: image for file, image in zip(files, both)})

    def _kept(self) -> list[dict]:
        """The lines of all pairs whose images are there: a user may take bad ones out."""
        lines = self._lines("metadata.jsonl")
        there = [m for m in lines if all(self._file(m[f"{side}_image"]).is_file() for side in ("original", "edited"))]
        if len(there) < len(lines):
            log.info("%d pairs that %s lists are not there any more.", len(lines) - len(there), self.path / "metadata.jsonl")
        return there

    def fingerprint(self) -> str:
        """Changes when pairs are added or taken out."""
        there = sorted(f"{p.parent.name}/{p.name}" for p in self.path.glob("*/*.png"))
        return f"{stamp(self.path / 'metadata.jsonl')} {hashlib.sha256(chr(10).join(there).encode()).hexdigest()[:12]}"

    def seeds(self, pair: PromptPair) -> set[int]:
        """Which candidates of a prompt pair are kept already."""
        return {m["seed"] for m in self._kept() if _pair_of(m) == pair and "seed" in m}

    def read(self, pairs: set[PromptPair] | None = None, most: int = 0) -> tuple[OnDisk, OnDisk, list[str]]:
        """(before, after, instructions), images (1, H, W, 3); of some prompt pairs, at most so many (0 = all)."""
        lines = self._kept()
        if pairs is not None:
            lines = [m for m in lines if _pair_of(m) in pairs]
        lines = lines[:most] if most else lines
        before, after = (OnDisk(tuple(self._file(m[f"{side}_image"]) for m in lines)) for side in ("original", "edited"))
        return before, after, [m["edit_prompt"] for m in lines]

    def _file(self, name: str) -> Path:
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise ValueError(
                f"metadata.jsonl of '{self.name}' names '{name}', which lies outside of its folder. Take that line out, or name another folder."
            )
        return path


def _pair_of(line: dict) -> PromptPair:
    return PromptPair(*(line[k] for k in ("original_prompt", "edited_prompt", "edit_prompt")))


def chosen(folder: str, before: Sequence, after: Sequence, instructions: Sequence[str]) -> tuple[Sequence, Sequence, Sequence[str]]:
    """What a trainer learns from: the pairs of a folder, or what is connected."""
    if not folder.strip():
        return before, after, instructions
    if before or after or instructions:
        raise ValueError(f"Pairs are connected, and the folder '{folder}' is named too. Empty one of them.")
    kept = Folder(folder.strip())
    found = kept.read()
    if not found[0]:
        raise ValueError(f"There are no pairs in {kept.path}. Give the name under which InstructPix2Pix Pairs keeps them.")
    return found




@dataclass(frozen=True)
class Recipe:
    """How candidates are drawn: so many a prompt pair, each with a share and a cfg of its own from these ranges."""

    candidates: int
    keep: int
    seed: int
    size: tuple[int, int]
    share: tuple[float, float] = (0.1, 0.9)
    cfg: tuple[float, float] = (7.5, 15.0)
    steps: int = 30
    sampler_name: str = "euler_ancestral"
    scheduler: str = "normal"


@dataclass(frozen=True)
class Judge:
    """Decides which candidates are kept: by CLIP, by a checker, or without either by how much has changed.

    `checker(before, after, pair)` gives a score of each candidate (N,) from IMAGE batches (N, H, W, 3) and their prompts: those above 0 are
    good, the highest best.
    """

    clip: Filter
    plain: PlainFilter
    vision: object = None
    text: object = None
    checker: Checker | None = None

    def __post_init__(self):
        if self.checker is not None and (self.vision is not None or self.text is not None):
            raise ValueError("Pairs are chosen by CLIP or by a checker. Connect clip_vision and clip_text, or checker.")
        if (self.vision is None) != (self.text is None):
            raise ValueError(
                "Filtering by CLIP needs clip_vision and clip_text, the text encoder that belongs to it. Connect both or neither."
            )

    def best(self, images: torch.Tensor, pair: PromptPair, top: int) -> list[tuple[int, dict[str, float]]]:
        """(number, what is known of it) of the candidates (N, 2, H, W, 3) to keep."""
        before, after = images.unbind(1)
        if self.checker is not None:
            scores = torch.as_tensor(self.checker(before, after, pair), dtype=torch.float64).flatten().tolist()
            if len(scores) != len(images):
                raise ValueError(f"The checker gave {len(scores)} scores for {len(images)} candidates; it has to give one for each.")
            good = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: -scores[i])
            return [(i, {"checker": scores[i]}) for i in good[:top]]
        if self.vision is None:
            changed = self.plain.changed(before, after)
            return [(i, {"changed": float(changed[i])}) for i in self.plain.best(changed, top)]
        seen = [self.vision.encode_image(images)["image_embeds"].float().cpu() for images in (before, after)]
        found = likeness(*seen, *(self._said(text, seen[0].shape[-1]) for text in (pair.before, pair.after)))
        values = asdict(found)
        return [(i, {f"clip_{k}": float(v[i]) for k, v in values.items()}) for i in self.clip.best(found, top)]

    def _said(self, text: str, width: int) -> torch.Tensor:
        found = projected(self.text, text)
        if found is None or found.shape[-1] != width:
            given = "none" if found is None else f"width {found.shape[-1]}"
            raise ValueError(
                f"clip_text gives embeddings of {given}, clip_vision of width {width}: connect the pair that belongs together."
            )
        if not all(_is_projection(t.text_projection.weight) for t in _towers(self.text) if t.text_projection.out_features == width):
            raise ValueError(
                "clip_text lacks the projection into the space that captions share with images (text_projection), as the text encoder of an "
                "SD1.5 checkpoint does. Connect Load CLIP with the whole CLIP file that clip_vision is of."
            )
        return found


def projected(clip, text: str) -> torch.Tensor | None:
    """A text's embedding (width,) in the space that CLIP shares with images; None of encoders without one.

    The host leaves the projection out where CLIP-L is the text encoder, as SD1.5 wants it.
    """
    stage, tokens = clip.cond_stage_model, clip.tokenize(text)
    stage.reset_clip_options()
    clip.load_model(tokens)
    stage.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        found = stage.encode_token_weights(tokens)[1]
    finally:
        stage.reset_clip_options()
    return None if found is None else found[0].float().cpu()


def _towers(clip) -> list[CLIPTextModel]:
    return [m for m in clip.cond_stage_model.modules() if isinstance(m, CLIPTextModel)]


def _is_projection(weight: torch.Tensor) -> bool:
    """Whether a matrix can be one that was learnt: where a file has none, the host leaves zeros or what was in that memory before."""
    weight = weight.float()
    return bool(weight.isfinite().all() and (weight - weight.diag().diag()).any(1).all())


@dataclass(frozen=True)
class Sharing(Control):
    """A control by which the second of two rows looks, in self-attention, where the first does, while the window is open.

    That is Prompt-to-Prompt as InstructPix2Pix's pairs are made with it: queries and keys alone, with the prompt and without.
    """

    places: tuple[Place, ...]
    window: Window

    def begin(self, scale: NoiseScale, noise: torch.Tensor) -> SharedRun:
        return SharedRun(self, scale)


class SharedRun(ControlRun):
    """Sharing during one run."""

    missing = "The conditionings of a pair lost their mark: another node replaced them."

    def __init__(self, control: Sharing, scale: NoiseScale):
        super().__init__(control.token, scale)
        self.window, self.places = control.window, control.places

    def sampler(self, sampler, noise, sigmas, seed, device):
        return with_shared_noise(sampler, noise[:1].to(device, torch.float32), 2, sigmas, seed)

    def wants(self, kind: str, place: Place) -> bool:
        return kind == "self" and self.percent in self.window

    def share_qk(self, call: UnetCall, first: int, tokens: int) -> None:
        call.source_row[first + 1] = first


@dataclass(frozen=True)
class Artist:
    """Draws candidates with the host's own sampling."""

    model: object
    clip: object
    vae: object
    negative: str
    recipe: Recipe

    @cached_property
    def places(self) -> tuple:
        return unet_places(self.model)

    @cached_property
    def untold(self) -> list:
        return encoded(self.clip, self.negative)

    @cached_property
    def told(self) -> Callable[[PromptPair], list]:
        """One CONDITIONING of both captions; the last is kept, as a prompt pair is drawn several times."""
        return lru_cache(1)(lambda pair: as_rows([encoded(self.clip, text) for text in (pair.before, pair.after)], 1)[0])

    def draw(self, pair: PromptPair, how: Draw) -> torch.Tensor:
        """Images (2, H, W, 3), before and after: the same noises, and while the window is open the same self-attention, with the prompt
        and without."""
        r, control = self.recipe, Sharing(self.places, Window(0.0, how.share))
        model = install(self.model, control)
        positive, negative = (marked(c, control.token) for c in (self.told(pair), self.untold))
        form = model.get_model_object("latent_format")
        empty = torch.zeros(2, form.latent_channels, *(n // form.spacial_downscale_ratio for n in r.size))
        noise = comfy.sample.prepare_noise(empty, how.seed, [0, 0])
        knobs = (r.steps, how.cfg, r.sampler_name, r.scheduler, positive, negative, empty)
        return decoded(self.vae, comfy.sample.sample(model, noise, *knobs, disable_pbar=True, seed=how.seed))[..., :3].cpu()


def way(artist: Artist, judge: Judge) -> dict:
    """How pairs are drawn and chosen, as progress.jsonl keeps it."""
    parts = artist.model, artist.clip.patcher, artist.vae.patcher
    drawn = [
        [w.layout, w.signs, traits(p.patches)] for p in parts for w in [Weights.of(p, "diffusion_model." if p is artist.model else "")]
    ]
    asked = {
        **asdict(artist.recipe),
        "negative": artist.negative,
        "filter": asdict(judge.plain if judge.vision is None else judge.clip) if judge.checker is None else traits(judge.checker),
        "models": hashlib.sha256(json.dumps([*drawn, artist.clip.layer_idx]).encode()).hexdigest()[:12],
    }
    return json.loads(json.dumps(asked))


def _check_way(now: dict, pairs: Sequence[PromptPair], done: dict[PromptPair, dict], folder: Folder) -> None:
    """Refuses prompt pairs that were drawn in another way: their images would be given out as if they were what is asked for."""
    others = [was for p in pairs if (was := done.get(p)) and {"models": now["models"], **was} != now]
    if others:
        changed = "; ".join(f"{k} was {others[0].get(k, 'not set')}, now {v}" for k, v in now.items() if others[0].get(k, v) != v)
        raise ValueError(
            f"'{folder.name}' holds {len(others)} of these prompt pairs, drawn otherwise: {changed}. Set these back to go on there, name another "
            "folder, or set if_exists to 'number it'."
        )


def make(artist: Artist, judge: Judge, pairs: Sequence[PromptPair], folder: Folder) -> None:
    """Draws what is not done yet. A stop by the user goes on as one, so that the host runs the node again; what is done is in the folder."""
    done, how = folder.done(), way(artist, judge)
    _check_way(how, pairs, done, folder)
    left = [p for p in pairs if p not in done]
    bar = comfy.utils.ProgressBar(len(left) * artist.recipe.candidates)
    try:
        for pair in left:
            _one_pair(artist, judge, pair, folder, bar, how)
    except Stopped:
        log.info("Stopped; %d of %d prompt pairs are done in %s", len(folder.done().keys() & set(pairs)), len(pairs), folder.path)
        raise


def _one_pair(artist: Artist, judge: Judge, pair: PromptPair, folder: Folder, bar, asked: dict) -> None:
    """Draws, filters and saves the candidates of one prompt pair; those that an interrupted run has saved stay and count."""
    r, listed = artist.recipe, folder.seeds(pair)
    how = draws(r.seed, pair, r.candidates, r.share, r.cfg)
    candidates = torch.stack(list(_drawn(artist, pair, how, bar)))
    best = [(i, known) for i, known in judge.best(candidates, pair, r.keep) if how[i].seed not in listed]
    kept = best[: max(0, r.keep - len(listed))]
    for i, known in kept:
        folder.add(candidates[i], Found(pair, {**asdict(how[i]), **known}))
    folder.finish(pair, len(how), len(listed) + len(kept), asked)


def _drawn(artist: Artist, pair: PromptPair, how: Sequence[Draw], bar) -> Iterator[torch.Tensor]:
    for one in how:
        comfy.model_management.throw_exception_if_processing_interrupted()
        made = artist.draw(pair, one)
        bar.update_absolute(bar.current + 1, bar.total, ("JPEG", side_by_side(made), 512))
        yield made
