"""Attention maps inside the host's sampling: what to capture, the record of a run, and pictures of it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ...attention.alignment import Prompt, unknown_word, words_from
from ...attention.maps import Maps, Sums, heat, mask_of, phase_of
from ...guidance.schedules import NoiseScale
from .attention import KEY, Call, Place, Run, chosen_places, install, is_unet, marked, unet_places
from .joint_attention import Block, Dit, TokenCall, chosen_blocks, dit_of
from .pictures import as_image
from .prompts import encoded, prompt_of

MISSING = (
    "The model comes from Attention Map Capture, but none of the conditionings that are sampled is the 'positive' of that node. Connect it to the "
    "sampler's positive (through ControlNet and the like if you want), or use the model from before the node."
)


@dataclass(frozen=True)
class Capture:
    """The control: the columns of each word, the layers (keys of places), and the part of the sampling, in equal phases."""

    words: dict[str, tuple[int, ...]]
    layers: frozenset
    places: tuple[Place, ...] = ()
    dit: Dit | None = None
    window: tuple[float, float] = (0.0, 1.0)
    phases: int = 1
    scale: int = 8  # pixels of a latent's cell
    length: int = 77  # columns of the conditioning
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: list[Capturing] = field(default_factory=list, compare=False)  # the last one, for Attention Map View

    def begin(self, scale: NoiseScale, noise: torch.Tensor) -> Capturing:
        self.runs[:] = [Capturing(self, scale, tuple(noise.shape[-2:]))]
        return self.runs[0]


class Capturing(Run):
    """Capture during one run."""

    def __init__(self, control: Capture, scale: NoiseScale, size: tuple[int, int]):
        super().__init__(control.token, scale, MISSING)
        self.control, self.places, self.dit, self.size = control, control.places, control.dit, size
        self.sums, self.pictures = Sums(), 1

    def start(self, conds, x, sigma):
        super().start(conds, x, sigma)
        self.pictures = len(x)

    @property
    def acts(self) -> bool:
        start, end = self.control.window
        return start <= self.percent < end or self.percent >= end == 1.0

    def wants(self, kind: str, place: Place | Block) -> bool:
        return kind != "self" and place.key in self.control.layers and self.acts

    def see(self, call: Call | TokenCall, first: int, tokens: int) -> None:
        size = self._size(call)
        if size is not None:
            lead = self.dit.lead(self.control.length, tokens) if self.dit else 0
            columns = [[lead + c for c in word] for word in self.control.words.values()]
            maps = call.shares(list(range(first, first + self.pictures)), tokens, columns)
            key = phase_of(self.percent, *self.control.window, self.control.phases), call.place.group
            self.sums.add(key, maps.unflatten(-1, size))

    def _size(self, call: Call | TokenCall) -> tuple[int, ...] | None:
        """The layer's picture; None where it is not all of the picture, as in an area of a conditioning."""
        if isinstance(call, TokenCall):
            return call.size if call.size[0] > 1 else call.size[1:]
        return call.size if call.size == tuple(math.ceil(n / call.place.scale) for n in self.size) else None

    def end(self) -> None:
        self.sums.total = {key: total.cpu() for key, total in self.sums.total.items()}

    @property
    def maps(self) -> Maps:
        (start, end), phases = self.control.window, self.control.phases
        step = (end - start) / phases
        parts = tuple((start + i * step, start + (i + 1) * step) for i in range(phases))
        return Maps(tuple(self.control.words), self.sums, parts, tuple(n * self.control.scale for n in self.size))


def words_of(prompt: Prompt, text: str) -> dict[str, tuple[int, ...]]:
    """The columns of the words and phrases of a text; of every word of the prompt where it is empty."""
    asked = words_from(text) or list(dict.fromkeys(w.text for w in prompt.words if w.text[0].isalnum()))
    found = {}
    for phrase in asked:
        places = prompt.find(phrase)
        if not places:
            raise unknown_word(phrase, [prompt])
        found[phrase] = prompt.columns(i for words in places for i in words)
    if not found:
        raise ValueError("The prompt has no words. Write one, so that there is something to look for.")
    return found


def prepared(model, clip, text: str, words: str, layers: str, window: tuple[float, float], phases: int, conditioning: list | None) -> tuple:
    """(model that captures, positive). `conditioning`: made from the same prompt by other nodes, in the place of a plain encoding."""
    if not 0.0 <= window[0] < window[1] <= 1.0:
        raise ValueError(f"The part of the sampling runs from {window[0]} to {window[1]}; give 0 <= start_percent < end_percent <= 1.")
    own = encoded(clip, text)
    prompt = prompt_of(clip, text, own[0][0].shape[1])
    for features, _ in conditioning or ():
        if features.shape[1] < prompt.length or len(features) > 1:
            raise ValueError(
                f"The conditioning holds {len(features)} text(s) of {features.shape[1]} tokens, but the prompt '{text}' makes one of {prompt.length}. "
                "Connect the conditioning of just this prompt, or none."
            )
    conditioning = conditioning or own
    made = Capture(
        words_of(prompt, words), frozenset(), window=window, phases=phases, scale=_pixels(model), length=conditioning[0][0].shape[1]
    )
    if is_unet(model):
        places = unet_places(model)
        made = replace(made, layers=chosen_places(layers, places, "layers"), places=places)
    else:
        dit = dit_of(model)
        made = replace(made, layers=chosen_blocks(layers, dit.places, "layers"), dit=dit)
    if not made.layers:
        raise ValueError("layers is empty, so that nothing would be captured. Write 'all', or names of layers between commas.")
    return install(model, made), marked(conditioning, made.token)


