"""The illustrated world as the recipes of adapters take it: what its scenes teach, and how its images are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from controlled_diffusion.training.demo import illustrated_world as world
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.demo.illustrated_captions import GROUND_WORDS, PLACE_WORDS, STYLE_WORDS, Caption, random_caption
from controlled_diffusion.training.demo.illustrated_drawings import COLORABLE, COLORS, OTHER_POSE, THINGS
from controlled_diffusion.training.demo.illustrated_grounds import FLOOR, GROUNDS, SIZE
from controlled_diffusion.training.demo.illustrated_reader import Reading
from controlled_diffusion.training.demo.illustrated_scenes import (
    CARTOONS,
    FLYING,
    SPANS,
    STYLES,
    Scene,
    Thing,
    drawn_by,
    one_of,
    random_scene,
    resting,
)

from demo import illustrated_reader as reader
from demo import illustrated_recipe as recipe
from demo.any_world import PLANS, ROOT, Edit, Plan, Rng, World, changed, other
from demo.fast_norm import use_fast_norm

UNCOLORED = "pencil drawing"
LIFT = (18, 40)  # pixels by which what flies is above its floor
ALIKE = 4  # singles in a row with the same look, two and two on the same ground
STYLE_NOUNS = {
    "cartoon": "a cartoon", "3d": "a 3d render", "watercolor": "a watercolor", "pencil drawing": "a pencil drawing",
}  # fmt: skip


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def color_of(scene: Scene, thing: Thing) -> str | None:
    """The color that can be seen."""
    return None if scene.style == UNCOLORED else thing.color


def colored(scene: Scene, thing: Thing) -> str:
    return " ".join(word for word in (color_of(scene, thing), thing.name) if word)


def renamed(rng: Rng, thing: Thing, name: str) -> Thing:
    """Another thing at the same place, of the same size, drawn by the same set where that has its pose."""
    lift = sum(LIFT) / 2 * ((name in FLYING) - (thing.name in FLYING))
    color = one_of(rng, COLORS) if name in COLORABLE else None
    kind = drawn_by(rng, "cartoon", name) if thing.drawing == OTHER_POSE.get(name) else thing.drawing
    return replace(thing, name=name, drawing=kind, color=color, bottom=max(thing.bottom - lift, min(thing.span + 4, thing.bottom)))


def stands(thing: Thing, ground: str) -> bool:
    """Whether a thing can be where it is on another ground."""
    low, high = LIFT if thing.name in FLYING else (0, 0)
    return FLOOR[ground] is None or FLOOR[ground][0] * SIZE - high <= thing.bottom <= FLOOR[ground][1] * SIZE - low


def restyled(rng: Rng, scene: Scene, style: str) -> Scene:
    """The scene in another style: the same drawings but for "3d", which has its own."""
    if "3d" not in (scene.style, style):
        return replace(scene, style=style)
    return replace(scene, style=style, things=tuple(replace(thing, drawing=drawn_by(rng, style, thing.name)) for thing in scene.things))


def name_of(rng: Rng, scene: Scene, which: int) -> str:
    """A phrase that means one thing of a scene and no other."""
    thing = scene.things[which]
    names = [f"the {thing.name}", f"the {colored(scene, thing)}"]
    return one_of(rng, [*names, "it"] if len(scene.things) == 1 else [*names, f"the {thing.name} {PLACE_WORDS[thing.place][0]}"])


def to_ground(rng: Rng, after: Scene) -> str:
    it = name_of(rng, after, 0) if len(after.things) == 1 else "them"
    orders = [f"put {it} {{}}", f"place {it} {{}}", *["make it {0}"] * (after.ground == "night")]
    order = one_of(rng, orders)
    return order.format("night" if order == "make it {0}" else one_of(rng, GROUND_WORDS[after.ground]))


@lru_cache(1)
def trained_reader() -> reader.Reader:
    return reader.load(reader.WEIGHTS)


class Illustrated(World):
    """One or two drawn things on a painted ground, in a style."""

    def network(self, unet: torch.nn.Module) -> torch.nn.Module:
        return use_fast_norm(unet)

    def scene(self, index: int, seed: int = recipe.SEEDS["scenes"]) -> Scene:
        return recipe.scene(index, seed)

    def single(self, index: int, seed: int) -> Scene:
        look = random_scene(np.random.default_rng((seed, index // ALIKE)), pair_share=0.0)
        ground = one_of(np.random.default_rng((seed, index // 2, 2)), GROUNDS)
        rng = np.random.default_rng((seed, index, 1))
        own = random_scene(rng, pair_share=0.0)
        (thing,), (shown,) = own.things, look.things
        bottom = resting(rng, ground, shown.name, thing.span)
        thing = replace(thing, name=shown.name, drawing=shown.drawing, color=shown.color, bottom=bottom)
        return Scene(ground, look.style, (thing,), own.seed)

    def image(self, scene: Scene) -> np.ndarray:
        return world.paint(scene)[0]

    def masks(self, scene: Scene) -> tuple[np.ndarray, ...]:
        return world.thing_masks(scene)

    def spots(self, scene: Scene) -> list[tuple[float, float, float]]:
        return [(t.x, t.bottom - t.span / 2, t.span / 2) for t in scene.things]

    def caption(self, scene: Scene, rng: Rng) -> Caption:
        return random_caption(scene, rng)

    def present(self, scene: Scene) -> set[str]:
        return {GROUND_WORDS[scene.ground][0], scene.style}

    def facts_of(self, scene: Scene) -> tuple[str, ...]:
        (thing,) = scene.things
        return thing.name, color_of(scene, thing) or "none", thing.drawing, scene.style, scene.ground, thing.size

    def looks(self, scene: Scene) -> tuple[tuple, ...]:
        """A drawing of a thing in its color and style, and that on its ground."""
        (thing,) = scene.things
        look = thing.name, color_of(scene, thing), thing.drawing, scene.style
        return look, (*look, scene.ground)

    def carried(self, scene: Scene, caption: Caption) -> tuple:
        """The text wins where it speaks: a ground that it names may be another than the image's."""
        return self.looks(scene)[not caption.ground]

    def neutral_caption(self, scene: Scene, rng: Rng) -> Caption:
        noun = one_of(rng, ("something", "a thing", "an object"))
        where = f" {one_of(rng, PLACE_WORDS[scene.things[0].place])}" if rng.random() < 0.5 else ""
        ground = f" {one_of(rng, GROUND_WORDS[scene.ground])}" if rng.random() < 0.5 else ""
        return Caption(noun + where + ground, ground=scene.ground if ground else None)

    def spoken(self, scene: Scene) -> tuple[str, ...]:
        return with_article(colored(scene, scene.things[0])), GROUND_WORDS[scene.ground][0], f", {STYLE_WORDS[scene.style][1]}"

    def _first(self, rng: Rng) -> tuple[Scene, list[str]]:
        """A scene, and the other grounds on which its things can be where they are."""
        grounds: list[str] = []
        while not grounds:
            scene = random_scene(rng)
            grounds = [g for g in GROUNDS if g != scene.ground and all(stands(thing, g) for thing in scene.things)]
        return scene, grounds

    def family(self, index: int, seed: int) -> tuple[int, tuple[Scene, ...]]:
        """Six scenes: as drawn, with another thing, with that in another color or a third thing, without it, on another ground, in another
        style. Everything else is the same, pixel by pixel where the ground and the style are."""
        rng = np.random.default_rng((seed, index))
        scene, grounds = self._first(rng)
        which = int(rng.integers(len(scene.things)))
        thing, taken = scene.things[which], [t.name for t in scene.things]
        recolor = scene.style != UNCOLORED and rng.random() < 0.7
        second = renamed(rng, thing, other(rng, COLORABLE if recolor else THINGS, *taken))
        if recolor:
            third = replace(second, color=other(rng, COLORS, second.color))
        else:
            third = renamed(rng, thing, other(rng, THINGS, *taken, second.name))
        moved = replace(scene, ground=one_of(rng, grounds))
        style = restyled(rng, scene, other(rng, STYLES, scene.style))
        return which, (scene, changed(scene, which, second), changed(scene, which, third), changed(scene, which), moved, style)

    def pairs(self, scenes: tuple) -> list[tuple[int, int, str]]:
        first, second = ([thing.name for thing in scenes[i].things] for i in (1, 2))
        between = ((0, 1, "thing"), (0, 2, "thing"), (1, 2, "color" if first == second else "thing"), (0, 4, "ground"), (0, 5, "style"))
        both_ways = [pair for a, b, kind in between for pair in ((a, b, kind), (b, a, kind))]
        return [*both_ways, *((before, 3, "remove") for before in range(3))]

    def instruction(self, rng: Rng, before: Scene, after: Scene, which: int, kind: str) -> str:
        if kind == "ground":
            return to_ground(rng, after)
        if kind == "style":
            return one_of(rng, ("as {}", "make it {}", "turn it into {}")).format(STYLE_NOUNS[after.style])
        name = name_of(rng, before, which)
        if kind == "remove":
            return f"{one_of(rng, ('remove', 'delete', 'erase'))} {name}"
        new = after.things[which]
        if kind == "color":
            return f"{one_of(rng, ('make', 'turn', 'paint'))} {name} {new.color}"
        return one_of(rng, ("make {} {}", "turn {} into {}", "replace {} with {}")).format(name, with_article(new.name))

    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        return reader.read(trained_reader(), list(images))

    def described(self, reading: Reading, alone: bool = False) -> dict[str, str]:
        found = {"ground": reading.ground, "style": reading.style, "count": str(len(reading.things))}
        if not reading.things or (alone and len(reading.things) > 1):
            return found
        thing = reading.things[0]
        color = {"color": thing.color} if thing.name in COLORABLE and reading.style != UNCOLORED else {}
        return found | {"thing": thing.name, "place": thing.place} | color

    def shows(self, reading: Reading, label: str) -> bool:
        return label in {GROUND_WORDS[reading.ground][0], reading.style}

    def wanted(self, edit: Edit) -> Scene:
        """Of a new thing no instruction says the color."""
        if edit.kind != "thing":
            return edit.after
        return changed(edit.after, edit.which, replace(edit.after.things[edit.which], color=None))

    def matches(self, reading: Reading, scene: Scene) -> bool:
        return len(reading.things) == len(scene.things) and all(reader.judge(reading, reader.truth_of(scene)).values())

    def is_plain(self, scene: Scene) -> bool:
        return len(scene.things) == 1

    def _prompt(self, scene: Scene, noun: str, place: str = "") -> str:
        style = "" if scene.style == "cartoon" else f", {STYLE_WORDS[scene.style][1]}"
        return " ".join(part for part in (with_article(noun), place, GROUND_WORDS[scene.ground][0]) if part) + style

    def wish(self, scene: Scene, rng: Rng) -> tuple[str, str | None]:
        (thing,) = scene.things
        color = one_of(rng, COLORS) if color_of(scene, thing) else None
        return self._prompt(scene, f"{color} {thing.name}" if color else thing.name), color

    def opposite(self, scene: Scene) -> str | None:
        (thing,) = scene.things
        place = {"left": "right", "right": "left"}.get(thing.place)
        return self._prompt(scene, colored(scene, thing), PLACE_WORDS[place][0]) if place else None

    def beside_an_image(self, scene: Scene, rng: Rng) -> tuple[str, dict[str, str], set[str]]:
        """Another place than the image's; every second prompt also wants another ground, the others leave the image's."""
        (thing,) = scene.things
        place, says_ground = other(rng, list(PLACE_WORDS), thing.place), rng.random() < 0.5
        ground = other(rng, GROUNDS, scene.ground) if says_ground else scene.ground
        text = f"something {PLACE_WORDS[place][0]}" + (f" {GROUND_WORDS[ground][0]}" if says_ground else "")
        color = {"color": thing.color} if color_of(scene, thing) else {}
        wanted = {"thing": thing.name, **color, "style": scene.style, "ground": ground, "place": place}
        return text, wanted, {"place", "ground"} if says_ground else {"place"}


