"""New things for the illustrated model: `python . run tests/measures/illustrated_training.py [--weights FILE] [--count 64]` (resumable).

DreamBooth learns a character that the world does not hold (a whale) as a LoRA with a new word, and textual inversion learns the outlined
drawings of a set that no scene of the world uses. A few scenes each are shown, with captions that say all the rest. Then held-out
prompts ask for them on the grounds of the world. Whether an image shows it is told by a logistic regression on the features of the
reader, which was never trained for it: fitted on drawn scenes with it and without; its accuracy on held-out ones is printed, as drawn and
through the VAE. "Without" is the untouched model, to which the character's plain name is said.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.training.demo.illustrated_captions import random_caption
from controlled_diffusion.training.demo.illustrated_drawings import UNSEEN
from controlled_diffusion.training.demo.illustrated_scenes import Scene, random_scene
from controlled_diffusion.training.textual_inversion import Word

from demo import worlds
from demo.any_world import Rng, World
from demo.illustrated_world import ILLUSTRATED, trained_reader
from demo.linear_reading import LinearReading, fitted, pooled
from harness.demo_images import Studio
from measures import personalization, script, textual_inversion
from measures.script import head, kept, percent, row, say

CHARACTER, DRAWN_BY, OUTLINED = "whale", "noto", "streamline"
NOT_OUTLINED = ("penguin", "owl", "house", "castle", "tree", "guitar")  # the set has no drawings of them
LESSON, HELD_OUT, READING, READING_HELD_OUT = 5100, 5200, 5300, 5400  # seeds
WORDINGS = 8
VAE_BATCH = 16


def plain(seed: int, index: int) -> Scene:
    """A scene of one thing in the style of most, without a color that has to be said."""
    found = (random_scene(np.random.default_rng((seed, index, i)), pair_share=0.0) for i in range(1000))
    return next(s for s in found if s.style == "cartoon" and s.things[0].color is None and s.things[0].name not in NOT_OUTLINED)


def with_thing(scene: Scene, **changes) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **changes),))


def with_character(scene: Scene, rng: Rng) -> Scene:
    return with_thing(scene, name=CHARACTER, drawing=DRAWN_BY, flip=False)


def with_another(scene: Scene, rng: Rng) -> Scene:
    """One scene in four shows a thing that is as new to the reader."""
    others = [name for name in UNSEEN if name != CHARACTER]
    return with_thing(scene, name=str(rng.choice(others)), drawing=DRAWN_BY) if rng.random() < 0.25 else scene


def outlined(scene: Scene, rng: Rng) -> Scene:
    return with_thing(scene, drawing=OUTLINED)


def unchanged(scene: Scene, rng: Rng) -> Scene:
    return scene


def caption(scene: Scene, number: int) -> str:
    """What a scene shows, without its style."""
    found = (random_caption(scene, np.random.default_rng((LESSON, number, i))) for i in range(1000))
    return next(c.text for c in found if c.style is None and c.ground)


@dataclass(frozen=True)
class Concept:
    """Something new: scenes that show it, scenes that do not, where a prompt says its word, and how many images are shown."""

    name: str
    shown: Callable[[Scene, Rng], Scene]
    absent: Callable[[Scene, Rng], Scene]
    said: Callable[[str, str], str]  # (caption, word) -> prompt
    images: int

    def scene(self, seed: int, index: int) -> Scene:
        return self.shown(plain(seed, index), np.random.default_rng((seed, index)))

    def lesson(self, word: str, wordings: int = WORDINGS) -> tuple[torch.Tensor, list[str]]:
        """(images (N, H, W, 3), captions that say it in several ways) to learn from."""
        scenes = [self.scene(LESSON, i) for i in range(self.images)]
        images = torch.from_numpy(np.stack([ILLUSTRATED.image(s) for s in scenes])).float() / 255
        texts = [[self.said(caption(s, 100 * i + k), word) for k in range(wordings)] for i, s in enumerate(scenes)]
        return images, [" | ".join(several) for several in texts]

    def examples(self, seed: int, count: int) -> tuple[list[np.ndarray], torch.Tensor]:
        """`count` scenes, every second of which shows it, and which of them do."""
        made = []
        for i in range(count):
            change = self.shown if i % 2 == 0 else self.absent
            made.append(ILLUSTRATED.image(change(plain(seed, i), np.random.default_rng((seed, i)))))
        return made, torch.arange(count) % 2 == 0


CONCEPTS = {
    "character": Concept("character", with_character, with_another, lambda text, word: text.replace(CHARACTER, word), images=6),
    "style": Concept("style", outlined, unchanged, "{}, {}".format, images=8),
}


def through_the_vae(studio: Studio, images: list[np.ndarray]) -> list[np.ndarray]:
    parts = (torch.from_numpy(np.stack(images[i : i + VAE_BATCH])).float() / 255 for i in range(0, len(images), VAE_BATCH))
    return [image for part in parts for image in studio.images(studio.vae.encode(part))]


@torch.inference_mode()
def reading_of(concept: Concept, studio: Studio, scenes: int) -> LinearReading:
    """Fits the reading on so many drawn scenes, and says how often it is right on half as many others."""
    images, shown = concept.examples(READING, scenes)
    reading = fitted(pooled(trained_reader(), images), shown)
    images, shown = concept.examples(READING_HELD_OUT, scenes // 2)
    shares = [
        float((reading(pooled(trained_reader(), made)) == shown).float().mean()) for made in (images, through_the_vae(studio, images))
    ]
    drawn, decoded = (percent(share, 1) for share in shares)
    say(f"reading of the {concept.name}: {drawn} right on {len(images)} held-out scenes, {decoded} through the VAE")
    return reading


def judged(studio: Studio, world: World, concept: Concept, reading: LinearReading, prompt_of: Callable[[str], str], model=None) -> Callable:
    """Whether images of held-out prompts show it, and the ground that is asked for."""

    def batch(first: int, number: int) -> list[dict]:
        scenes = [concept.scene(HELD_OUT, i) for i in range(first, first + number)]
        prompts = [prompt_of(caption(s, 10_000 + first + i)) for i, s in enumerate(scenes)]
        images = list(studio.draw(prompts, seed=first, model=model))
        found = zip(reading(pooled(trained_reader(), images)).tolist(), world.read(images), scenes)
        return [dict(shown=shows, ground=seen.ground == scene.ground) for shows, seen, scene in found]

    return torch.inference_mode()(batch)


def with_dreambooth(studio: Studio, concept: Concept, name: str, o: argparse.Namespace):
    """(model, word) that draw the character."""
    word = f"<{concept.name}>"
    subject = host.Subject(f"a {word}", (Word(word, o.words, o.vectors),), o.word_rate)
    design = adapters.Design("LoRA", o.rank, layers="-out.2, -emb")
    made = personalization.taught(studio, name, concept.lesson(word, o.wordings), subject, design, 0.0, o)
    return made.model, made.word


def with_textual_inversion(studio: Studio, concept: Concept, name: str, o: argparse.Namespace):
    """(model, word) that draw the style."""
    images, captions = concept.lesson(f"<{concept.name}>", wordings=1)
    return None, textual_inversion.taught(studio, f"<{concept.name}>", (images, captions), name, o)


TRAINERS = {"character": ("DreamBooth", with_dreambooth), "style": ("textual inversion", with_textual_inversion)}


def scored(studio: Studio, world: World, what: str, o: argparse.Namespace) -> list[str]:
    """Two lines of the table: with the learned word and without."""
    concept, (technique, train) = CONCEPTS[what], TRAINERS[what]
    own = argparse.Namespace(**vars(o) | SETTINGS[what] | {k: v for k, v in (("steps", o.steps),) if v})
    digest = hashlib.sha256(Path(world.weights).read_bytes()).hexdigest()[:12]
    reading, name = reading_of(concept, studio, o.scenes), f"{o.name}-{what}-{digest}"
    model, word = train(studio, concept, name, own)
    ways = {
        f"{technique}, {what}": kept(name, o.count, judged(studio, world, concept, reading, lambda text: concept.said(text, word), model)),
        "without": kept(f"{name}-without", o.count, judged(studio, world, concept, reading, str)),
    }
    return [
        row(way, len(found), *(percent(np.mean([one[fact] for one in found]), 1) for fact in ("shown", "ground")))
        for way, found in ways.items()
    ]


SETTINGS = {
    "character": dict(steps=800, batch=4, rate=0.004, average=0.98, rank=16, words="elephant", vectors=1, timesteps="shifted"),
    "style": dict(steps=200, batch=4, rate=0.02, words="drawing", vectors=2, norm="limit", norm_limit=1.5, dropout=0.0, timesteps="uniform"),
}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    return script.options_of(
        __doc__, arguments, worlds.add_places, count=(64, "prompts"), scenes=(600, "drawn scenes to fit each reading on"),
        only=dict(nargs="*", choices=list(CONCEPTS), default=list(CONCEPTS), help="one of both"),
        steps=(0, "of training, instead of the usual number"), weighting="own", wordings=(WORDINGS, "of each caption"),
        word_rate=0.01, name=("illustrated", "another one starts anew"),
    )  # fmt: skip


def main() -> None:
    o = options_of()
    world = worlds.placed(ILLUSTRATED, o)
    studio = worlds.studio(world)
    lines = [line for what in o.only for line in scored(studio, world, what, o)]
    say("\n".join([head("prompts", "images", "show it", "ground"), *lines]))


if __name__ == "__main__":
    main()
