"""What multi-condition guidance does on the demo model, against the prompt alone: `python . run tests/measures/multi_cfg.py`."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.training.demo import checker

from demo.world import COLORS, SHAPES, Caption, Claim
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

BATCH = 32
REMAINS, WELL = "the color remains", "all right, another color"
PLAIN, MASKED = "weight 3: equals KSampler's negative at cfg 4", "weight 4, a mask of the right half"


def half(side: str) -> torch.Tensor:
    """A mask (1, 128, 128) of the left or right half."""
    mask = torch.zeros(1, 128, 128)
    mask[..., slice(64) if side == "left" else slice(64, None)] = 1
    return mask


def batches(count: int, size: int = BATCH):
    return [(first, min(size, count - first)) for first in range(0, count, size)]


def share(flags) -> float:
    return float(np.mean(list(flags)))


def has_color(image: np.ndarray, color: str) -> bool:
    return any(t.color == color for t in checker.read(image).things)


def negative_channel(studio: Studio, count: int, weight: float = 2.0, color: str = "orange", seed: int = 1000) -> tuple[float, float]:
    """Share of images with the color: prompt alone, and with a negative channel for the color."""
    text = "a large circle on a white background"
    empty, positive, unwanted = (studio.prompt(t) for t in ("", text, f"a large {color} circle on a white background"))
    guider = MultiCFG(studio.model, empty, [Channel(positive, 4.0), Channel(unwanted, weight, negative=True)])
    alone = [p for first, n in batches(count) for p in studio.draw([text] * n, seed=seed + first)]
    guided = [p for first, n in batches(count) for p in studio.draw_with(guider, n, seed=seed + first)]
    return share(has_color(p, color) for p in alone), share(has_color(p, color) for p in guided)


@dataclass(frozen=True)
class Spread:
    """A prompt of two things that names the color of the left one alone; the model spreads it to the right one."""

    color: str
    left: str
    right: str

    def _thing(self, color: str, shape: str, where: str) -> str:
        words = f"{color} {shape}".strip()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words} on the {where}"

    @property
    def text(self) -> str:
        return f"{self._thing(self.color, self.left, 'left')} and {self._thing('', self.right, 'right')} on a white background"

    @property
    def unwanted(self) -> str:
        return f"{self._thing(self.color, self.right, 'right')} on a white background"

    def judge(self, image: np.ndarray) -> dict[str, bool]:
        """Whether the color remains on the right, whether the rest is as the prompt says, and whether all is well."""
        reading = checker.read(image)
        left, right = ([t for t in reading.things if t.position == where] for where in ("left", "right"))
        flags = {
            REMAINS: any(t.color == self.color for t in right),
            "the left thing is right": [(t.shape, t.color) for t in left] == [(self.left, self.color)],
            "the right thing's shape is right": [t.shape for t in right] == [self.right],
            "the background is right": reading.background == "white",
        }
        remains, *rest = flags.values()
        return flags | {WELL: all(rest) and not remains and len(reading.things) == 2}


def spreads(count: int) -> list[Spread]:
    rng = np.random.default_rng(5)
    drawn = [(rng.choice(list(SHAPES), 2, replace=False), rng.choice(list(COLORS))) for _ in range(count)]
    return [Spread(str(color), *map(str, shapes)) for shapes, color in drawn]


def against_spread(studio: Studio, count: int, weight: float, conflict: str = "sum", **settings) -> dict[str, float]:
    """Shares of images of which the flags of `Spread.judge` hold.

    The positive has weight 4, so a negative of weight 3 is KSampler's own at cfg 4. `settings` are those of the negative channel.
    """
    found, wishes = [], spreads(count)
    for first, n in batches(count, 16):
        batch = wishes[first : first + n]
        positive, unwanted = (studio.prompt(*texts) for texts in ([w.text for w in batch], [w.unwanted for w in batch]))
        channels = [Channel(positive, 4.0, priority=1), Channel(unwanted, weight, negative=True, **settings)]
        guider = MultiCFG(studio.model, studio.prompt(""), channels, Rules(conflict))
        found += [w.judge(p) for w, p in zip(batch, studio.draw_with(guider, n, seed=3000 + first))]
    return {flag: share(f[flag] for f in found) for flag in found[0]}


def pairs(count: int) -> list[Caption]:
    """Two things on a white background, the first on the left."""
    rng = np.random.default_rng(11)
    every = [(a, b) for a, b in itertools.permutations(itertools.product(COLORS, SHAPES), 2) if a[0] != b[0] and a[1] != b[1]]
    chosen = [every[i] for i in rng.choice(len(every), count, replace=False)]
    return [beside([Claim(s, c, position=where) for (c, s), where in zip(pair, ("left", "right"))]) for pair in chosen]


def beside(claims: list[Claim]) -> Caption:
    words = [f"a {' '.join(w for w in (c.size, c.color, c.shape) if w)}{f' on the {c.position}' if c.position else ''}" for c in claims]
    return Caption(f"{' and '.join(words)} on a white background", tuple(claims), "white")


def placed(images, captions) -> dict[str, float]:
    """Shares in which both things are at their places with their colors and shapes, in which both have the size asked for, and so on."""
    verdicts = [checker.judge(checker.read(p), c) for p, c in zip(images, captions)]
    return {
        "both things right, each at its place": share(v["bound"] and v["position"] for v in verdicts),
        "both small": share(v.get("size", False) for v in verdicts),
        "the background is right": share(v["background"] for v in verdicts),
    }


def masked_channels(
    studio: Studio, captions: list[Caption], weight: float = 5.0, said: bool = True, swapped: bool = False
) -> list[np.ndarray]:
    """Images under one masked channel for each thing; its prompt says the place or not (`said`), its null is empty or the other's (`swapped`)."""
    images = []
    for first, n in batches(len(captions)):
        claims = [
            [replace(c.claims[i], position=c.claims[i].position if said else None) for c in captions[first : first + n]] for i in (0, 1)
        ]
        sides = [studio.prompt(*(beside([c]).text for c in side)) for side in claims]
        nulls = sides[::-1] if swapped else (None, None)
        channels = [Channel(p, weight, null=null, mask=half(where)) for p, null, where in zip(sides, nulls, ("left", "right"))]
        images.extend(studio.draw_with(MultiCFG(studio.model, studio.prompt(""), channels), n, seed=2000 + first))
    return images


