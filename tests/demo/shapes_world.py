"""The world of shapes as the recipes of adapters take it: what its scenes teach, and how its images are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from controlled_diffusion.training.demo import checker, config
from controlled_diffusion.training.demo.files import FILES

from demo import model as demo_model
from demo import world
from demo.any_world import PLANS, ROOT, Plan, Rng, World, changed, other

LOOKS = {"shape": world.SHAPES, "color": tuple(world.COLORS), "texture": world.TEXTURES}
WHERE = dict(left="on the left", right="on the right", top="at the top", bottom="at the bottom", center="in the center")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
PAIRS = ((0, 1, "color"), (1, 0, "color"), (0, 2, "shape"), (2, 0, "shape"), (0, 3, "remove"), (1, 3, "remove"), (2, 3, "remove"))


def name_of(rng: Rng, scene: world.Scene, which: int) -> str:
    """A phrase that means one thing of a scene and no other."""
    thing, others = scene.things[which], [t for i, t in enumerate(scene.things) if i != which]
    names = [f"the {thing.color} {thing.shape}"]
    names += [f"the {thing.shape}"] * all(o.shape != thing.shape for o in others)
    names += [f"the {thing.color} object"] * all(o.color != thing.color for o in others)
    names += ["it", "the object"] * (not others)
    return names[int(rng.integers(len(names)))]


class Shapes(World):
    """One or two shapes on a plain background."""

    def scene(self, index: int, seed: int = config.SEEDS["scenes"]) -> world.Scene:
        return demo_model.scene(index, seed)

    def single(self, index: int, seed: int) -> world.Scene:
        return world.random_scene(np.random.default_rng((seed, index)), pair_share=0.0)

    def image(self, scene: world.Scene) -> np.ndarray:
        return world.render(scene)

    def masks(self, scene: world.Scene) -> list[np.ndarray]:
        return world.thing_masks(scene)

    def spots(self, scene: world.Scene) -> list[tuple[float, float, float]]:
        return [(t.x, t.y, t.radius) for t in scene.things]

    def caption(self, scene: world.Scene, rng: Rng) -> world.Caption:
        return world.random_caption(scene, rng)

    def present(self, scene: world.Scene) -> set[str]:
        return {f"{scene.background} background"}.union(*((t.color, t.shape, t.texture) for t in scene.things))

    def facts_of(self, scene: world.Scene) -> tuple[str, ...]:
        (thing,) = scene.things
        return thing.shape, thing.color, thing.texture, scene.background, thing.size

    def looks(self, scene: world.Scene) -> tuple[tuple, ...]:
        return (tuple(getattr(scene.things[0], name) for name in LOOKS),)

    def carried(self, scene: world.Scene, caption: world.Caption) -> tuple:
        return self.looks(scene)[0]

    def neutral_caption(self, scene: world.Scene, rng: Rng) -> world.Caption:
        noun = ("something", "a thing", "an object", "a picture of something")[int(rng.integers(4))]
        where = f" {WHERE[scene.layout]}" if rng.random() < 0.6 else ""
        ground = (f" on a {scene.background} background", f", {scene.background} background", "")[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
        return world.Caption(noun + where + ground, background=scene.background if ground else None)

    def spoken(self, scene: world.Scene) -> tuple[str, ...]:
        (thing,) = scene.things
        return (" ".join(w for w in ("a", thing.texture, thing.color, thing.shape) if w != "plain"),)

    def family(self, index: int, seed: int) -> tuple[int, tuple[world.Scene, ...]]:
        """Four scenes: as drawn, with the thing in another color, in another shape, and without it."""
        rng = np.random.default_rng((seed, index))
        scene = world.random_scene(rng)
        which = int(rng.integers(len(scene.things)))
        thing = scene.things[which]
        rest = scene.things[1 - which] if len(scene.things) > 1 else None
        recolored = replace(thing, color=other(rng, world.COLORS, thing.color, rest.color if rest else ""))
        reshaped = replace(thing, shape=other(rng, world.SHAPES, thing.shape, rest.shape if rest else ""))
        return which, (scene, changed(scene, which, recolored), changed(scene, which, reshaped), changed(scene, which))

    def pairs(self, scenes: tuple) -> Sequence[tuple[int, int, str]]:
        return PAIRS

    def instruction(self, rng: Rng, before: world.Scene, after: world.Scene, which: int, kind: str) -> str:
        name = name_of(rng, before, which)
        if kind == "remove":
            return f"{('remove', 'delete', 'erase')[int(rng.integers(3))]} {name}"
        new = after.things[which]
        wanted = new.color if kind == "color" else f"{'an' if new.shape[0] in 'aeiou' else 'a'} {new.shape}"
        return (f"make {name} {wanted}", f"turn {name} {'into ' * (kind == 'shape')}{wanted}")[int(rng.integers(2))]

    def read(self, images: Sequence[np.ndarray]) -> list[checker.Reading]:
        return [checker.read(image) for image in images]

    def described(self, reading: checker.Reading, alone: bool = False) -> dict[str, str]:
        found = {"background": reading.background, "count": str(len(reading.things))}
        if not reading.things or (alone and len(reading.things) > 1):
            return found
        thing = reading.things[0]
        return found | dict(shape=thing.shape, color=thing.color, place=thing.position, size=thing.size, texture=thing.texture)

    def shows(self, reading: checker.Reading, label: str) -> bool:
        return label == f"{reading.background} background" or any(label in (t.color, t.shape, t.texture) for t in reading.things)

    def matches(self, reading: checker.Reading, scene: world.Scene) -> bool:
        return sorted((t.color, t.shape) for t in reading.things) == sorted((t.color, t.shape) for t in scene.things)

    def is_plain(self, scene: world.Scene) -> bool:
        return len(scene.things) == 1 and not scene.things[0].accessory and not scene.moon

    def wish(self, scene: world.Scene, rng: Rng) -> tuple[str, str]:
        color = str(rng.choice(list(world.COLORS)))
        return f"a {color} {scene.things[0].shape} on a {scene.background} background", color

    def opposite(self, scene: world.Scene) -> str | None:
        if scene.layout not in OPPOSITE:
            return None
        thing, place = scene.things[0], WHERE[OPPOSITE[scene.layout]]
        return f"a {thing.color} {thing.shape} {place} on a {scene.background} background"

    def beside_an_image(self, scene: world.Scene, rng: Rng) -> tuple[str, dict[str, str], set[str]]:
        """Background and place differ from the image's own."""
        others = (world.BACKGROUNDS, scene.background), (world.POSITIONS, scene.layout)
        background, place = (str(rng.choice([o for o in options if o != own])) for options, own in others)
        (thing,) = scene.things
        wanted = dict(color=thing.color, shape=thing.shape, texture=thing.texture, background=background, place=place)
        return f"something {WHERE[place]} on a {background} background", wanted, {"background", "place"}


