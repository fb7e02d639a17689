"""A new word on the demo model: `python . run tests/measures/textual_inversion.py [--extra striped] [--count 128]` (resumable).

Eight images show something that their captions do not name: a hat, an eye or a moon, for which the demo model has no word at all, or
stripes or dots, for which it has another. A word is learnt from them, with captions for all the rest, and put into the prompts of
held-out scenes. The checker says in how many images it appears, and in how many the prompt's colour
and shape, position and background are still right; beside it the same prompts and seeds without the word.
"""

import argparse
import json
import sys
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
from harness.environment import PRIVATE

EXTRAS = ("hat", "eye", "moon", "striped", "dotted")
LEARN, HELD_OUT, IMAGES, BATCH = 777, 4242, 8, 16
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
    """A caption with a word before the colour, where the world's adjectives stand."""
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
    """Learns the word, or goes on learning it; what to write in a prompt."""
    images, captions = lesson(extra)
    word = Word(f"<{extra}>", options.words, options.vectors, options.norm, options.norm_limit)
    settings = Settings(options.steps, options.batch, options.rate, seed=0, warmup=5)
    objective = Objective(Levels(options.timesteps), options.weighting)
    with torch.inference_mode(False), torch.no_grad():
        captions = [placed(text, word.placeholder) for text in captions] if options.place == "adjective" else captions
        task = host.prepare(
            studio.model, studio.clip, studio.vae, Data([images], captions, caption_dropout=options.dropout), word, ("{caption} {}",),
            objective, settings, Validation(word.placeholder, count=0),
        )  # fmt: skip
        loop = host.run(task, name, resume=True)
    curve = [s.loss for s in loop.history]
    say(
        f"{name}: {loop.done} steps, mean loss {np.mean(curve[: len(curve) // 4]):.4f} at first, {np.mean(curve[-len(curve) // 4 :]):.4f} at last"
    )
    return f"embedding:{name}"


def judged(studio: Studio, prompts: list[world.Caption], text_of, first: int) -> list[dict[str, bool]]:
    """What the checker says of a batch of images; `text_of` makes the prompt of a caption."""
    images = studio.draw([text_of(c.text) for c in prompts], seed=first)
    readings = [checker.read(p) for p in images]
    return [checker.judge(r, c) | {e: e in shown(p, r) for e in EXTRAS} for p, r, c in zip(images, readings, prompts)]


def measure(studio: Studio, name: str, text_of, count: int) -> list[dict[str, bool]]:
    """Verdicts of `count` held-out prompts, kept in a file batch by batch."""
    path = PRIVATE / "measures" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(path.read_text()) if path.exists() else []
    while len(done) < count:
        numbers = range(len(done), min(len(done) + BATCH, count))
        done += judged(studio, [caption(single(i, HELD_OUT), 10_000 + i) for i in numbers], text_of, first=len(done))
        path.write_text(json.dumps(done))
    return done[:count]


def row(name: str, verdicts: list[dict[str, bool]], extra: str) -> str:
    shares = [np.mean([v[f] for v in verdicts if f in v]) for f in (extra, *FACTS)]
    return f"| {name} | {len(verdicts)} | " + " | ".join(f"{100 * s:.1f} %" for s in shares) + " |"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", choices=EXTRAS, default="striped")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--words", default="")
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--place", choices=("adjective", "end"), default="adjective", help="where the word stands in captions and prompts")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--norm", default="limit")
    parser.add_argument("--norm-limit", type=float, default=1.5)
    parser.add_argument("--timesteps", default="uniform")
    parser.add_argument("--weighting", default="own")
    parser.add_argument("--name", default=None, help="of the word; another one starts anew")
    return parser.parse_args(arguments)


def with_the_word(studio: Studio, options: argparse.Namespace) -> list[dict[str, bool]]:
    """Learns the word, and gives the verdicts of held-out prompts with it."""
    name = options.name or f"word-{options.extra}"
    word = learn(studio, options.extra, name, options)
    within = placed if options.place == "adjective" else "{} {}".format
    return measure(studio, name, lambda text: within(text, word), options.count)


def main() -> None:
    options, studio = options_of(), Studio()
    verdicts = with_the_word(studio, options)
    say(f"| prompts | images | {options.extra} | " + " | ".join(FACTS) + " |\n|" + "---|" * (3 + len(FACTS)))
    say(row("with the word", verdicts, options.extra))
    say(row("without", measure(studio, "without-a-word", lambda text: text, options.count), options.extra))


if __name__ == "__main__":
    main()