ILLUSTRATED = Illustrated(
    name="illustrated",
    size=SIZE,
    unet_config=recipe.UNET_CONFIG,
    vision_config=dict(
        model_type="clip_vision_model", num_channels=3, image_size=96, patch_size=8, hidden_size=96, intermediate_size=288,
        num_attention_heads=6, num_hidden_layers=4, hidden_act="gelu", projection_dim=96,
    ),
    plans={
        **PLANS,
        "control": replace(PLANS["control"], steps=5000),
        "classifier": replace(PLANS["classifier"], steps=2000, settings=dict(widths=(24, 48, 96))),
        "encoder": replace(PLANS["encoder"], steps=5000, settings=dict(patches=1.0, words=2.0)),
        "adapter": Plan(3000, 8e-4, 24),
        "train": Plan(6000, 1.2e-3, 24, dict(noisy_share=0.4, pair_share=0.5, focus=2.0)),
        "refine": Plan(800, 1.2e-3, 24, dict(noisy_share=0.7, pair_share=0.75, focus=4.0)),
    },
    files=FILES["illustrated"],
    weights=FILES["illustrated"].model,
    state=ROOT / ".host" / "illustrated_model",
    labels={"ground": tuple(words[0] for words in GROUND_WORDS.values()), "style": tuple(STYLES)},
    facts={
        "thing": THINGS,
        "color": (*COLORS, "none"),
        "drawing": (*CARTOONS, "fluent 3d"),
        "style": tuple(STYLES),
        "ground": GROUNDS,
        "size": tuple(SPANS),
    },
    on_thing=("thing", "color"),
    on_ground=("ground",),
    slots=(2, 2, 2),
    kinds=("thing", "color", "ground", "style", "remove"),
    variants=6,
    no_caption=Caption(""),
    guided=("ground", "style"),
    goal=("thing", "ground"),
    scenes=recipe.RECIPES["cpu"].growth[-1][0],
    singles=10_000,
    targets=3000,
    families=1200,
)  # fmt: skip