def _pixels(model) -> int:
    return getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)


def maps_of(source) -> Maps:
    """The maps of the last run of a model, or of a guider over it; Maps as they are."""
    if isinstance(source, Maps):
        return source
    patcher = getattr(source, "model_patcher", source)
    controls = getattr(patcher, "model_options", {}).get("transformer_options", {}).get(KEY, ())
    run = next((c.runs[0] for c in reversed(controls) if isinstance(c, Capture) and c.runs), None)
    if run is None:
        raise ValueError(
            f"There is no finished run to look at: {type(source).__name__} did not sample with Attention Map Capture. Connect the model of that "
            "node, or the guider over it, and the latent that was sampled with it."
        )
    if not run.sums.total:
        raise ValueError(
            "Nothing was captured in the run: no step lay between start_percent and end_percent, or the positive acts in an area alone. Widen the "
            "range; use a mask in the place of an area."
        )
    return run.maps


# --- pictures

_STOPS = torch.tensor([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]) / 255
_TILE, _EDGE, _INK = 192, 22, "#222222"


def colored(values: torch.Tensor) -> torch.Tensor:
    """Heat (h, w) in [0, 1] as colours (h, w, 3), dark to bright."""
    place = values.clamp(0, 1) * (len(_STOPS) - 1)
    low = place.floor().long().clamp_max(len(_STOPS) - 2)
    share = (place - low)[..., None]
    return _STOPS[low] * (1 - share) + _STOPS[low + 1] * share


def _tile(values: torch.Tensor, picture: torch.Tensor | None, size: tuple[int, int]) -> Image.Image:
    """A heat map, over a picture (H, W, 3) where there is one."""
    wide = F.interpolate(heat(values)[None, None], size, mode="bicubic")[0, 0].clamp(0, 1)
    paint = colored(wide)
    if picture is not None:
        under = F.interpolate(picture.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)
        paint = 0.4 * under + 0.6 * paint
    return Image.fromarray((paint * 255 + 0.5).to(torch.uint8).numpy())


def _table(rows: Sequence[tuple[str, torch.Tensor]], words: Sequence[str], picture: torch.Tensor | None) -> Image.Image:
    """A row of heat maps (words, h, w) for each name, and the words above."""
    height, width = rows[0][1].shape[-2:]
    size = (round(_TILE * height / max(height, width)), round(_TILE * width / max(height, width)))
    left = 0 if len(rows) == 1 and not rows[0][0] else 92
    paper = Image.new("RGB", (left + len(words) * (size[1] + 4), _EDGE + len(rows) * (size[0] + 4)), "#ffffff")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    for column, word in enumerate(words):
        draw.text((left + column * (size[1] + 4) + size[1] // 2, 3), word, fill=_INK, font=font, anchor="ma")
    for row, (name, maps) in enumerate(rows):
        top = _EDGE + row * (size[0] + 4)
        draw.text((left // 2, top + size[0] // 2), name, fill=_INK, font=font, anchor="mm")
        for column, values in enumerate(maps):
            paper.paste(_tile(values, picture, size), (left + column * (size[1] + 4), top))
    return paper


def _rows(maps: Maps, words: Sequence[str], groups: Sequence[str], by: str) -> list[tuple[str, torch.Tensor]]:
    """(name, maps of all pictures) of each row of the table."""
    if by == "layers":
        return [(group, maps.of(words, [group])) for group in groups or maps.groups]
    if by == "steps":
        return [(f"{maps.phases[p][0]:.0%} - {maps.phases[p][1]:.0%}", maps.of(words, groups, [p])) for p in maps.seen]
    return [("", maps.of(words, groups))]


def table(maps: Maps, words: str, layers: str, by: str, image: torch.Tensor | None) -> torch.Tensor:
    """The maps of words as a table for each picture, an IMAGE; `by`: "mean", a row for each group of "layers", or part of the "steps"."""
    asked, groups = words_from(words) or list(maps.words), _groups(layers)
    rows = _rows(maps, asked, groups, by)
    pictures = len(rows[0][1])
    under = [None if image is None else image[i * len(image) // pictures, ..., :3].cpu().float() for i in range(pictures)]
    return torch.cat([as_image(_table([(name, found[i]) for name, found in rows], asked, under[i])) for i in range(pictures)])


def _groups(layers: str) -> list[str]:
    """Names of groups between commas; none is all."""
    asked = words_from(layers)
    return [] if asked == ["all"] else asked


def mask(maps: Maps, word: str, layers: str, threshold: float, image: torch.Tensor | None) -> torch.Tensor:
    """Where the model looks at a word (or at several, between commas): a MASK of the picture's size."""
    found = maps.of(words_from(word) or maps.words[:1], _groups(layers)).sum(1)
    return mask_of(found, maps.size if image is None else tuple(image.shape[1:3]), threshold)
