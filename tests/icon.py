"""Draws the pack's icon and banner, which the registry and ComfyUI-Manager show: noise that becomes images, along a hand-drawn curve.

``python . run tests/icon.py`` writes .github/icon.png, a drawn scene, and .github/banner.jpg, images of the demo model.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.environment import ROOT

FOLDER = ROOT / ".github"
NIGHT, SKY, SUN, HILL, MEADOW, LINE = (24, 27, 46), (86, 128, 214), (255, 196, 84), (112, 84, 176), (74, 190, 150), (255, 255, 255)
LARGER = 4  # drawn so many times larger, then scaled down, for smooth edges
SIZES = {"icon": (256, 256), "banner": (1260, 540)}  # 21:9
TILE = 180  # pixels of an image on the banner
PROMPTS = (  # of the images on the banner, row by row
    "a cat on grass", "a large tree on grass", "a house on grass", "a large yellow umbrella on the beach", "a penguin in the snow",
    "an apple in the middle on a wooden table", "a red car on the beach",
    "a dog on grass", "a cactus in the desert", "a palm tree on the beach", "a cow on grass", "a red balloon in the middle in the sky",
    "a watercolor of a purple flower in the middle on grass", "a 3d render of an elephant in the middle on grass",
    "a pig on grass", "a cake on a wooden table", "a guitar on the beach", "a strawberry on a wooden table", "a sunflower in the middle on grass",
    "a blue car in the middle in the snow", "a watercolor of an owl at night",
)  # fmt: skip
CURVE = [(x, x**2 * (3 - 2 * x)) for x in np.linspace(0.0, 1.0, 100)]  # of a weight over time


def scene(width: int, height: int) -> Image.Image:
    """A sun over two hills."""
    image = Image.new("RGB", (width, height), SKY)
    draw = ImageDraw.Draw(image)
    for x, y, radius, color in ((0.76, 0.36, 0.17, SUN), (0.5, 1.2, 0.5, HILL), (0.86, 1.3, 0.62, MEADOW)):
        middle, top, reach = x * width, y * height, radius * height
        draw.ellipse((middle - reach, top - reach, middle + reach, top + reach), fill=color)
    return image


def from_noise(image: Image.Image, grain: int, seed: int = 1) -> Image.Image:
    """Pure noise on the left, in grains of so many pixels, the image on the right."""
    width, height = image.size
    grains = np.random.default_rng(seed).normal(0.26, 0.13, (-(-height // grain), -(-width // grain), 3)).clip(0, 1)
    noise = np.repeat(np.repeat(grains, grain, 0), grain, 1)[:height, :width] * 255
    share = np.clip((np.linspace(0, 1, width) - 0.12) / 0.55, 0, 1)[None, :, None] ** 1.5
    return Image.fromarray((noise * (1 - share) + np.asarray(image) * share).astype(np.uint8))


def with_curve(image: Image.Image, thick: float, knob: float) -> Image.Image:
    """The curve of a weight across the image, with the knob that a hand moves."""
    width, height = (LARGER * side for side in image.size)
    ink = Image.new("L", (width, height))
    draw = ImageDraw.Draw(ink)
    points = [((0.12 + 0.76 * x) * width, (0.82 - 0.62 * y) * height) for x, y in CURVE]
    draw.line(points, fill=255, width=round(LARGER * thick), joint="curve")
    for (x, y), reach in ((points[0], thick / 2), (points[-1], thick / 2), (points[62], knob)):
        draw.ellipse([v + sign * LARGER * reach for sign in (-1, 1) for v in (x, y)], fill=255)
    x, y = points[62]
    draw.ellipse([v + sign * LARGER * knob * 0.5 for sign in (-1, 1) for v in (x, y)], fill=0)
    ink = ink.resize(image.size, Image.Resampling.LANCZOS)
    return Image.composite(Image.new("RGB", image.size, LINE), image, ink)


def rounded(image: Image.Image, radius: int) -> Image.Image:
    mask = Image.new("L", [LARGER * side for side in image.size])
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *(side - 1 for side in mask.size)), LARGER * radius, fill=255)
    image.putalpha(mask.resize(image.size, Image.Resampling.LANCZOS))
    return image


def icon() -> Image.Image:
    width, height = SIZES["icon"]
    return rounded(with_curve(from_noise(scene(width, height), 4), 9, 17), width // 6)


def tiled(images: Sequence[np.ndarray]) -> Image.Image:
    """Images in rows, as the banner holds them."""
    paper = Image.new("RGB", SIZES["banner"])
    for i, image in enumerate(images):
        row, column = divmod(i, paper.width // TILE)
        paper.paste(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS), (column * TILE, row * TILE))
    return paper


def banner(images: Sequence[np.ndarray]) -> Image.Image:
    image = with_curve(from_noise(tiled(images), 9), 10, 20)
    draw = ImageDraw.Draw(image)
    for text, size, y in (("Controlled Diffusion", 80, 44), ("edit, steer and teach your own models in ComfyUI", 32, 146)):
        draw.text((56, y), text, fill=LINE, font=ImageFont.load_default(size), stroke_width=size // 18, stroke_fill=NIGHT)
    return image


def main() -> None:
    from demo import worlds
    from demo.illustrated_world import ILLUSTRATED

    icon().quantize(128, dither=Image.Dither.NONE).save(FOLDER / "icon.png", optimize=True)
    images = worlds.studio(ILLUSTRATED).draw(list(PROMPTS), seed=1)
    banner(images).save(FOLDER / "banner.jpg", quality=74, optimize=True)


if __name__ == "__main__":
    main()
