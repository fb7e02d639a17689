"""Draws thumbnails of templates for published models, whose weights are not at hand: the task in a few words, and what the demo model makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from harness.contact_sheet import font

SIDE, MARGIN = 512, 20
PAPER, INK, FAINT, EDGE, ACCENT = "#ffffff", "#1c2230", "#5c6370", "#b8bcc6", "#2f5fd0"
WIDTHS = {1: 250, 2: 212, 3: 142}  # of each image, by how many there are
DEMO = "images: demo model"


@dataclass(frozen=True)
class Shown:
    """A task, and images of it: (workflow on the demo model, which of the four in its thumbnail, words below).

    ``over`` draws on the images what the task is about: "halves" or "film".
    """

    task: str
    images: Sequence[tuple[str, int, str]]
    over: str = ""

    @classmethod
    def of(cls, task: str, workflow: str, over: str = "", **images: int) -> "Shown":
        return cls(task, [(workflow, index, words.replace("_", " ")) for words, index in images.items()], over)


def draw(shown: Shown, model: str, folder: Path) -> Image.Image:
    """A square that is readable at half its size; `folder` holds the thumbnails of the workflows on the demo model."""
    paper = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(paper)
    pen.multiline_text((MARGIN, MARGIN - 6), shown.task, INK, font(46), spacing=6)
    count, side = len(shown.images), WIDTHS[len(shown.images)]
    gap = (SIDE - 2 * MARGIN - count * side) // max(count - 1, 1)
    top = 268 - side // 2 + 10
    for place, (workflow, index, words) in enumerate(shown.images):
        left = MARGIN + place * (side + gap) if count > 1 else (SIDE - side) // 2
        paper.paste(over(tile(folder / f"{workflow}.jpg", index, side), shown.over), (left, top))
        pen.rectangle((left - 1, top - 1, left + side, top + side), outline=EDGE, width=2)
        pen.multiline_text((left + side // 2, top + side + 8), words, INK, font(23), anchor="ma", align="center")
        if place:
            arrow(pen, left - gap // 2, top + side // 2, min(gap - 8, 30))
    label(pen, model)
    return paper


def tile(thumbnail: Path, index: int, side: int) -> Image.Image:
    """One of the four images of a thumbnail."""
    with Image.open(thumbnail) as whole:
        half = whole.width // 2
        x, y = index % 2 * half, index // 2 * half
        return whole.convert("RGB").crop((x, y, x + half, y + half)).resize((side, side), Image.Resampling.LANCZOS)


def over(image: Image.Image, what: str) -> Image.Image:
    pen, side = ImageDraw.Draw(image), image.width
    if what == "halves":
        for y in range(0, side, 16):
            pen.line((side // 2, y, side // 2, y + 8), ACCENT, 3)
    if what == "film":
        for y in (0, side - 24):
            pen.rectangle((0, y, side, y + 24), INK)
            for x in range(8, side, 26):
                pen.rounded_rectangle((x, y + 6, x + 13, y + 18), 3, PAPER)
    return image


def arrow(pen: ImageDraw.ImageDraw, x: int, y: int, width: int) -> None:
    tip, head = x + width // 2, min(12, width // 2)
    pen.line((tip - width, y, tip - head // 2, y), ACCENT, 5)
    pen.polygon([(tip, y), (tip - head, y - head), (tip - head, y + head)], ACCENT)


def label(pen: ImageDraw.ImageDraw, model: str) -> None:
    """The model at the left of the lower edge, where the images come from at the right."""
    y = SIDE - MARGIN - 40
    pen.rounded_rectangle((MARGIN, y, MARGIN + pen.textlength(model, font(26)) + 28, y + 40), 12, ACCENT)
    pen.text((MARGIN + 14, y + 20), model, PAPER, font(26), anchor="lm")
    pen.text((SIDE - MARGIN, y + 20), DEMO, FAINT, font(20), anchor="rm")
