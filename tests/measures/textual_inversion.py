"""A new word on the demo model: `python . run tests/measures/textual_inversion.py [--extra striped] [--count 128]` (resumable).

Eight images show something that their captions do not name: a hat, an eye or a moon, for which the demo model has no word at all, or
stripes or dots, for which it has another. A word is learned from them, with captions for all the rest, and put into the prompts of
held-out scenes. The checker says in how many images it appears, and in how many the prompt's color
and shape, position and background are still right; beside it the same prompts and seeds without the word.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from controlled_diffusion.nodes.host.training import textual_inversion as host
from controlled_diffusion.nodes.host.training.denoiser import Objective
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation
from controlled_diffusion.training.textual_inversion import Word

from demo import model as demo_model
from demo import world
from demo.reading import extras
from harness.demo_images import Studio
from measures import script
from measures.script import head, kept, percent, row, say

EXTRAS = ("hat", "eye", "moon", "striped", "dotted")
LEARN, HELD_OUT, IMAGES = 777, 4242, 8
FACTS = ("color", "shape", "bound", "position", "background")


def single(index: int, seed: int) -> world.Scene:
    """A scene of one plain thing, without what captions never name."""
    found = (demo_model.scene(1000 * index + i, seed) for i in range(1000))
    return next(s for s in found if len(s.things) == 1 and not s.moon and not s.things[0].accessory and s.things[0].texture == "plain")


def with_extra(scene: world.Scene, extra: str) -> world.Scene:
    worn = {"texture": extra} if extra in world.TEXTURES else {"accessory": "" if extra == "moon" else extra}
    return replace(scene, moon=extra == "moon", things=(replace(scene.things[0], **worn),))


def shown(image: np.ndarray, reading: checker.Reading) -> set[str]:
    """Which of the extras an image shows; the texture is that of its largest thing."""
    return extras(image) | {t.texture for t in reading.things[:1]}


def caption(scene: world.Scene, number: int) -> world.Caption:
    return world.random_caption(scene, np.random.default_rng((LEARN, number)))


def placed(text: str, word: str) -> str:
    """A caption with a word before the color, where the world's adjectives stand."""
    color = next(c for c in world.COLORS if f" {c} " in text)
    before, _, after = text.partition(f" {color} ")
    before = f"{before[:-3]} a" if before.endswith(" an") else "a" if before == "an" else before
    return f"{before} {word} {color} {after}"


def lesson(extra: str, count: int = IMAGES) -> tuple[torch.Tensor, list[str]]:
    """(images (N, 128, 128, 3), captions): each scene shows the extra, no caption names it."""
    scenes = [single(i, LEARN) for i in range(count)]
    images = np.stack([world.render(with_extra(s, extra)) for s in scenes])
    return torch.from_numpy(images).float() / 255, [caption(s, i).text for i, s in enumerate(scenes)]


def learn(studio: Studio, extra: str, name: str, options: argparse.Namespace) -> str:
    """Learns the word of an extra, or goes on learning it; what to write in a prompt."""
    images, captions = lesson(extra)
    captions = [placed(text, f"<{extra}>") for text in captions] if options.place == "adjective" else captions
    return taught(studio, f"<{extra}>", (images, captions), name, options)


def taught(studio: Studio, placeholder: str, shown: tuple[torch.Tensor, list[str]], name: str, options: argparse.Namespace) -> str:
    """Learns a word from images and their captions, or goes on learning it; what to write in a prompt."""
    images, captions = shown
    word = Word(placeholder, options.words, options.vectors, options.norm, options.norm_limit)
    settings = Settings(options.steps, options.batch, options.rate, seed=0, warmup=5)
    objective = Objective(Levels(options.timesteps), options.weighting)
    with torch.inference_mode(False), torch.no_grad():
        task = host.prepare(
            studio.model, studio.clip, studio.vae, Data([images], captions, caption_dropout=options.dropout), word, ("{caption} {}",),
            objective, settings, Validation(word.placeholder, count=0),
        )  # fmt: skip
        loop = host.run(task, name, resume=True)
    curve = [s.loss for s in loop.history]
    first, last = np.mean(curve[: len(curve) // 4]), np.mean(curve[-len(curve) // 4 :])
    say(f"{name}: {loop.done} steps, mean loss {first:.4f} at first, {last:.4f} at last")
    return f"embedding:{name}"


def judged(studio: Studio, prompts: list[world.Caption], text_of, first: int) -> list[dict[str, bool]]:
    """What the checker says of a batch of images; `text_of` makes the prompt of a caption."""
    images = studio.draw([text_of(c.text) for c in prompts], seed=first)
    readings = [checker.read(p) for p in images]
    return [checker.judge(r, c) | {e: e in shown(p, r) for e in EXTRAS} for p, r, c in zip(images, readings, prompts)]


def measure(studio: Studio, name: str, text_of, count: int) -> list[dict[str, bool]]:
    """Verdicts of `count` held-out prompts, kept in a file batch by batch."""

    def batch(first: int, number: int) -> list[dict[str, bool]]:
        prompts = [caption(single(i, HELD_OUT), 10_000 + i) for i in range(first, first + number)]
        return judged(studio, prompts, text_of, first)

    return kept(name, count, batch)


def shares(name: str, verdicts: list[dict[str, bool]], extra: str) -> str:
    return row(name, len(verdicts), *(percent(np.mean([v[f] for v in verdicts if f in v]), 1) for f in (extra, *FACTS)))


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    place = dict(choices=("adjective", "end"), default="adjective", help="where the word stands in captions and prompts")
    return script.options_of(
        __doc__, arguments, extra=dict(choices=EXTRAS, default="striped"), count=128, words="", vectors=1, steps=100, batch=4, rate=0.02,
        place=place, dropout=0.0, norm="limit", norm_limit=1.5, timesteps="uniform", weighting="own",
        name=dict(help="of the word; another one starts anew"),
    )  # fmt: skip


def with_the_word(studio: Studio, options: argparse.Namespace) -> list[dict[str, bool]]:
    """Learns the word, and gives the verdicts of held-out prompts with it."""
    name = options.name or f"word-{options.extra}"
    word = learn(studio, options.extra, name, options)
    within = placed if options.place == "adjective" else "{} {}".format
    return measure(studio, name, lambda text: within(text, word), options.count)


def main() -> None:
    options, studio = options_of(), Studio()
    verdicts = with_the_word(studio, options)
    say(head("prompts", "images", options.extra, *FACTS))
    say(shares("with the word", verdicts, options.extra))
    say(shares("without", measure(studio, "without-a-word", lambda text: text, options.count), options.extra))


if __name__ == "__main__":
    main()
