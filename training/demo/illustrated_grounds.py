"""Paints the ten grounds of the illustrated world, so that a caption can name where a thing is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from ...guidance.errors import check_choice

SIZE = 192  # pixels, the side of an image
FLOOR = {  # lowest and highest line on which a thing rests, as a share of the height; the sky has none
    "beach": (0.74, 0.9),
    "grass": (0.72, 0.9),
    "snow": (0.72, 0.9),
    "night": (0.72, 0.9),
    "table": (0.7, 0.88),
    "brick wall": (0.8, 0.9),
    "water": (0.66, 0.86),
    "desert": (0.72, 0.9),
    "sky": None,
    "white": (0.7, 0.88),
}
Rng = np.random.Generator
_ROWS = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
_COLS = np.linspace(0, 1, SIZE, dtype=np.float32)[None]
_SMOOTH = 2  # oversampling of drawn clouds, suns and stars


def smooth_noise(rng: Rng, rows: int, cols: int) -> np.ndarray:
    """Random waves, float (SIZE, SIZE) about within [-1, 1], with `rows` x `cols` bumps."""
    grid = Image.fromarray(rng.uniform(-1, 1, (rows, cols)).astype(np.float32))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _line(rng: Rng, height: float, swing: float, bumps: int = 4) -> np.ndarray:
    """The height of a wavy horizontal line at each column, float (1, SIZE)."""
    knots = rng.uniform(-1, 1, bumps)
    return (height + swing * np.interp(_COLS[0] * (bumps - 1), np.arange(bumps), knots)).astype(np.float32)[None]


def _below(line: np.ndarray | float) -> np.ndarray:
    """Share of each pixel below a line, float (SIZE, SIZE, 1)."""
    return np.clip((_ROWS - line) * SIZE + 0.5, 0, 1)[..., None] * np.ones((1, SIZE, 1), np.float32)


def _fade(top: tuple, bottom: tuple, start: float = 0.0, stop: float = 1.0) -> np.ndarray:
    """A vertical gradient between two colors, float (SIZE, 1, 3)."""
    share = np.clip((_ROWS - start) / (stop - start), 0, 1)[..., None]
    return np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share


def _full(colors: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colors, (SIZE, SIZE, 3)).astype(np.float32)


def _cover(image: np.ndarray, share: np.ndarray, color) -> np.ndarray:
    return image + share * (np.asarray(color, np.float32) - image)


def _drawn(paint: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """What `paint(draw, side)` draws in white, as the share of each pixel, float (SIZE, SIZE, 1)."""
    side = SIZE * _SMOOTH
    canvas = Image.new("L", (side, side))
    paint(ImageDraw.Draw(canvas), side)
    return (np.asarray(canvas.reduce(_SMOOTH), np.float32) / 255)[..., None]


def _disc(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, radius: float, fill: int = 255) -> None:
    draw.ellipse([side * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=fill)


def _cloud(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, width: float) -> None:
    for dx, dy, r in ((-0.32, 0.03, 0.16), (-0.1, -0.05, 0.22), (0.16, -0.02, 0.2), (0.35, 0.04, 0.14)):
        _disc(draw, side, x + dx * width, y + dy * width, r * width)
    draw.rounded_rectangle([side * v for v in (x - width / 2, y, x + width / 2, y + 0.18 * width)], side * 0.09 * width, fill=255)


def _clouds(rng: Rng, image: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    spots = [(rng.uniform(0.05, 0.95), rng.uniform(low, high), rng.uniform(0.16, 0.28)) for _ in range(count)]
    return _cover(image, 0.9 * _drawn(lambda draw, side: [_cloud(draw, side, *spot) for spot in spots]), (252, 253, 255))


def _sun(rng: Rng, image: np.ndarray, color: tuple, chance: float = 0.7) -> np.ndarray:
    x, y = rng.choice((rng.uniform(0.1, 0.25), rng.uniform(0.75, 0.9))), rng.uniform(0.1, 0.2)
    if rng.random() > chance:
        return image
    return _cover(image, _drawn(lambda draw, side: _disc(draw, side, x, y, 0.06)), color)


def _dots(rng: Rng, count: int, low: float, high: float, radius: tuple[float, float]) -> np.ndarray:
    spots = [(rng.random(), rng.uniform(low, high), rng.uniform(*radius) / SIZE) for _ in range(count)]
    return _drawn(lambda draw, side: [_disc(draw, side, *spot) for spot in spots])


def _blue_sky(rng: Rng, bottom: float) -> np.ndarray:
    top = np.asarray((70, 150, 230)) + rng.uniform(-14, 14, 3)
    return _full(_fade(top, (205, 232, 250), 0, bottom))


def _beach(rng: Rng) -> np.ndarray:
    horizon, shore = rng.uniform(0.34, 0.4), _line(rng, rng.uniform(0.52, 0.57), 0.015, 5)
    image = _sun(rng, _clouds(rng, _blue_sky(rng, 0.4), int(rng.integers(0, 3)), 0.06, 0.24), (255, 232, 130))
    image = _cover(image, _below(horizon), _fade((24, 104, 190), (70, 190, 215), horizon, 0.55))
    image = _cover(image, _below(shore - 0.012), (244, 250, 250))
    sand = _fade((236, 208, 150), (214, 178, 116), 0.55, 1) * (1 + 0.035 * smooth_noise(rng, 14, 10))[..., None]
    return _cover(image, _below(shore + 0.012), sand)


def _grass(rng: Rng) -> np.ndarray:
    image = _clouds(rng, _blue_sky(rng, 0.5), int(rng.integers(1, 4)), 0.08, 0.3)
    image = _cover(image, _below(_line(rng, 0.44, 0.05)), (132, 196, 96))
    lawn = _fade((98, 178, 66), (62, 140, 48), 0.5, 1) * (1 + 0.05 * smooth_noise(rng, 10, 8))[..., None]
    image = _cover(image, _below(_line(rng, 0.52, 0.02, 3)), lawn)
    image = _cover(image, _dots(rng, 7, 0.58, 0.98, (1.6, 2.4)), (255, 236, 120))
    return _cover(image, 0.6 * _dots(rng, 16, 0.56, 0.99, (1.5, 2.5)), (44, 112, 40))


def _snow(rng: Rng) -> np.ndarray:
    image = _full(_fade((150, 168, 204), (216, 224, 240), 0, 0.5))
    image = _cover(image, _below(_line(rng, 0.4, 0.07)), (176, 194, 218))
    field = _fade((250, 252, 255), (222, 232, 246), 0.5, 1) * (1 + 0.012 * smooth_noise(rng, 6, 4))[..., None]
    image = _cover(image, _below(_line(rng, 0.52, 0.03)), field)
    return _cover(image, _dots(rng, 26, 0, 0.95, (1.4, 2.4)), (255, 255, 255))


def _moon(rng: Rng, image: np.ndarray) -> np.ndarray:
    x, y, crescent = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.2), rng.random() < 0.5
    share = _drawn(lambda draw, side: _disc(draw, side, x, y, 0.065))
    if crescent:
        share = share * (1 - _drawn(lambda draw, side: _disc(draw, side, x + 0.035, y - 0.02, 0.06)))
    return _cover(image, share, (252, 244, 206))


def _night(rng: Rng) -> np.ndarray:
    image = _full(_fade((14, 16, 52), (64, 48, 112), 0, 0.6))
    image = _moon(rng, _cover(image, _dots(rng, 24, 0, 0.5, (0.9, 1.7)), (246, 246, 255)))
    return _cover(image, _below(_line(rng, 0.55, 0.03)), _fade((38, 46, 78), (22, 28, 54), 0.55, 1))


def _table(rng: Rng) -> np.ndarray:
    wall = np.asarray((232, 218, 196)) + rng.uniform(-12, 12, 3)
    image, edge = _full(_fade(wall, wall - 14)), rng.uniform(0.5, 0.56)
    planks = (_COLS - 0.5) / (_ROWS - edge + 0.35) * 4.2 + rng.random()
    shade = 1 + 0.09 * np.sin(2.4 * np.floor(planks) ** 2) + 0.03 * smooth_noise(rng, 24, 5)
    shade = shade * (1 - 0.3 * np.clip(1.5 - 14 * np.abs(planks - np.round(planks)), 0, 1))
    wood = _fade((176, 118, 66), (150, 94, 48), edge, 1) * shade[..., None]
    return _cover(_cover(image, _below(edge), wood), _below(edge) - _below(edge + 0.02), (196, 140, 84))


def _brick_wall(rng: Rng) -> np.ndarray:
    rows, cols = np.mgrid[:SIZE, :SIZE]
    layer = rows // 16
    column = (cols + 16 * (layer % 2)) // 32
    tones = rng.uniform(-0.1, 0.1, (SIZE // 16, SIZE // 32 + 1)).astype(np.float32)
    mortar = ((rows % 16 < 3) | ((cols + 16 * (layer % 2)) % 32 < 3))[..., None]
    brick = np.asarray((176, 84, 66), np.float32) * (1 + tones[layer, column])[..., None]
    image = np.where(mortar, np.asarray((206, 188, 176), np.float32), brick)
    return _cover(image, _below(0.75), _fade((150, 150, 152), (118, 118, 122), 0.75, 1))


def _water(rng: Rng) -> np.ndarray:
    horizon = rng.uniform(0.32, 0.4)
    image = _clouds(rng, _blue_sky(rng, 0.4), int(rng.integers(0, 3)), 0.06, 0.24)
    image = _cover(image, _below(horizon), _fade((38, 120, 200), (16, 74, 150), horizon, 1))
    for height in np.arange(horizon + 0.1, 1, 0.13):
        wave = height + 0.012 * np.sin(2 * np.pi * (_COLS * rng.uniform(2, 3.5) + rng.random()))
        image = _cover(image, 0.35 * (_below(wave) - _below(wave + 0.016)), (150, 210, 245))
    return image


def _desert(rng: Rng) -> np.ndarray:
    image = _sun(rng, _full(_fade((244, 176, 110), (252, 226, 176), 0, 0.5)), (255, 244, 190))
    image = _cover(image, _below(_line(rng, 0.42, 0.06)), (222, 156, 92))
    return _cover(image, _below(_line(rng, 0.54, 0.04, 3)), _fade((232, 174, 98), (204, 138, 70), 0.5, 1))


def _sky(rng: Rng) -> np.ndarray:
    blue = _fade(np.asarray((66, 140, 226)) + rng.uniform(-14, 14, 3), (168, 212, 246))
    return _clouds(rng, _full(blue), int(rng.integers(3, 6)), 0.08, 0.92)


def _white(rng: Rng) -> np.ndarray:
    return _full(_fade((248, 248, 248), (240, 240, 240)))


_PAINTERS = {
    "beach": _beach,
    "grass": _grass,
    "snow": _snow,
    "night": _night,
    "table": _table,
    "brick wall": _brick_wall,
    "water": _water,
    "desert": _desert,
    "sky": _sky,
    "white": _white,
}
GROUNDS = tuple(_PAINTERS)


def paint_ground(name: str, rng: Rng) -> np.ndarray:
    """A ground without things, float (SIZE, SIZE, 3) in [0, 255]."""
    check_choice("ground", name, GROUNDS)
    return _PAINTERS[name](rng)