def regions_and_prompt(studio: Studio, count: int) -> tuple[float, float]:
    """Share of images with both things right: one prompt for both, and one masked channel for each."""
    captions = pairs(count)
    single = [p for first, n in batches(count) for p in studio.draw([c.text for c in captions[first : first + n]], seed=2000 + first)]
    return tuple(next(iter(placed(images, captions).values())) for images in (single, masked_channels(studio, captions)))


REGIONS = {
    "weight 5": dict(),
    "weight 8": dict(weight=8.0),
    "weight 5, prompts without the place": dict(said=False),
    "weight 5, null: the other region's prompt": dict(swapped=True),
}


def regions(studio: Studio, count: int) -> None:
    """A table: two small things, each with a masked channel of its own."""
    captions = [beside([replace(c, size="small") for c in pair.claims]) for pair in pairs(48)[:count]]
    for i, (name, settings) in enumerate(REGIONS.items()):
        shares = placed(masked_channels(studio, captions, **settings), captions)
        if i == 0:
            say(head(f"two small things, a masked channel for each half ({len(captions)} pairs)", *shares))
        say(row(name, *map(percent, shares.values())))


NEGATIVES = {
    "none": dict(weight=0.0),
    "weight 1": dict(weight=1.0),
    "weight 2": dict(weight=2.0),
    PLAIN: dict(weight=3.0),
    "weight 4": dict(weight=4.0),
    "weight 4, end_percent 0.5": dict(weight=4.0, interval=Schedule(end=0.5)),
    "weight 3, schedule linear from 2 to 0": dict(weight=3.0, schedule=Schedule(Ramp(2.0, 0.0))),
    "weight 4, conflict perpendicular": dict(weight=4.0, conflict="perpendicular"),
    MASKED: dict(weight=4.0, mask=half("right")),
}


def negatives(studio: Studio, count: int) -> None:
    """A table: the negative against a color that spreads, by its settings."""
    for i, (name, settings) in enumerate(NEGATIVES.items()):
        shares = against_spread(studio, count, **settings)
        if i == 0:
            say(head(f"the negative channel next to a positive of weight 4 ({count} prompts)", *shares))
        say(row(name, *map(percent, shares.values())))


def effects(studio: Studio, count: int) -> None:
    """A table: what one negative and two masked channels do."""
    rows = {
        "one negative channel of weight 2: images with the unwanted color": negative_channel(studio, count),
        "two masked positive channels: both things right, each at its place": regions_and_prompt(studio, count),
    }
    say(head(f"on {count} images", "prompt alone", "with channels"))
    for name, shares in rows.items():
        say(row(name, *(percent(s, 1) for s in shares)))


TABLES = {"effects": effects, "negatives": negatives, "regions": regions}


def main() -> None:
    only = dict(nargs="*", choices=list(TABLES), default=list(TABLES), help="tables to make")
    options, studio = options_of(__doc__, count=(128, "images for each number"), only=only), Studio()
    for name in options.only:
        TABLES[name](studio, options.count)


if __name__ == "__main__":
    main()
