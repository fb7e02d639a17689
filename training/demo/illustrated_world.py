"""The illustrated demo world: drawn things on painted grounds, with a caption and exact ground truth for each scene.

`scene(rng)` gives an image, a caption and the truth. Its steps are `illustrated_scenes.random_scene`, `paint` and
`illustrated_captions.random_caption`. The drawings are openly licensed: training/demo/drawings/LICENSES.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .illustrated_captions import Caption, random_caption
from .illustrated_drawings import ONE_WAY, drawing, recolored
from .illustrated_grounds import FLOOR, SIZE, Rng, paint_ground
from .illustrated_scenes import FLYING, Scene, Thing, random_scene
from .illustrated_styles import FILTERS

EMPTY = 0.1  # share of empty captions


@dataclass(frozen=True)
class Truth:
    """A scene and where its things are: one bool mask (192, 192) a thing, without its shadow."""

    scene: Scene
    masks: tuple[np.ndarray, ...]


def sprite(thing: Thing) -> Image.Image:
    """The drawing of a thing in its color, RGBA, before it is scaled, turned and placed."""
    return recolored(thing.name, thing.drawing, thing.color) if thing.color else drawing(thing.name, thing.drawing)


def _layer(thing: Thing, image: Image.Image) -> Image.Image:
    """A sprite by itself at the place of its thing, RGBA (192, 192)."""
    scale = thing.span / max(image.size)
    image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.LANCZOS)
    if thing.flip and thing.name not in ONE_WAY:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(thing.turn, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(image, (round(_inside(thing.x, image.width)), round(thing.bottom) - image.height))
    return layer


def _inside(x: float, width: int) -> float:
    """The left side of a thing, moved so far that at most four pixels of it are cut off."""
    return min(max(x - width / 2, -4), SIZE + 4 - width)


def _shadow(scene: Scene, thing: Thing, mask: np.ndarray) -> np.ndarray:
    """How dark the ground is below a thing, float (192, 192, 1)."""
    if FLOOR[scene.ground] is None:
        return np.zeros((SIZE, SIZE, 1), np.float32)
    columns = np.flatnonzero(mask.any(0))
    width, middle = np.ptp(columns) + 1, (columns[0] + columns[-1]) / 2
    bottom = thing.bottom + (26 if thing.name in FLYING else -1)
    rows, cols = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    reach = np.hypot((cols - middle) / (0.55 * width), (rows - bottom) / (0.02 * width + 5))
    return 0.38 * np.clip(1.5 - 1.2 * reach, 0, 1)[..., None]


def _light(scene: Scene, colors: np.ndarray) -> np.ndarray:
    """Things are a little darker and bluer at night."""
    return colors * np.asarray((0.78, 0.8, 0.92), np.float32) if scene.ground == "night" else colors


def _masks(layers: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Where each of the layers, float (192, 192, 4), is not covered by a later one."""
    masks: list[np.ndarray] = []
    for layer in layers:
        own = layer[..., 3] / 255 >= 0.5
        masks = [mask & ~own for mask in masks] + [own]
    return tuple(masks)


def _layers(scene: Scene, sprite_of: Callable[[Thing], Image.Image] = sprite) -> list[np.ndarray]:
    return [np.asarray(_layer(thing, sprite_of(thing)), np.float32) for thing in scene.things]


def thing_masks(scene: Scene) -> tuple[np.ndarray, ...]:
    """One bool mask (192, 192) a thing, as `paint` gives them, without painting."""
    return _masks(_layers(scene))


def paint(scene: Scene, sprite_of: Callable[[Thing], Image.Image] = sprite) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The image of a scene, uint8 (192, 192, 3), and one bool mask (192, 192) a thing; `sprite_of` may give other sprites."""
    rng, layers = np.random.default_rng(scene.seed), _layers(scene, sprite_of)
    image = paint_ground(scene.ground, rng)
    for thing, layer in zip(scene.things, layers):
        share = layer[..., 3:] / 255
        image = image * (1 - _shadow(scene, thing, share[..., 0] >= 0.5))
        image = image + share * (_light(scene, layer[..., :3]) - image)
    if scene.style in FILTERS:
        image = FILTERS[scene.style](image, rng)
    return (image + 0.5).clip(0, 255).astype(np.uint8), _masks(layers)


def scene(rng: Rng) -> tuple[np.ndarray, Caption, Truth]:
    """A random image, uint8 (192, 192, 3), a caption and the truth; one caption in ten is empty."""
    drawn = random_scene(rng)
    caption = random_caption(drawn, rng) if rng.random() >= EMPTY else Caption("")
    image, masks = paint(drawn)
    return image, caption, Truth(drawn, masks)
