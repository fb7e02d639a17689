"""Reads an image of the illustrated world back into things, masks, colors, ground and style, by a small network.

Its training, on clean scenes with some things scrambled, is tests/demo/illustrated_reader.py. `judge` compares what is read with what a
caption claims, `pair_score` the images before and after an edit with their sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from . import checker, packing
from .illustrated_captions import Caption, caption_of
from .illustrated_drawings import COLORS, THINGS
from .illustrated_grounds import GROUNDS, SIZE
from .illustrated_scenes import OFF_CENTER, STYLES

CELL = 4  # pixels of the image to one cell of the map of things
NOTHING, UNKNOWN = 0, len(THINGS) + 1  # classes of a cell; things are between them
SMALLEST = 16  # cells; anything below is a speck
SURE = 0.5  # probability below which a thing is unknown


@dataclass(frozen=True)
class Seen:
    """One thing found in an image. `name` is "unknown" where its shape is not that of a thing of the world."""

    name: str
    color: str
    place: str
    mask: np.ndarray  # bool (192, 192)
    probability: float


@dataclass(frozen=True)
class Reading:
    """All that is seen in an image; things largest first."""

    ground: str
    style: str
    things: tuple[Seen, ...]


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.next_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv, self.next_conv = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.next_conv(F.silu(self.next_norm(self.conv(F.silu(self.norm(x))))))


class Reader(nn.Module):
    """Images (B, 3, 192, 192) in [0, 1] to logits: cells (B, 27, 48, 48), colors (B, 7, 48, 48), ground (B, 10) and style (B, 4)."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 144, 192)):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(CELL), nn.Conv2d(3 * CELL**2, widths[0], 3, padding=1))
        self.stages = nn.ModuleList(nn.Sequential(*(Block(w) for _ in range(2 if i else 1))) for i, w in enumerate(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(Block(w) for w in widths[:-1])
        self.cells, self.colors = nn.Conv2d(widths[0], UNKNOWN + 1, 1), nn.Conv2d(widths[0], len(COLORS), 1)
        self.ground, self.style = nn.Linear(sum(widths), len(GROUNDS)), nn.Linear(sum(widths), len(STYLES))

    def forward(self, images):
        x, kept = self.stem(2 * images - 1), []
        for stage, down in zip(self.stages, [*self.down, nn.Identity()]):
            x = stage(x)
            kept.append(x)
            x = down(x)
        pooled = torch.cat([part.mean((2, 3)) for part in kept], 1)
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(kept[:-1])):
            x = merge(skip + F.interpolate(up(x), scale_factor=2.0))
        return self.cells(x), self.colors(x), self.ground(pooled), self.style(pooled)


def load(path: Path | str) -> Reader:
    """The trained reader."""
    reader = Reader().to(memory_format=torch.channels_last)
    reader.load_state_dict({k: v.float() for k, v in packing.restored(load_file(path)).items()})
    return reader.requires_grad_(False).eval()


def _sized(image: np.ndarray) -> np.ndarray:
    return image if image.shape[:2] == (SIZE, SIZE) else np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BOX))


def _place(mask: np.ndarray) -> str:
    offset = np.flatnonzero(mask.any(0)).mean() - SIZE / 2
    return "middle" if abs(offset) < OFF_CENTER else "left" if offset < 0 else "right"


def _seen(region: np.ndarray, cells: np.ndarray, colors: np.ndarray) -> Seen:
    """What a region of cells, bool (48, 48), shows; `cells` (27, 48, 48) and `colors` (7, 48, 48) are probabilities."""
    of_classes = cells[1:, region].mean(1)
    best = int(of_classes.argmax())
    name = THINGS[best] if best < len(THINGS) and of_classes[best] > SURE else "unknown"
    mask = region.repeat(CELL, 0).repeat(CELL, 1)
    return Seen(name, list(COLORS)[int(colors[:, region].mean(1).argmax())], _place(mask), mask, float(of_classes[best]))


def _regions(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Regions of one thing each: connected cells, divided where two classes hold a third of them each."""
    winner = 1 + cells[1:].argmax(0)
    for blob in checker._components(cells[NOTHING] < 0.5):
        votes = np.bincount(winner[blob], minlength=UNKNOWN + 1)
        strong = [c for c in votes.argsort()[::-1] if votes[c] > max(SMALLEST, votes.sum() / 3)]
        parts = [blob & (winner == c) for c in strong] if len(strong) > 1 else [blob]
        yield from (part for part in parts if part.sum() >= SMALLEST)


@torch.inference_mode()
def read(reader: Reader, images: Sequence[np.ndarray]) -> list[Reading]:
    """Reads images, uint8 (H, W, 3) each, of any size."""
    batch = torch.from_numpy(np.stack([_sized(image) for image in images])).movedim(-1, 1).float() / 255
    outputs = [torch.cat(part) for part in zip(*(reader(chunk) for chunk in batch.split(16)))]
    cells, colors = (output.softmax(1).numpy() for output in outputs[:2])
    grounds, styles = (output.argmax(1).tolist() for output in outputs[2:])
    found = [[_seen(region, c, k) for region in _regions(c)] for c, k in zip(cells, colors)]
    return [
        Reading(GROUNDS[g], list(STYLES)[s], tuple(sorted(things, key=lambda seen: -int(seen.mask.sum()))))
        for g, s, things in zip(grounds, styles, found)
    ]


def judge(reading: Reading, caption: Caption) -> dict[str, bool]:
    """Which claims of a caption hold: `thing` (one) or `both things`, `color`, `place`, `ground` and `style` (only those named), and `count`."""
    by_name = {seen.name: seen for seen in reversed(reading.things)}
    found = [by_name.get(claim.name) for claim in caption.claims]
    verdict = {"count": len(reading.things) == len(caption.claims)} if caption.claims else {}
    if caption.claims:
        verdict["thing" if len(found) == 1 else "both things"] = all(found)
    for fact in ("color", "place"):
        asked = [(getattr(claim, fact), seen) for claim, seen in zip(caption.claims, found) if getattr(claim, fact)]
        if asked:
            verdict[fact] = all(seen is not None and getattr(seen, fact) == value for value, seen in asked)
    verdict |= {fact: getattr(reading, fact) == getattr(caption, fact) for fact in ("ground", "style") if getattr(caption, fact)}
    return verdict


def pair_score(before: np.ndarray, after: np.ndarray, readings: Sequence[Reading], told: Sequence[str]) -> float:
    """How good two images, uint8 (H, W, 3), are as those before and after an edit, by what is read in them and the sentences told of them: 0
    where either is not what its sentence says, else up to 1, the more of the pixels stay as they are."""
    for reading, caption in zip(readings, map(caption_of, told)):
        if not caption.claims or not all(judge(reading, caption).values()):
            return 0.0
    return checker.kept(before, after)


def pair_scores(reader: Reader, before: Sequence[np.ndarray], after: Sequence[np.ndarray], *told: str) -> list[float]:
    """The `pair_score` of each pair of images, told alike."""
    return [pair_score(one, other, seen, told) for one, other, *seen in zip(before, after, read(reader, before), read(reader, after))]
