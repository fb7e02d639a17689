"""Samples the illustrated demo model through ComfyUI's own KSampler, for sheets and measurements."""

import textwrap
from pathlib import Path

import comfy.sample
import comfy.sd
import numpy as np
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo.illustrated_captions import Caption, random_caption
from PIL import Image, ImageDraw, ImageFont

from demo import illustrated_recipe as recipe
from demo import model as demo_model
from harness import demo_images

NOISE_SEED = 7_000_000
HELD_OUT = recipe.SEEDS["held out"]
LABEL = 40  # pixels below each image of a sheet


class Studio(demo_images.Studio):
    """The model of a weights file with short ways to prompt, sample and decode."""

    def __init__(self, path: Path):
        with torch.inference_mode():
            self.model, self.clip, self.vae = demo.load(path)

    def noise(self, count: int, seed: int) -> torch.Tensor:
        """Noise (count, 4, 24, 24) of seeds seed, seed + 1, ..., so that an image does not depend on its batch."""
        empty = torch.zeros(1, 4, recipe.LATENT, recipe.LATENT)
        return torch.cat([comfy.sample.prepare_noise(empty, seed + i) for i in range(count)])


def held_out(count: int) -> list[Caption]:
    """Captions of scenes that training never saw."""
    return [random_caption(recipe.scene(i, HELD_OUT), np.random.default_rng((HELD_OUT, i, 1))) for i in range(count)]


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
