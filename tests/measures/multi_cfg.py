"""What multi-condition guidance does on the demo model, against the prompt alone: `python . run tests/measures/multi_cfg.py`."""

import itertools

import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.training.demo import checker

from demo.world import COLORS, SHAPES, Caption, Claim
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

BATCH = 32


def batches(count: int):
    return [(first, min(BATCH, count - first)) for first in range(0, count, BATCH)]


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


def pairs(count: int) -> list[Caption]:
    """Two things on a white background, the first on the left."""
    rng = np.random.default_rng(11)
    every = [(a, b) for a, b in itertools.permutations(itertools.product(COLORS, SHAPES), 2) if a[0] != b[0] and a[1] != b[1]]
    chosen = [every[i] for i in rng.choice(len(every), count, replace=False)]
    return [beside([Claim(s, c, position=where) for (c, s), where in zip(pair, ("left", "right"))]) for pair in chosen]


def beside(claims: list[Claim]) -> Caption:
    text = " and ".join(f"a {c.color} {c.shape} on the {c.position}" for c in claims)
    return Caption(f"{text} on a white background", tuple(claims), "white")


def placed(images, captions) -> float:
    """Share in which both things are there, each with its own color and shape, at its place."""
    verdicts = [checker.judge(checker.read(p), c) for p, c in zip(images, captions)]
    return share(v["bound"] and v["position"] for v in verdicts)


def masked_channels(studio: Studio, count: int, weight: float = 5.0) -> tuple[float, float]:
    """Share of images with both things right: one prompt for both, and one masked channel for each."""
    captions = pairs(count)
    halves = torch.zeros(2, 1, 128, 128)
    halves[0, ..., :64], halves[1, ..., 64:] = 1, 1
    single, guided = [], []
    for first, n in batches(count):
        batch = captions[first : first + n]
        single.extend(studio.draw([c.text for c in batch], seed=2000 + first))
        sides = [studio.prompt(*(beside([c.claims[i]]).text for c in batch)) for i in (0, 1)]
        guider = MultiCFG(studio.model, studio.prompt(""), [Channel(side, weight, mask=half) for side, half in zip(sides, halves)])
        guided.extend(studio.draw_with(guider, n, seed=2000 + first))
    return placed(single, captions), placed(guided, captions)


def main() -> None:
    count, studio = options_of(__doc__, count=(128, "images for each number")).count, Studio()
    rows = {
        "one negative channel of weight 2: images with the unwanted color": negative_channel(studio, count),
        "two masked positive channels: both things right, each at its place": masked_channels(studio, count),
    }
    say(head(f"on {count} images", "prompt alone", "with channels"))
    for name, shares in rows.items():
        say(row(name, *(percent(s, 1) for s in shares)))


if __name__ == "__main__":
    main()
