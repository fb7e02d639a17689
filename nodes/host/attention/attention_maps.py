"""Attention maps inside ComfyUI's sampling: what to capture, the record of a run, and images of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image

from ....attention.call import QKSharing
from ....attention.layers import chosen
from ....attention.maps import Maps, Sums, heat, mask_of, phase_of
from ....attention.prompt_to_prompt import Window
from ....attention.word_lists import words_from
from ..conditionings import marked
from ..images import as_image, fitted, image_grid, resized, to_pil
from ..noise_levels import NoiseScale
from .hook import install, network_of, runs_of
from .words import WordReading, WordReadingRun, read_prompts, words_of


class CaptureRun(WordReadingRun):
    """Capture during one run. Of nodes that predict several copies of its batch at once the mean counts."""

    control: Capture

    def __init__(self, control: Capture, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.sums = Sums()

    def begin_anew(self) -> None:
        self.sums = Sums()

    @property
    def reading_now(self) -> bool:
        return self.percent in self.control.window

    def on_attention(self, call: QKSharing, first: int, tokens: int) -> None:
        maps = self.maps(call, first, tokens)
        if maps is not None:
            window = self.control.window
            key = phase_of(self.percent, window.start, window.end, self.control.phases), call.place.group
            self.sums.add(key, *self.summed(call.images(maps)))

    def end(self) -> None:
        super().end()
        self.sums.total = {key: total.cpu() for key, total in self.sums.total.items()}


@dataclass(frozen=True)
class Capture(WordReading):
    """The control: the part of the sampling, in equal phases."""

    node: ClassVar = "Attention Map Capture"
    run: ClassVar = CaptureRun
    window: Window = field(default_factory=Window)
    phases: int = 1


def prepare(model, clip, text: str, words: str, layers: str, start: float, end: float, phases: int, conditioning: list | None) -> tuple:
    """(model that captures, positive). `conditioning`: made from the same prompt by other nodes, instead of a plain encoding.

    Where it has rows of several prompts, `text` has a line for each.
    """
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"The part of the sampling runs from {start} to {end}; give 0 <= start_percent < end_percent <= 1.")
    network = network_of(model)
    prompts, conditioning = read_prompts(clip, text, conditioning, network["dit"])
    keys = chosen(layers, network["places"], "layers")
    if not keys:
        raise ValueError("layers is empty, so that nothing would be captured. Write 'all', or names of layers between commas.")
    pixels, length = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8), conditioning[0][0].shape[1]
    control = Capture(words_of(prompts, words), keys, window=Window(start, end), phases=phases, scale=pixels, length=length, **network)
    return install(model, control), marked(conditioning, control.token)


def maps_of(source, latent: dict) -> Maps:
    """The maps of the runs of a model, or of a guider over it, that made a LATENT; Maps as they are.

    Raises ValueError where no known run made it, or where nothing was captured.
    """
    if isinstance(source, Maps):
        return source
    runs: Sequence[CaptureRun] = runs_of(source, Capture, latent)
    sums = Sums.joined(run.sums for run in runs)
    if not sums.total:
        raise ValueError(
            "Nothing was captured in the run: no step was between start_percent and end_percent, the positive acts in an area alone, or context "
            "windows cut the video. Widen the range; use a mask instead of an area, and no windows."
        )
    control, size = runs[-1].control, runs[-1].latent[-2:]
    start, step = control.window.start, (control.window.end - control.window.start) / control.phases
    phases = tuple((start + i * step, start + (i + 1) * step) for i in range(control.phases))
    return Maps(tuple(control.words[0]), sums, phases, tuple(n * control.scale for n in size))


_STOPS = torch.tensor([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]) / 255
_TILE = 192  # pixels of a heat map's longer side


def colored(values: torch.Tensor) -> torch.Tensor:
    """Heat (h, w) in [0, 1] as colors (h, w, 3), dark to bright."""
    place = values.clamp(0, 1) * (len(_STOPS) - 1)
    low = place.floor().long().clamp_max(len(_STOPS) - 2)
    share = (place - low)[..., None]
    return _STOPS[low] * (1 - share) + _STOPS[low + 1] * share


def _tile(values: torch.Tensor, image: torch.Tensor | None, size: tuple[int, int]) -> Image.Image:
    """A heat map, over an image (H, W, 3) where there is one."""
    paint = colored(F.interpolate(heat(values)[None, None], size, mode="bicubic")[0, 0].clamp(0, 1))
    return to_pil(paint if image is None else 0.4 * resized(image, size) + 0.6 * paint)


def _rows(maps: Maps, words: Sequence[str], groups: Sequence[str], by: str) -> dict[str, torch.Tensor]:
    """Name and maps (images, words, h, w) of each row of the table."""
    if by == "layers":
        return {group: maps.mean(words, [group]) for group in groups or maps.groups}
    if by == "steps":
        return {f"{maps.phases[p][0]:.0%} - {maps.phases[p][1]:.0%}": maps.mean(words, groups, [p]) for p in maps.seen}
    return {"": maps.mean(words, groups)}


def table(maps: Maps, words: str, layers: str, by: str, image: torch.Tensor | None) -> torch.Tensor:
    """The maps of words as a table for each image, an IMAGE; `by`: "mean", a row for each group of "layers", or part of the "steps"."""
    asked, groups = words_from(words) or list(maps.words), _groups(layers)
    rows = _rows(maps, asked, groups, by)
    first, left, tables = next(iter(rows.values())), 92 if any(rows) else 0, []
    count, size = len(first), fitted(first.shape[-2:], _TILE)
    for i in range(count):
        under = None if image is None else image[i * len(image) // count, ..., :3].cpu().float()
        tiles = [[_tile(values, under, size) for values in found[i]] for found in rows.values()]
        tables.append(as_image(image_grid(tiles, asked, list(rows), left=left, top=22, ink="#222222")))
    return torch.cat(tables)


def _groups(layers: str) -> list[str]:
    """Names of groups between commas; none is all."""
    asked = words_from(layers)
    return [] if asked == ["all"] else asked


def mask(maps: Maps, word: str, layers: str, threshold: float, image: torch.Tensor | None) -> torch.Tensor:
    """Where the attention to a word (or to several, between commas) is: a MASK of the image's size."""
    found = maps.mean(words_from(word) or maps.words[:1], _groups(layers)).sum(1)
    return mask_of(found, maps.size if image is None else tuple(image.shape[1:3]), threshold)
