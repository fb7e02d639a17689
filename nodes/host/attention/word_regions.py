"""Regions by words inside ComfyUI's sampling: found from the attention of one prediction, and from then on the masks of conditionings.

Conditionings of regions wait in a run until their regions are known. Then they join their lists with these as ComfyUI's own masks, and the
whole prompt becomes ComfyUI's default conditioning, which has what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from node_helpers import conditioning_set_values as with_values

from ....attention.call import QKSharing
from ....attention.layers import chosen
from ....attention.row_plan import RowSelection
from ....attention.word_regions import described, filled, likeness, regions
from ....guidance.errors import listed, quoted
from ..conditionings import check_conditionings, marked
from ..evaluation_order import AnyOrderSampler, Restarting
from ..images import as_image, fitted, image_grid, resized, to_pil
from ..noise_levels import Level, NoiseScale
from .hook import install, network_of, runs_of
from .unet import blend_places
from .words import WordReading, WordReadingRun, read_prompts, words_of

REGION = "controlled_diffusion.word_region"  # of conditionings: (token of the control, number of the phrase or REST)
REST = -1
SHARED = ("hooks", "start_percent", "end_percent")  # what a region's negative has of its conditioning
NEAR = 0.002  # percent of the sampling by which a step may be early
COLORS = torch.tensor([(230, 80, 60), (60, 130, 230), (90, 190, 90), (235, 180, 50), (170, 90, 210), (60, 190, 200), (230, 130, 180), (140, 110, 80)]) / 255
TILE = 192  # pixels of a mask's longer side


@dataclass(frozen=True)
class Finding:
    """How regions are found: at the first prediction from `percent` of the sampling on, after which the run begins again with `restart`.

    `layers` as a text; `anchors` and `rest` as of `likeness`, `spread` as of `regions`.
    """

    restart: bool = False
    percent: float = 0.2
    layers: str = ""
    anchors: float = 0.1
    rest: float = 0.5
    spread: int = 0


class WordRegionsRun(WordReadingRun):
    """Word Regions during one run. `masks` (images, phrases, [frames,] H, W) once they are known."""

    control: WordRegions

    def __init__(self, control: WordRegions, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.masks: torch.Tensor | None = None
        self.empty: torch.Tensor | None = None
        self.waiting: list[tuple[list[dict], dict]] = []  # (list of the run, conditioning of a region)
        self.finds, self.found = False, 0
        self.read_at: float | None = None  # the sigma at which attention was read
        self.late = False  # whether the regions are known only after the last prediction

    def due(self, sigma: float) -> bool:
        return self.scale.percent(sigma) >= self.control.finding.percent - NEAR

    def sampler(self, sampler, noise, sigmas, seed, device):
        steps = next((i + 1 for i, sigma in enumerate(sigmas[:-1].tolist()) if self.due(sigma)), 0)
        restarts = self.control.finding.restart and self.masks is None and steps and not isinstance(sampler, AnyOrderSampler)
        return Restarting(sampler, steps) if restarts else sampler

    def follow(self, earlier, device):
        if earlier.masks is not None:
            self.masks, self.empty = earlier.masks.to(device), earlier.empty

    def start(self, conds, x):
        super().start(conds, x)
        for own in conds.values():
            self.waiting += [(own, given) for given in own if self._number(given) not in (None, REST)]
            own[:] = [given for given in own if self._number(given) in (None, REST)]
        if self.masks is not None:
            self.steer()

    def _number(self, given: dict) -> int | None:
        token, number = given.get(REGION, (None, None))
        return number if token == self.control.token else None

    def before(self, x: torch.Tensor) -> torch.Tensor:
        self.settle(self.level)
        self.finds = self.masks is None and self.due(self.level.sigma)
        return x

    @property
    def reading_now(self) -> bool:
        return self.finds

    def on_attention(self, call: QKSharing, first: int, tokens: int) -> None:
        maps = self.maps(call, first, tokens)
        if maps is not None:
            rows = RowSelection(range(first, first + self.images))
            found = call.images(likeness(maps, call.features(rows), self.control.finding.anchors, self.control.finding.rest))
            found, _ = self.summed(found)
            size = self.found.shape[2:] if torch.is_tensor(self.found) else found.shape[2:]
            self.found = self.found + F.interpolate(found, size, mode="trilinear" if found.ndim == 5 else "bilinear")

    def after(self, denoised: torch.Tensor) -> torch.Tensor:
        """Raises ValueError where the prompt was evaluated, but nothing could be read."""
        finds, self.finds = self.finds and bool(self.evaluated), False
        if finds and not torch.is_tensor(self.found):
            raise ValueError(
                "Word Regions could not read the attention of its prompt: the positive acts in an area alone, context windows cut the video, or a cache of "
                "another node gave the prediction. Use no area, windows or cache on it."
            )
        self.read_at = self.level.sigma if finds else self.read_at
        return denoised

    def settle(self, level: Level | None = None) -> None:
        """The regions are known, and act, once another level is predicted, or another pass begins: nodes may read one level in several parts."""
        if self.read_at is not None and self.masks is None and (level is None or level.sigma != self.read_at):
            self._find()
            self.steer()

    def begin_anew(self) -> None:
        self.settle()

    def _find(self) -> None:
        found = self.found if len(self.latent) == self.found.ndim - 2 else self.found[:, :, None].expand(-1, -1, *self.latent[:1], -1, -1)
        masks, given = regions(found, len(self.control.phrases), self.latent, self.control.finding.spread), self._given()
        for mask in given.values():
            masks = masks * (1 - mask[:, None].to(masks))
        for number, mask in given.items():
            masks[:, number] = mask.to(masks)
        asked = [[bool(columns) for columns in phrases] for rows, phrases in self.control.images(len(masks)) for _ in rows]
        self.masks, self.empty = filled(masks, torch.tensor(asked, device=masks.device))

    def _given(self) -> dict[int, torch.Tensor]:
        """Masks (B or 1, [frames,] H, W) of a conditioning's own, by the number of its phrase."""
        return {self._number(given): given["mask"] for _, given in self.waiting if "mask" in given}

    def steer(self) -> None:
        """The regions' conditionings join their lists."""
        for own, given in self.waiting:
            own.append({**given, "mask": self.masks[:, self._number(given)]})
        for own in {id(own): own for own, _ in self.waiting}.values():
            for given in own:
                if self._number(given) == REST:
                    given["default"] = True
        self.waiting = []

    def regions_at(self, level: Level) -> dict[str, torch.Tensor | None]:
        self.settle(level)
        return {p: None if self.masks is None else self.masks[:, i : i + 1] for i, p in enumerate(self.control.phrases)}

    @property
    def lines(self) -> list[str]:
        return described(self.control.phrases, self.masks, self.empty)

    @property
    def warnings(self) -> list[str]:
        if self.masks is None and self.started:
            return [f"no step was at or after {self.control.finding.percent:.0%} of the sampling: no region was found, and none acted"]
        late = ["the regions were found in the last prediction of this run: none acted in it"] if self.late else []
        return late if self.masks is None else late + [line for line, empty in zip(self.lines, self.empty) if empty.any()]

    def end(self) -> None:
        self.late = self.read_at is not None and self.masks is None and bool(self.waiting)
        self.settle()
        super().end()
        self.waiting, self.found = [], 0
        if self.masks is not None:
            self.masks, self.empty = self.masks.cpu(), self.empty.cpu()


