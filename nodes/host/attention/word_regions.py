"""Regions by words inside ComfyUI's sampling: found from the attention of one prediction, and from then on the masks of conditionings.

Conditionings of regions wait in a run until their regions are known. Then they join their lists with these as ComfyUI's own masks, and the
whole prompt becomes ComfyUI's default conditioning, which has what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from comfy.hooks import EnumHookType, HookGroup
from node_helpers import conditioning_set_values as with_values

from ....attention.call import QKSharing
from ....attention.layers import chosen
from ....attention.row_plan import RowSelection
from ....attention.word_regions import described, filled, likeness, regions
from ....guidance.errors import listed, quoted
from ..conditionings import check_conditionings, marked
from ..evaluation_order import AnyOrderSampler, Keyframes, Restarting
from ..images import as_image, fitted, image_grid, resized, to_pil
from ..noise_levels import Level, NoiseScale
from . import region_loras
from .hook import install, network_of, runs_of
from .region_loras import CallMasks, RegionLora, loras_of
from .unet import blend_places
from .words import WordReading, WordReadingRun, read_prompts, words_of

REGION = "controlled_diffusion.word_region"  # of conditionings: (token of the control, number of the phrase or REST)
REST = -1
NEAR = 0.002  # percent of the sampling by which a step may be early
COLORS = torch.tensor([(230, 80, 60), (60, 130, 230), (90, 190, 90), (235, 180, 50), (170, 90, 210), (60, 190, 200), (230, 130, 180), (140, 110, 80)]) / 255
TILE = 192  # pixels of a mask's longer side


@dataclass(frozen=True)
class Finding:
    """How regions are found: at the first prediction from `percent` of the sampling on. They act from `start` of it: the run begins again for that
    where this is earlier.

    `layers` as a text; `anchors` and `rest` as of `likeness`, `spread` as of `regions`.
    """

    percent: float = 0.45
    start: float = 0.15
    layers: str = ""
    anchors: float = 0.1
    rest: float = 0.5
    spread: int = 0

    @property
    def restarts(self) -> bool:
        return self.start < self.percent - NEAR


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
        self.searches = False  # in a first pass, which only finds the regions
        self.keyframes, self.layers = Keyframes(()), {}  # and of the LoRAs' layers, whether they have tokens

    def due(self, sigma: float, percent: float) -> bool:
        return self.scale.percent(sigma) >= percent - NEAR

    def acts_at(self, sigma: float) -> bool:
        """Whether regions are known and act."""
        return self.masks is not None and not self.searches and self.due(sigma, self.control.finding.start)

    def sampler(self, sampler, noise, sigmas, seed, device):
        finding, self.keyframes = self.control.finding, Keyframes(sigmas)
        steps = next((i + 1 for i, sigma in enumerate(sigmas[:-1].tolist()) if self.due(sigma, finding.percent)), 0)
        self.searches = bool(finding.restarts and self.masks is None and steps and not isinstance(sampler, AnyOrderSampler))
        return Restarting(sampler, steps) if self.searches else sampler

    def begin_anew(self):
        self.settle()
        self.searches = False

    def follow(self, earlier, device):
        if earlier.masks is not None:
            self.masks, self.empty = earlier.masks.to(device), earlier.empty

    def start(self, conds, x):
        super().start(conds, x)
        for own in conds.values():
            self.waiting += [(own, given) for given in own if self._number(given) not in (None, REST)]
            own[:] = [given for given in own if self._number(given) in (None, REST)]

    def _number(self, given: dict) -> int | None:
        token, number = given.get(REGION, (None, None))
        return number if token == self.control.token else None

    def before(self, x: torch.Tensor) -> torch.Tensor:
        self.settle(self.level)
        self.finds = self.masks is None and self.due(self.level.sigma, self.control.finding.percent)
        if self.waiting and self.acts_at(self.level.sigma):
            self.steer()
        return x

    def around(self, call):
        if not self.control.loras or not self.acts_at(self.evaluated_level.sigma):
            return nullcontext()
        region_loras.check(self.dit, call, self.latent)
        acting = [self._acting(lora, call, self.evaluated_level.sigma) for lora in self.control.loras]
        return region_loras.acting(call.model, acting, self.layers)

    def _acting(self, lora: RegionLora, call, sigma: float) -> tuple:
        """What `region_loras.acting` wants of one."""
        device = call.x.device
        parts = self.cache.get(("LoRA", lora, device), lambda: [part.on(device) for part in lora.parts])
        key = "masks", lora.number, len(call.x), call.text, tuple(call.parts), device
        masks = self.cache.get(key, lambda: self._call_masks(lora.number, call))
        return parts, lora.strength(call.model, sigma, self.keyframes), masks

    def _call_masks(self, number: int, call) -> CallMasks:
        image, text = self.masks[:, number].to(call.x.device), call.x.new_zeros(len(call.x), call.text)
        for first, tokens in call.parts:
            for rows, words in self._words(first, tokens):
                columns = [c + copy * tokens for copy in range(call.text // tokens) for c in words[number]]
                text[torch.tensor(rows)[:, None], columns] = 1
        return CallMasks(self.dit, image.repeat(len(call.x) // len(image), *[1] * (image.ndim - 1)), text)

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
        return {p: None if not self.acts_at(level.sigma) else self.masks[:, i : i + 1] for i, p in enumerate(self.control.phrases)}

    @property
    def lines(self) -> list[str]:
        return described(self.control.phrases, self.masks, self.empty)

    @property
    def warnings(self) -> list[str]:
        if self.masks is None and self.started:
            return [f"no step was at or after {self.control.finding.percent:.0%} of the sampling: no region was found, and none acted"]
        others = sum(not found for found in self.layers.values())
        told = ["the regions were found in the last prediction of this run: none acted in it"] if self.late else []
        told += [f"{others} of {len(self.layers)} layers of the LoRAs have no tokens, as that of the timestep, and did not act in regions"] if others else []
        return told + ([] if self.masks is None else [line for line, empty in zip(self.lines, self.empty) if empty.any()])

    def end(self) -> None:
        self.late = self.read_at is not None and self.masks is None and bool(self.waiting or self.control.loras)
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
    loras: tuple[RegionLora, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        return tuple(self.words[0])


@dataclass(frozen=True)
class Task:
    """What Word Regions is asked for: in `regions`, by the number of a phrase, a CONDITIONING or the HOOKS of a LoRA; `conditioning` of the whole
    prompt from other nodes."""

    prompt: str
    phrases: str
    finding: Finding
    regions: Mapping[int, list | HookGroup]
    conditioning: list | None = None

    def check(self, model, phrases: Sequence[str]) -> None:
        last = max(self.regions, default=-1)
        if last >= len(phrases):
            raise ValueError(
                f"region_{last} is connected, but there are {len(phrases)} phrase(s): {listed(phrases) or 'none'}. Write a phrase of the prompt for each region, "
                "one a line, in their order; the first is that of region_0."
            )
        empty = next((i for i, given in self.regions.items() if not len(given)), None)
        if empty is not None:
            raise ValueError(f"region_{empty} has nothing in it. Connect the region's prompt as CLIP Text Encode gives it, a LoRA as Create Hook LoRA, or nothing.")
        prompts = {i: given for i, given in self.regions.items() if not isinstance(given, HookGroup)}
        for number, conditioning in prompts.items():
            hooks = [values["hooks"] for _, values in conditioning if values.get("hooks") is not None]
            if any(group.get_type(EnumHookType.Weight) for group in hooks):
                raise ValueError(
                    f"The conditioning of region_{number} carries a LoRA, which would cost a pass of its own. Connect the HOOKS of Create Hook LoRA to "
                    f"region_{number} instead, and write its trigger word in the prompt, as part of the phrase."
                )
        check_conditionings(model, {f"The conditioning of {quoted(phrases[i])}": c for i, c in prompts.items()})


def prepare(model, clip, task: Task) -> tuple:
    """(patched model, positive). Without phrases the model itself."""
    network = network_of(model)
    prompts, whole = read_prompts(clip, task.prompt, task.conditioning, network["dit"])
    words = words_of(prompts, task.phrases) if task.phrases.strip() else ({},)
    names = tuple(words[0])
    task.check(model, names)
    if not names:
        return model, whole
    pixels = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    layers = _layers(**network, text=task.finding.layers.strip())
    loras = [lora for i, given in task.regions.items() if isinstance(given, HookGroup) for lora in loras_of(model, clip, given, i, names[i])]
    knobs = dict(finding=task.finding, scale=pixels, length=whole[0][0].shape[1], loras=tuple(loras))
    control = WordRegions(words, layers, **knobs, **network)
    positive = marked(with_values(whole, {REGION: (control.token, REST)}), control.token)
    for number, given in task.regions.items():
        positive = positive + ([] if isinstance(given, HookGroup) else with_values(given, {REGION: (control.token, number)}))
    return install(model, control), positive


def _layers(places, dit, text: str) -> frozenset:
    """The keys of the layers to read: those of a text, or of UNets the coarse ones of the output side and of DiTs the middle third."""
    if text or dit:
        return chosen(text or "middle", places, "layers")
    output = [p for p in places if p.block == "output"]
    return frozenset(p.key for p in blend_places(output or places, (16, 16)))


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
