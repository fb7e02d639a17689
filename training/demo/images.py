"""Images of the demo worlds without a model: to train on and to edit, with captions and masks that are right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import world
from .illustrated_captions import GROUND_WORDS, random_caption
from .illustrated_drawings import OUTLINED
from .illustrated_grounds import GROUNDS
from .illustrated_scenes import CARTOONS, Scene, random_scene, scene_of
from .illustrated_world import paint

SEED = 260  # so that no image is one of a training
Image = tuple[np.ndarray, str, np.ndarray]  # uint8 (side, side, 3), its caption, and where its things are, bool (side, side)
TWO_SQUARES = "a red square on the left and a blue square on the right on a white background"


def _painted(scene: Scene, caption: str) -> Image:
    image, masks = paint(scene)
    return image, caption, np.logical_or.reduce(masks)


def _scene(seed: int, index: int) -> Image:
    """A scene as the illustrated model was trained on, with a caption in one of many wordings."""
    rng = _rng(seed, index)
    scene = random_scene(rng)
    return _painted(scene, random_caption(scene, rng).text)


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng((SEED, *seed))


def _cycle(options: tuple[str, ...], seed: int, index: int) -> str:
    """Option `index` of all in a random order, again from the first where they end."""
    return options[int(_rng(seed).permutation(len(options))[index % len(options)])]


def _alone(names: tuple[str, ...], drawings: tuple[str, ...], ending: str = "") -> Callable[[int, int], Image]:
    """Images of one thing each: in turn all names and grounds, all by one of the drawings."""

    def image(seed: int, index: int) -> Image:
        ground, name = (_cycle(options, seed, index) for options in (GROUNDS, names))
        scene = scene_of(_rng(seed, index), ground, name, _cycle(drawings, seed, 0))
        noun = f"{scene.things[0].color or ''} {name}".strip()
        return _painted(scene, f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {GROUND_WORDS[ground][0]}{ending}")

    return image


def _two_squares() -> Image:
    image = np.full((world.SIZE, world.SIZE, 3), world.BACKGROUNDS["white"], np.uint8)
    for color, left in (("red", 11), ("blue", 73)):
        image[42:86, left : left + 44] = world.COLORS[color]
    return image, TWO_SQUARES, (image != world.BACKGROUNDS["white"]).any(-1)


VARIED: dict[str, Callable[[int, int], Image]] = {
    "scenes": _scene,
    "a whale": _alone(("whale",), CARTOONS),
    "a rocket": _alone(("rocket",), CARTOONS),
    "an outlined style": _alone(OUTLINED, ("streamline",), ", outlined style"),
}
KINDS = (*VARIED, "two squares")


def images_of(kind: str, count: int, seed: int) -> list[Image]:
    """`count` images of one of KINDS, of two squares a single one; image i is the same whatever their count."""
    return [VARIED[kind](seed, index) for index in range(count)] if kind in VARIED else [_two_squares()]