SHAPES = Shapes(
    name="shapes",
    size=world.SIZE,
    unet_config=config.UNET_CONFIG,
    vision_config=config.VISION_CONFIG,
    plans={
        **PLANS,
        "adapter": Plan(400, 8e-4, 24),
        "train": Plan(1600, 6e-4, 24, dict(noisy_share=0.0, pair_share=0.5, focus=0.0)),
        "refine": Plan(1150, 1.5e-3, 24, dict(noisy_share=0.7, pair_share=0.75, focus=4.0)),
    },
    files=FILES["shapes"],
    weights=FILES["shapes"].model,
    state=ROOT / ".host" / "demo_model",
    labels={
        "color": tuple(world.COLORS),
        "shape": world.SHAPES,
        "texture": world.TEXTURES[1:],
        "background": tuple(f"{b} background" for b in world.BACKGROUNDS),
    },
    facts={**LOOKS, "background": tuple(world.BACKGROUNDS), "size": tuple(world.RADII)},
    on_thing=("shape", "color"),
    on_ground=("background",),
    slots=(3,),
    kinds=("color", "shape", "remove"),
    variants=4,
    no_caption=world.Caption(""),
    guided=("color", "shape"),
    goal=("color", "shape"),
    scenes=demo_model.RECIPE.scenes,
    singles=6000,
    targets=6000,
    families=2000,
)
