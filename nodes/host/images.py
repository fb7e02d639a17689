"""Images that nodes draw: line charts and grids of images; and images on disk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...training.files import whole_file

_COLORS = ("#2d6cdf", "#d43a2f", "#2e9e46", "#e08a1e", "#8b3fb0", "#14919b", "#b0a011", "#7a5c45")
_INK, _GRID, _PAPER = "#333333", "#dddddd", "#ffffff"
FORMATS = ("PNG", "JPEG", "WEBP")  # of files that are read; Pillow knows some that start other programs
MOST_PIXELS = 100_000_000
LINE = 20  # pixels of a line of text


def as_image(image: Image.Image) -> torch.Tensor:
    """A Pillow image as an IMAGE, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """One image (H, W, 3) of an IMAGE, for Pillow."""
    return Image.fromarray((pixels * 255 + 0.5).clamp(0, 255).byte().cpu().numpy())


def read(path: Path) -> torch.Tensor:
    """An image on disk as IMAGE, (1, H, W, 3). Raises ValueError for other formats than PNG, JPEG and WEBP, and for damaged and huge ones."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{path} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read. Scale it down.")
            return as_image(_as_shown(image))
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as {', '.join(FORMATS)}: {error}. Take it out of the folder, or save it again in one of these formats."
        ) from error


def _as_shown(image: Image.Image) -> Image.Image:
    """An image of a file as viewers show it: turned as its camera was held, and 16-bit gray in the 8 bits that are left of it."""
    image = ImageOps.exif_transpose(image)
    return image.convert("F").point(lambda value: value / 257) if image.mode.startswith("I") else image


def write(images: dict[Path, torch.Tensor]) -> None:
    """Saves images (H, W, 3) as PNG: all of them, each whole, or none. Raises NotWritten."""
    with ExitStack() as files:
        for path, pixels in images.items():
            to_pil(pixels).save(files.enter_context(whole_file(path)), "PNG")


def line_chart(lines: dict[str, Sequence[tuple[float, float]]], title: str, x_label: str, size=(768, 384)) -> Image.Image:
    """Named lines over a common x axis, with a legend."""
    width, height = size
    left, top, right, bottom = 64, 40, width - 20, height - 44
    points = [p for line in lines.values() for p in line]
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def place(x, y):
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    image = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        _, y = place(x0, value)
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((left - 8, y), f"{value:.3g}", fill=_INK, font=font, anchor="rm")
        x, _ = place(x0 + (x1 - x0) * i / 4, y0)
        draw.text((x, bottom + 6), f"{x0 + (x1 - x0) * i / 4:.3g}", fill=_INK, font=font, anchor="ma")
    draw.text((left, 12), title, fill=_INK, font=font)
    draw.text(((left + right) / 2, height - 20), x_label, fill=_INK, font=font, anchor="ma")
    for i, (name, line) in enumerate(lines.items()):
        color = _COLORS[i % len(_COLORS)]
        thickness = 3 + 2 * (len(lines) - 1 - i)  # lines that coincide stay visible
        spots = [place(x, y) for x, y in line]
        draw.line(spots, fill=color, width=thickness, joint="curve")
        if len(spots) == 1:
            (x, y), radius = spots[0], 2 + thickness
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        draw.text((right - 6, top + 4 + 18 * i), name, fill=color, font=font, anchor="ra")
    return image


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one width below each other."""
    paper = Image.new("RGB", (images[0].width, sum(p.height for p in images)), _PAPER)
    top = 0
    for image in images:
        paper.paste(image, (0, top))
        top += image.height
    return paper


def fitted(size: Sequence[int], longest: int) -> tuple[int, int]:
    """A height and width at the same proportions, the longer of them `longest`."""
    height, width = size
    return round(longest * height / max(size)), round(longest * width / max(size))


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An image (H, W, 3) at another size, by areas."""
    return F.interpolate(pixels.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)


def image_grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str] = (), captions: Sequence[Sequence[Sequence[str]]] = (), *,
    left: int = 64, top: int = 24, gap: int = 4, below: int = 4, centered: bool = True, ink: str = _INK,
) -> Image.Image:  # fmt: skip
    """Images of one size in rows, under the names of columns and beside the names of rows, with lines of text below each.

    `gap` and `below` are pixels between columns and between rows; names of columns are centered, or begin at the image's left.
    """
    (width, height), lines = rows[0][0].size, captions or [[()] * len(row) for row in rows]
    paper = Image.new("RGB", (left + len(columns) * (width + gap), top + len(rows) * (height + below)), _PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    for i, column in enumerate(columns):
        place = (left + i * (width + gap) + width // 2, top // 2 - 8) if centered else (left + i * (width + gap), top - LINE)
        draw.text(place, column, fill=ink, font=font, anchor="ma" if centered else "la")
    for j, name in enumerate(names):
        draw.text((left // 2, top + j * (height + below) + height // 2), name, fill=ink, font=font, anchor="mm")
    for j, row in enumerate(rows):
        for i, image in enumerate(row):
            x, y = left + i * (width + gap), top + j * (height + below)
            paper.paste(image, (x, y))
            for n, line in enumerate(lines[j][i]):
                draw.text((x, y + height + 2 + n * LINE), line, fill=ink, font=font)
    return paper
