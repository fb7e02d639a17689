"""Scenes of the demo world with their captions, drawn at random and painted: what the demo models learn from and are tested with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from controlled_diffusion.training.demo.world import (
    BACKGROUNDS,
    COLORS,
    CREAM,
    OUTLINES,
    SHADE,
    SHAPES,
    SIZE,
    TEAL,
    TEXTURES,
    Caption,
    Claim,
    coverage,
)

RADII = {"small": (18, 20), "medium": (24, 27), "large": (32, 35)}
PAIR_RADII = {"small": (18, 20), "medium": (24, 26)}
POSITIONS = {
    "left": ((40, 46), (52, 76)),
    "right": ((82, 88), (52, 76)),
    "top": ((52, 76), (40, 46)),
    "bottom": ((52, 76), (82, 88)),
    "center": ((59, 69), (59, 69)),
}
PAIRS = {"horizontal": (((31, 36), (52, 76)), ((92, 97), (52, 76))), "vertical": (((52, 76), (31, 36)), ((52, 76), (92, 97)))}
PAIR_PLACES = {"horizontal": ("left", "right"), "vertical": ("top", "bottom")}
STRANGERS = {  # shapes that no scene of the world holds: for teaching the model something new
    "tee": [(-1, -1), (1, -1), (1, -0.36), (0.36, -0.36), (0.36, 1), (-0.36, 1), (-0.36, -0.36), (-1, -0.36)],
    "hourglass": [(-0.9, -1), (0.9, -1), (0.18, 0), (0.9, 1), (-0.9, 1), (-0.18, 0)],
}


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y`, `radius` are in pixels of a 128 x 128 image."""

    shape: str
    color: str
    texture: str = "plain"
    size: str = "medium"
    x: float = 64
    y: float = 64
    radius: float = 24
    accessory: str = ""  # "", "eye" or "hat": seen in images, never named in captions


@dataclass(frozen=True)
class Scene:
    background: str
    things: tuple[Thing, ...]
    layout: str  # a key of POSITIONS for one thing, of PAIRS for two
    moon: bool = False  # a small teal disc in the corner; never named in captions


def _one_of(rng: np.random.Generator, items, weights=None):
    return list(items)[int(rng.choice(len(items), p=weights))]


def _place(rng, area) -> tuple[float, float]:
    (x0, x1), (y0, y1) = area
    return float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))


def _random_thing(rng, area, radii) -> Thing:
    size = _one_of(rng, radii)
    x, y = _place(rng, area)
    return Thing(
        _one_of(rng, SHAPES),
        _one_of(rng, COLORS),
        _one_of(rng, TEXTURES, (0.6, 0.2, 0.2)),
        size,
        x,
        y,
        float(rng.uniform(*radii[size])),
        _one_of(rng, ("", "eye", "hat"), (0.9, 0.05, 0.05)),
    )


def random_scene(rng: np.random.Generator, pair_share: float = 0.5) -> Scene:
    """A scene drawn at random; two things with probability `pair_share`, never two alike."""
    background, moon = _one_of(rng, BACKGROUNDS), bool(rng.random() < 0.05)
    if rng.random() >= pair_share:
        layout = _one_of(rng, POSITIONS)
        return Scene(background, (_random_thing(rng, POSITIONS[layout], RADII),), layout, moon)
    layout = _one_of(rng, PAIRS)
    first, second = (_random_thing(rng, area, PAIR_RADII) for area in PAIRS[layout])
    while (first.shape, first.color) == (second.shape, second.color):
        second = replace(second, shape=_one_of(rng, SHAPES), color=_one_of(rng, COLORS))
    return Scene(background, (first, second), layout, moon)


