"""Draws the layout of a scene of the illustrated world at random: things, places, sizes, colors, ground and style."""

from __future__ import annotations

from dataclasses import dataclass

from .illustrated_drawings import COLORABLE, COLORS, OTHER_POSE, THINGS
from .illustrated_grounds import FLOOR, GROUNDS, SIZE, Rng

STYLES = {"cartoon": 0.5, "3d": 0.2, "watercolor": 0.15, "pencil drawing": 0.15}
SPANS = {"small": (80, 92), "normal": (106, 118), "large": (136, 148)}  # longest side of one thing, pixels
PAIR_SPANS = {"small": (66, 74), "normal": (84, 92)}
PLACES = {"left": (0.28, 0.33), "middle": (0.47, 0.53), "right": (0.67, 0.72)}  # center of a thing as a share of the width
PAIR_PLACES = {"left": (0.24, 0.28), "right": (0.72, 0.76)}
FLYING = ("airplane", "balloon")
OFF_CENTER = 20  # pixels from the middle column at which a thing counts as left or right
CARTOONS = ("noto", "twemoji", "fluent flat")


@dataclass(frozen=True)
class Thing:
    """One thing. `x` and `bottom` (its lowest pixel) and `span` (its longest side before the turn) are in pixels, `turn` in degrees;
    `flip` mirrors what may be mirrored."""

    name: str
    drawing: str  # one of illustrated_drawings.SETS
    color: str | None
    size: str
    place: str  # "left", "middle" or "right"
    x: float
    bottom: float
    span: float
    turn: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows; `seed` draws the details of the ground and the style."""

    ground: str
    style: str
    things: tuple[Thing, ...]  # from left to right
    seed: int = 0


def one_of(rng: Rng, items, weights=None):
    """A random item; `weights` sum to 1."""
    return list(items)[int(rng.choice(len(items), p=weights))]


def drawn_by(rng: Rng, style: str, name: str) -> str:
    """The set that draws a thing in a style."""
    return "fluent 3d" if style == "3d" else one_of(rng, [kind for kind in CARTOONS if kind != OTHER_POSE.get(name)])


def resting(rng: Rng, ground: str, name: str, span: float) -> float:
    """Where a thing stands. Small ones may stand farther away; those that fly are above the floor."""
    if FLOOR[ground] is None:
        return float(rng.uniform(span + 6, SIZE - 6))
    far, near = FLOOR[ground]
    floor = SIZE * float(rng.uniform(max(far, min(near, 0.04 + span / SIZE)), near))
    lift = rng.uniform(18, 40) if name in FLYING else 0.0
    return max(floor - lift, min(span + 4, floor))


def _thing(rng: Rng, ground: str, style: str, place: str, spans: dict, places: dict, name: str = "", drawing: str = "") -> Thing:
    name, size = name or one_of(rng, THINGS), one_of(rng, spans)
    span = float(rng.uniform(*spans[size]))
    color = one_of(rng, COLORS) if name in COLORABLE else None
    x = SIZE * float(rng.uniform(*places[place]))
    turn, flip = float(rng.uniform(-7, 7)), bool(rng.random() < 0.5)
    return Thing(name, drawing or drawn_by(rng, style, name), color, size, place, x, resting(rng, ground, name, span), span, turn, flip)


def random_scene(rng: Rng, pair_share: float = 0.35) -> Scene:
    """A scene drawn at random; two different things with probability `pair_share`."""
    ground, style = one_of(rng, GROUNDS), one_of(rng, STYLES, list(STYLES.values()))
    seed = int(rng.integers(2**31))
    if rng.random() >= pair_share:
        return Scene(ground, style, (_thing(rng, ground, style, one_of(rng, PLACES), SPANS, PLACES),), seed)
    first, second = (_thing(rng, ground, style, place, PAIR_SPANS, PAIR_PLACES) for place in PAIR_PLACES)
    while second.name == first.name:
        second = _thing(rng, ground, style, "right", PAIR_SPANS, PAIR_PLACES)
    return Scene(ground, style, (first, second), seed)


def scene_of(rng: Rng, ground: str, name: str, drawing: str) -> Scene:
    """A scene of one thing by one of SETS, as it is drawn; also of what `random_scene` never shows."""
    seed, place = int(rng.integers(2**31)), one_of(rng, PLACES)
    return Scene(ground, "cartoon", (_thing(rng, ground, "cartoon", place, SPANS, PLACES, name, drawing),), seed)
