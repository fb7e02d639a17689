"""Draws images beside a reference, with the numbers below them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from PIL import Image, ImageDraw, ImageFont

from ....guidance.errors import quoted
from ....inversion import quality
from ..images import LINE, as_image, image_grid, to_pil
from ..latents import round_trip
from . import lpips
from .invert import Inversion

_INK, _HEADLINE, _GAP = "#333333", 22, 10
_SMALLEST, _LARGEST = 256, 512  # pixels of a shown image's shorter side


@dataclass(frozen=True)
class Measure:
    """A number for every image, and how it is written."""

    name: str
    values: torch.Tensor  # (B,)
    write: Callable[[float], str]

    def text(self, i: int | None = None) -> str:
        """The name and the value of image i, or the mean of all images."""
        return f"{self.name} {self.write(float(self.values.mean() if i is None else self.values[i]))}"


@dataclass(frozen=True)
class Shown:
    """Images (B, H, W, 3) under one name, measured against the reference unless they are the reference."""

    name: str
    images: torch.Tensor
    measures: tuple[Measure, ...] = ()

    def text(self) -> str:
        """The mean of every measure; in a batch also a line with the values of each image."""
        count = len(self.images)
        mean, *rows = (", ".join(m.text(i) for m in self.measures) for i in (None, *range(count)))
        each = [f"  image {i}: {row}" for i, row in enumerate(rows, 1)] if count > 1 else []
        return "\n".join([f"{self.name}{f', mean of {count}' * (count > 1)}: {mean}", *each])


def decibels(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.2f} dB"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(name: str, images: torch.Tensor, reference: torch.Tensor) -> Shown:
    """Images and how close they are to the reference."""
    found = [
        Measure("PSNR", quality.psnr(images, reference), decibels),
        Measure("SSIM", quality.ssim(images, reference), "{:.4f}".format),
        Measure("max error", quality.largest_error(images, reference), "{:.3f}".format),
    ]
    if lpips.available() and min(images.shape[1:3]) >= lpips.SMALLEST:
        found.append(Measure("LPIPS", lpips.lpips(images, reference), "{:.4f}".format))
    return Shown(name, images, tuple(found))


def matched(name: str, images: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, reference), both without alpha and equally many; one reference serves any number of images."""
    images, reference = images[..., :3].float().cpu(), reference[..., :3].float().cpu()
    size, wanted = ("x".join(map(str, p.shape[2:0:-1])) for p in (images, reference))
    if size != wanted:
        raise ValueError(
            f"{quoted(name)} is {size} pixels and the reference {wanted}; they must be equal. Scale or crop the reference (a VAE cuts sizes that "
            "it cannot divide)."
        )
    if len(images) != len(reference) != 1:
        raise ValueError(
            f"{quoted(name)} holds {len(images)} images and the reference {len(reference)}; give equally many, or one reference. With two "
            "branches Inversion Sampler gives the source first, then the edit: take them apart with ImageFromBatch."
        )
    return images, reference.expand(len(images), -1, -1, -1)


@dataclass(frozen=True)
class Report:
    """The cost and the results of an inversion."""

    columns: tuple[Shown, ...]
    inversion: Inversion | None = None
    headline: str = ""

    @classmethod
    def of(cls, reference: torch.Tensor, inversion: Inversion | None, vae, headline: str = "", **images: torch.Tensor | None) -> Report:
        """Measures named images, and with a VAE its round trip, the best that latents can reach, against the reference."""
        count = max([len(p) for p in images.values() if p is not None], default=len(reference))
        pairs = {name: matched(name, p, reference) for name, p in images.items() if p is not None}
        whole = reference[..., :3].float().cpu().expand(count if len(reference) == 1 else -1, -1, -1, -1)
        columns, floor = [Shown("reference", whole)], None
        if vae is not None:
            floor = matched("VAE round trip", round_trip(vae, reference), reference)[0]
            columns.append(measured("VAE round trip", floor.expand_as(whole), whole))
        for name, (shown, own) in pairs.items():
            columns.append(measured(name, shown, own))
            if floor is not None:
                nearness = Measure("PSNR to the VAE round trip", quality.psnr(shown, floor.expand_as(shown)), decibels)
                columns[-1] = Shown(name, shown, (*columns[-1].measures, nearness))
        return cls(tuple(columns), inversion, headline)

    def about(self) -> list[str]:
        """The method and the cost of the inversion, in sentences."""
        if self.inversion is None:
            return []
        inversion, trajectory = self.inversion, self.inversion.trajectory
        settings = ", ".join(f"{f.name} {_short(getattr(inversion.method, f.name))}" for f in fields(inversion.method))
        lora = f", with LoRA on {inversion.model.patched} weights" if inversion.model.patched else ""
        return [
            f"{inversion.method.name}{f' ({settings})' if settings else ''}: {trajectory.steps} steps from sigma "
            f"{trajectory.sigmas[0]:.4g}, for reconstruction at cfg {inversion.cfg:g}; {inversion.model.kind}{lora}",
            f"inverting {inversion.images} image{'s' * (inversion.images > 1)} took {inversion.seconds:.1f} s and {inversion.evaluations} "
            "evaluations of the network for each",
        ]

    def text(self) -> str:
        return "\n".join([*([self.headline] if self.headline else []), *self.about(), *(c.text() for c in self.columns if c.measures)])

    def image(self) -> torch.Tensor:
        """The images side by side, a row for each of the batch, the numbers below them; an IMAGE."""
        return as_image(_drawn(self.columns, self.about(), self.headline))


def _tile(image: torch.Tensor) -> Image.Image:
    """An image (H, W, 3) at a size to look at."""
    scaled = to_pil(image)
    short = min(scaled.size)
    if short < _SMALLEST:
        times = -(-_SMALLEST // short)
        return scaled.resize((scaled.width * times, scaled.height * times), Image.Resampling.NEAREST)
    if short > _LARGEST:
        return scaled.resize([max(1, round(side * _LARGEST / short)) for side in scaled.size], Image.Resampling.LANCZOS)
    return scaled


def _drawn(columns: Sequence[Shown], about: Sequence[str], headline: str) -> Image.Image:
    rows = [[_tile(column.images[i]) for column in columns] for i in range(len(columns[0].images))]
    captions = [[[m.text(i) for m in column.measures] for column in columns] for i in range(len(rows))]
    width = (rows[0][0].width + _GAP) * len(columns) + _GAP
    head = [line for sentence in about for line in textwrap.wrap(sentence, max(20, width // 8))]
    over = 2 * LINE if headline else _GAP // 2
    top, below = over + _GAP // 2 + LINE * (len(head) + 1), max(len(c.measures) for c in columns) * LINE + _GAP
    names = [column.name for column in columns]
    paper = image_grid(rows, names, captions=captions, left=_GAP, top=top, gap=_GAP, below=below, centered=False)
    draw = ImageDraw.Draw(paper)
    draw.text((_GAP, _GAP / 2), headline, fill=_INK, font=ImageFont.load_default(_HEADLINE))
    for i, line in enumerate(head):
        draw.text((_GAP, over + i * LINE), line, fill=_INK, font=ImageFont.load_default(14))
    return paper