def _covered(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    return coverage((OUTLINES | STRANGERS)[shape], x, y, radius)


def _texture(name: str) -> np.ndarray:
    """Where the dark shade goes, float (SIZE, SIZE); stripes and dots sit on a fixed grid of 8 pixels."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    if name == "striped":
        return ((rows // 8) % 2).astype(np.float32)
    if name == "dotted":
        distance = np.hypot(rows % 8 - 3.5, cols % 8 - 3.5)
        return np.clip(3.6 - distance, 0, 1).astype(np.float32) * ((rows // 8 + cols // 8) % 2)
    return np.zeros((SIZE, SIZE), np.float32)


def _paint(image: np.ndarray, coverage: np.ndarray, color) -> None:
    image += coverage[..., None] * (np.asarray(color, np.float32) - image)


def _accessories(image: np.ndarray, thing: Thing) -> None:
    x, y, r = thing.x, thing.y, thing.radius
    if thing.accessory == "eye":
        _paint(image, _covered("circle", x, y, 6.5), CREAM)
        _paint(image, _covered("circle", x, y, 3), TEAL)
    elif thing.accessory == "hat":
        _paint(image, _covered("square", x, y - r - 2, 7), TEAL)


def render(scene: Scene) -> np.ndarray:
    """The image of a scene, uint8 (128, 128, 3)."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    if scene.moon:
        _paint(image, _covered("circle", 116, 12, 6), TEAL)
    for thing in scene.things:
        color = np.asarray(COLORS[thing.color], np.float32)
        paint = color * (1 - (1 - SHADE) * _texture(thing.texture)[..., None])
        _paint(image, _covered(thing.shape, thing.x, thing.y, thing.radius), paint)
        _accessories(image, thing)
    return (image + 0.5).clip(0, 255).astype(np.uint8)


def thing_masks(scene: Scene) -> list[np.ndarray]:
    """One bool mask (128, 128) a thing, without its accessory."""
    return [_covered(t.shape, t.x, t.y, t.radius) > 0.5 for t in scene.things]


_WHERE = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
    "center": ("in the center", "in the middle"),
}
_RELATION = {"horizontal": ("to the left of", "left of"), "vertical": ("above", "over")}


def _noun(rng, thing: Thing) -> tuple[str, Claim]:
    size = thing.size if thing.size != "medium" and rng.random() < 0.75 else None
    texture = thing.texture if thing.texture != "plain" and rng.random() < 0.9 else None
    words = [w for w in (size, texture, thing.color, thing.shape) if w]
    article = "an" if words[0][0] in "aeiou" else "a"
    return f"{article} {' '.join(words)}", Claim(thing.shape, thing.color, texture, size)


def _single(rng, scene: Scene) -> tuple[str, tuple[Claim, ...]]:
    noun, claim = _noun(rng, scene.things[0])
    if rng.random() < 0.6:
        return f"{noun} {_one_of(rng, _WHERE[scene.layout][: 1 + (rng.random() < 0.3)])}", (replace(claim, position=scene.layout),)
    return noun, (claim,)


def _pair(rng, scene: Scene) -> tuple[str, tuple[Claim, ...]]:
    (one, claim_one), (two, claim_two) = (_noun(rng, t) for t in scene.things)
    places = PAIR_PLACES[scene.layout]
    named = replace(claim_one, position=places[0]), replace(claim_two, position=places[1])
    kind = rng.random()
    if kind < 0.3:
        return f"{one} {_one_of(rng, _RELATION[scene.layout])} {two}", named
    phrases = [(one, claim_one), (two, claim_two)]
    if kind < 0.6:
        phrases = [(f"{p} {_WHERE[place][0]}", c) for (p, _), c, place in zip(phrases, named, places)]
    if rng.random() < 0.5:
        phrases.reverse()
    return " and ".join(p for p, _ in phrases), tuple(c for _, c in phrases)


def random_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of many true wordings; most name the background, none names an accessory or the moon."""
    text, claims = (_single if len(scene.things) == 1 else _pair)(rng, scene)
    background = scene.background if rng.random() < 0.9 else None
    if background:
        text = _one_of(
            rng, (f"{text} on a {background} background", f"{text}, {background} background", f"{text} on {background}"), (0.6, 0.25, 0.15)
        )
    prefix = _one_of(rng, ("", "a picture of ", "a drawing of "), (0.7, 0.15, 0.15))
    return Caption(prefix + text, claims, background)