@dataclass(frozen=True)
class WordRegions(WordReading):
    """The control."""

    node: ClassVar = "Word Regions"
    run: ClassVar = WordRegionsRun
    finding: Finding = Finding()

    @property
    def phrases(self) -> tuple[str, ...]:
        return tuple(self.words[0])


@dataclass(frozen=True)
class Task:
    """What Word Regions is asked for: `conditionings` of phrases by their number, and `conditioning` of the whole prompt from other nodes."""

    prompt: str
    phrases: str
    finding: Finding
    conditionings: Mapping[int, list]
    conditioning: list | None = None
    negative: list | None = None

    def check(self, model, phrases: Sequence[str]) -> None:
        last = max(self.conditionings, default=-1)
        if last >= len(phrases):
            raise ValueError(
                f"region_{last} is connected, but there are {len(phrases)} phrase(s): {listed(phrases) or 'none'}. Write a phrase of the prompt for each region, "
                "one a line, in their order; the first is that of region_0."
            )
        empty = next((i for i, conditioning in self.conditionings.items() if not conditioning), None)
        if empty is not None:
            raise ValueError(f"region_{empty} is a conditioning without any part. Connect the region's prompt as CLIP Text Encode gives it, or nothing.")
        check_conditionings(model, {f"The conditioning of {quoted(phrases[i])}": c for i, c in self.conditionings.items()})


