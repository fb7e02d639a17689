"""Held-out captions and sheets of the illustrated demo model."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.training.demo.illustrated_captions import Caption, random_caption
from PIL import Image, ImageDraw, ImageFont

from demo import illustrated_recipe as recipe
from demo import model as demo_model

NOISE_SEED = 7_000_000
HELD_OUT = recipe.SEEDS["held out"]
LABEL = 40  # pixels below each image of a sheet


def held_out(count: int) -> list[Caption]:
    """Captions of scenes that training never saw."""
    return [random_caption(recipe.scene(i, HELD_OUT), np.random.default_rng((HELD_OUT, i, 1))) for i in range(count)]


def by_thing(captions: list[Caption], verdicts: list[dict[str, bool]]) -> list[str]:
    """How often each thing was right in the images of it alone, the worst first."""
    alone: dict[str, list[bool]] = {}
    for caption, verdict in zip(captions, verdicts):
        if "thing" in verdict:
            alone.setdefault(caption.claims[0].name, []).append(verdict["thing"])
    return [f"{name} {sum(right)} of {len(right)}" for name, right in sorted(alone.items(), key=lambda item: sum(item[1]) / len(item[1]))]


@torch.inference_mode()
def reconstruct(autoencoder, count: int, batch: int = 8) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """PSNR in dB of `count` held-out scenes through encoder and decoder; their images and reconstructions, (N, 3, 192, 192) in [0, 1]."""
    images = recipe.images(count, HELD_OUT)
    parts = images.split(batch)
    decoded = torch.cat([autoencoder.taesd_decoder(autoencoder.taesd_encoder(part)).clamp(0, 1) for part in parts])
    return demo_model.psnr(decoded, images).numpy(), images, decoded


def as_arrays(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3)."""
    return (images * 255 + 0.5).clamp(0, 255).byte().movedim(1, -1).numpy()


def draw_sheet(images, labels: list[str], output: Path, columns: int = 8, wrong: tuple[int, ...] = ()) -> None:
    """Labeled images, `columns` in a row; labels of those in `wrong` are red."""
    side = recipe.SIZE + 8
    sheet = Image.new("RGB", (columns * side, -(-len(labels) // columns) * (side + LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (image, label) in enumerate(zip(images, labels)):
        x, y = i % columns * side, i // columns * (side + LABEL)
        sheet.paste(Image.fromarray(image), (x + 4, y + 4))
        draw.multiline_text((x + 4, y + side), "\n".join(textwrap.wrap(label, 32)), font=font, fill="red" if i in wrong else "black")
    sheet.save(output)
