"""Captions of the illustrated world in varied wording, with all that each of them claims."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .illustrated_drawings import COLORS, THINGS
from .illustrated_grounds import Rng
from .illustrated_scenes import Scene, Thing, one_of

GROUND_WORDS = {
    "beach": ("on the beach", "at the beach", "on a beach"),
    "grass": ("on grass", "on a lawn", "in a meadow"),
    "snow": ("in the snow", "on snow"),
    "night": ("at night", "under the stars"),
    "table": ("on a wooden table", "on a table"),
    "brick wall": ("in front of a brick wall", "before a brick wall"),
    "water": ("on the water", "in the sea"),
    "desert": ("in the desert", "in a desert"),
    "sky": ("in the sky", "among the clouds"),
    "white": ("on a white background", "on white"),
}
STYLE_WORDS = {  # before and after the rest of the caption
    "cartoon": ("a cartoon of", "cartoon style"),
    "3d": ("a 3d render of", "3d render"),
    "watercolor": ("a watercolor of", "watercolor"),
    "pencil drawing": ("a pencil drawing of", "pencil drawing"),
}
STYLE_NAMED = {"cartoon": 0.3, "3d": 0.95, "watercolor": 0.98, "pencil drawing": 0.98}
PLACE_WORDS = {
    "left": ("on the left", "at the left"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "at the right"),
}
SIZE_WORDS = {"small": ("small", "little"), "normal": (None,), "large": ("big", "large")}


@dataclass(frozen=True)
class Claim:
    """What a caption says of one thing; None where it says nothing."""

    name: str
    color: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Caption:
    """A caption and all that it claims, things in the order of their places; None where it says nothing."""

    text: str
    claims: tuple[Claim, ...] = ()
    ground: str | None = None
    style: str | None = None


def _noun(rng: Rng, scene: Scene, thing: Thing) -> tuple[str, Claim]:
    size = one_of(rng, SIZE_WORDS[thing.size]) if rng.random() < 0.75 else None
    color = thing.color if scene.style != "pencil drawing" and rng.random() < 0.9 else None
    words = [word for word in (size, color, thing.name) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    return f"{article} {' '.join(words)}", Claim(thing.name, color, thing.size if size else None)


def _single(rng: Rng, scene: Scene, ground: str) -> tuple[str, tuple[Claim, ...]]:
    """One thing, then where in the image and on which ground, in either order."""
    (thing,) = scene.things
    noun, claim = _noun(rng, scene, thing)
    if rng.random() < 0.35:
        return f"{noun} {ground}".strip(), (claim,)
    place = one_of(rng, PLACE_WORDS[thing.place], (0.75, 0.25))
    text = f"{noun} {place} {ground}" if rng.random() < 0.4 or not ground else f"{noun} {ground}, {place}"
    return text.strip(), (replace(claim, place=thing.place),)


def _pair(rng: Rng, scene: Scene, ground: str) -> tuple[str, tuple[Claim, ...]]:
    (one, first), (two, second) = (_noun(rng, scene, thing) for thing in scene.things)
    placed = replace(first, place="left"), replace(second, place="right")
    kind = rng.random()
    if kind < 0.3:
        return f"{one} to the left of {two} {ground}".strip(), placed
    if kind < 0.4:
        return f"{two} to the right of {one} {ground}".strip(), placed
    if kind < 0.65:
        return f"{one} on the left and {two} on the right {ground}".strip(), placed
    nouns = (one, two) if rng.random() < 0.5 else (two, one)
    return f"{one_of(rng, (' and ', ' next to ')).join(nouns)} {ground}".strip(), (first, second)


def random_caption(scene: Scene, rng: Rng) -> Caption:
    """One of many true wordings. Most name the ground; a style without a name is most often a cartoon."""
    ground = scene.ground if rng.random() < 0.92 else None
    words = one_of(rng, GROUND_WORDS[scene.ground]) if ground else ""
    text, claims = (_single if len(scene.things) == 1 else _pair)(rng, scene, words)
    if rng.random() >= STYLE_NAMED[scene.style]:
        return Caption(text, claims, ground)
    before, after = STYLE_WORDS[scene.style]
    return Caption(f"{before} {text}" if rng.random() < 0.5 else f"{text}, {after}", claims, ground, scene.style)


def _words(*several: str) -> str:
    """A pattern of any of the phrases, the longest that fits."""
    return "|".join(map(re.escape, sorted(several, key=len, reverse=True)))


_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words if word}
_NOUN = re.compile(rf"\b(?:an?|the) (?:({_words(*_SIZES)}) )?(?:({_words(*COLORS)}) )?({_words(*THINGS)})\b")
_RELATION = {"to the left of": ("left", "right"), "to the right of": ("right", "left")}


def _named(text: str, words: dict[str, tuple[str, ...]]) -> str | None:
    """The first key one of whose phrases is in a text."""
    return next((key for key, phrases in words.items() if re.search(rf"\b(?:{_words(*phrases)})\b", text)), None)


def caption_of(text: str) -> Caption:
    """What a sentence in the words of the world says: all that `random_caption` can claim. Things are in the order of their places, or else of
    the words."""
    nouns = list(_NOUN.finditer(text))
    after = [text[noun.end() : following.start()] for noun, following in zip(nouns, nouns[1:])] + [text[noun.end() :] for noun in nouns[-1:]]
    places = [_named(words, PLACE_WORDS) for words in after]
    if len(nouns) == 2 and after[0].strip() in _RELATION:
        places = _RELATION[after[0].strip()]
    claims = [Claim(name, color, _SIZES.get(size), place) for (size, color, name), place in zip((n.groups() for n in nouns), places)]
    if all(places):
        claims.sort(key=lambda claim: list(PLACE_WORDS).index(claim.place))
    return Caption(text, tuple(claims), _named(text, GROUND_WORDS), _named(text, STYLE_WORDS))