def prepare(model, clip, task: Task) -> tuple:
    """(patched model, positive, negative or None). Without phrases the model itself."""
    network = network_of(model)
    prompts, whole = read_prompts(clip, task.prompt, task.conditioning, network["dit"])
    words = words_of(prompts, task.phrases) if task.phrases.strip() else ({},)
    task.check(model, tuple(words[0]))
    if not words[0]:
        return model, whole, task.negative
    pixels = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    layers = _layers(**network, text=task.finding.layers.strip())
    control = WordRegions(words, layers, finding=task.finding, scale=pixels, length=whole[0][0].shape[1], **network)
    positive = marked(with_values(whole, {REGION: (control.token, REST)}), control.token)
    for number, conditioning in task.conditionings.items():
        positive = positive + with_values(conditioning, {REGION: (control.token, number)})
    return install(model, control), positive, task.negative and _negatives(task, control)


def _layers(places, dit, text: str) -> frozenset:
    """The keys of the layers to read: those of a text, or of UNets the coarse ones of the output side and of DiTs the middle third."""
    if text or dit:
        return chosen(text or "middle", places, "layers")
    output = [p for p in places if p.block == "output"]
    return frozenset(p.key for p in blend_places(output or places, (16, 16)))


def _negatives(task: Task, control: WordRegions) -> list:
    """The negative, and where a region's conditioning carries hooks such as a LoRA the same with them, in its region and part of the sampling."""
    made = with_values(task.negative, {REGION: (control.token, REST)})
    for number, conditioning in task.conditionings.items():
        for shared in _shared(conditioning):
            made += with_values(task.negative, {**shared, REGION: (control.token, number)})
    return made


def _shared(conditioning: list) -> list[dict]:
    """What the parts of a region's conditioning that carry hooks share with its negative, each once."""
    found = []
    for _, values in conditioning:
        shared = {name: values[name] for name in SHARED if name in values}
        if values.get("hooks") is not None and shared not in found:
            found.append(shared)
    return found


def run_with(source, latent: dict) -> WordRegionsRun:
    """The run of Word Regions that made a LATENT; `source` is the model, or a guider over it. Raises ValueError where none is known."""
    run = runs_of(source, WordRegions, latent)[-1]
    if run.masks is None:
        raise ValueError(f"No region was found in the run: no step was at or after {run.control.finding.percent:.0%} of the sampling. Lower find_percent.")
    return run


def masks_of(run: WordRegionsRun, phrase: str) -> torch.Tensor:
    """MASK (N, H, W) in pixels of a phrase, for each image and frame; of all phrases, one after the other, where it is empty."""
    known = [p.casefold() for p in run.control.phrases]
    if phrase.strip() and phrase.strip().casefold() not in known:
        raise ValueError(f"{quoted(phrase.strip())} is none of the phrases of the run: {listed(run.control.phrases)}.")
    masks = run.masks if not phrase.strip() else run.masks[:, [known.index(phrase.strip().casefold())]]
    flat = masks.transpose(0, 1).flatten(0, -3)
    return F.interpolate(flat[:, None], scale_factor=run.control.scale, mode="nearest")[:, 0]


def table(run: WordRegionsRun, images: torch.Tensor | None) -> torch.Tensor:
    """A row for each image: all regions in colors, then each; over the images where there are any. Of a video its middle frame."""
    masks = run.masks if run.masks.ndim == 4 else run.masks[:, :, run.masks.shape[2] // 2]
    size, rows = fitted(masks.shape[-2:], TILE), []
    for i, own in enumerate(masks):
        under = None if images is None else resized(images[(2 * i + 1) * len(images) // (2 * len(masks)), ..., :3].float().cpu(), size)
        wide = F.interpolate(own[None], size)[0]
        parts = [range(len(own)), *([n] for n in range(len(own)))]
        rows.append([to_pil(_painted(wide, part, under)) for part in parts])
    return as_image(image_grid(rows, ["regions", *run.control.phrases], [f"{i + 1}" for i in range(len(rows))], left=24))


def _painted(masks: torch.Tensor, numbers: Sequence[int], under: torch.Tensor | None) -> torch.Tensor:
    """Some of the masks (C, H, W) in their colors, over an image (H, W, 3) or black."""
    paint = sum(masks[n, ..., None] * COLORS[n % len(COLORS)] for n in numbers)
    if under is None:
        return paint.clamp(0, 1)
    covered = sum(masks[n, ..., None] for n in numbers).clamp(0, 1)
    return (0.5 * under + 0.5 * (paint + (1 - covered) * under)).clamp(0, 1)
