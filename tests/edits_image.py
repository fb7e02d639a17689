"""Draws the README's first image: `python . run tests/edits_image.py [--weights FILE] [--seeds 27] [--output .github/edits.jpg]`.

One scene of the illustrated model, and the same edited by words in six ways with Prompt-to-Prompt. Several seeds give a row each, to choose
from.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.training.demo.illustrated_captions import Caption
from PIL import Image, ImageDraw, ImageFont

from demo import worlds
from demo.illustrated_world import ILLUSTRATED
from harness.demo_images import Studio
from measures.prompt_to_prompt import LAYOUT, PLACED, STYLE, Edit, drawn
from measures.script import options_of, say

OUTPUT = Path(__file__).parents[1] / ".github" / "edits.jpg"
SOURCE = "a red car and a house on grass"
COLUMNS, GAP, LABEL = 3, 6, 24  # edits in a row; pixels between images, and below each


@dataclass(frozen=True)
class Version:
    """An edit of the source: its label, settings of Prompt-to-Prompt, and what the prompt becomes."""

    label: str
    settings: dict
    target: str


def swapped(old: str, new: str) -> str:
    return SOURCE.replace(old, new)


VERSIONS = (
    Version("red to blue", LAYOUT, swapped("red", "blue")),
    Version("car to elephant", PLACED, swapped("a red car", "an elephant")),
    Version("house to castle", PLACED, swapped("house", "castle")),
    Version("grass to snow", STYLE, swapped("on grass", "in the snow")),
    Version("day to night", STYLE, swapped("on grass", "at night")),
    Version("to a watercolor", STYLE, f"a watercolor of {SOURCE}"),
)


@torch.inference_mode()
def images_of(studio: Studio, seed: int) -> list[np.ndarray]:
    """The source, then every version, uint8 (H, W, 3) each."""
    found: list[np.ndarray] = []
    for version in VERSIONS:
        source, edited = drawn(studio, seed, SOURCE, [Edit(Caption(version.target))], **version.settings)
        found = [*(found or [source]), edited]
    return found


def composed(images: list[np.ndarray], labels: list[str]) -> Image.Image:
    """The first image at the left in double size, the others beside it, each with its label below."""
    side = images[0].shape[0]
    rows, cell = -(-(len(images) - 1) // COLUMNS), side + GAP
    large = rows * (side + LABEL) + (rows - 1) * GAP - LABEL
    paper = Image.new("RGB", (large + COLUMNS * cell, large + LABEL), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(15)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(i - 1, COLUMNS)
        x, y, size = (0, 0, large) if i == 0 else (large + GAP + column * cell, row * (side + LABEL + GAP), side)
        paper.paste(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + size / 2, y + size + LABEL / 2), label, fill="black", font=font, anchor="mm")
    return paper


def stacked(papers: list[Image.Image]) -> Image.Image:
    made = Image.new("RGB", (papers[0].width, sum(p.height + GAP for p in papers) - GAP), "white")
    for i, paper in enumerate(papers):
        made.paste(paper, (0, i * (paper.height + GAP)))
    return made


def main() -> None:
    seeds = dict(type=int, nargs="+", default=[27], help="of the noise, a row each")
    output = dict(type=Path, default=OUTPUT, help="file to write")
    options = options_of(__doc__, None, worlds.add_places, seeds=seeds, output=output)
    studio = worlds.studio(worlds.placed(ILLUSTRATED, options))
    labels = [SOURCE, *(version.label for version in VERSIONS)]
    stacked([composed(images_of(studio, seed), labels) for seed in options.seeds]).save(options.output, quality=92)
    say(f"wrote {options.output}")


if __name__ == "__main__":
    main()
