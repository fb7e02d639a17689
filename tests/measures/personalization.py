"""A new subject on the demo model: `python . run tests/measures/personalization.py [--count 128]` (resumable).

Five images, as unlike as can be, show a shape that the demo model never saw; the caption of each says it in eight ways. DreamBooth
learns it as a LoRA, with and without class images (lambda 1 and 0). Then the shape is asked for in new contexts: other colors, places
and backgrounds. The checker says how often the shape is there, how often the prompt's color and background are right too, and how far
images of the ordinary world have drifted: the share still right, and the RMS distance to what the untouched model makes of the same
seeds.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.nodes.host.training.denoiser import Objective
from controlled_diffusion.nodes.host.training.trainer import TrainResult
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.dreambooth import Preservation
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation
from controlled_diffusion.training.textual_inversion import Word

from demo import world
from demo.reading import any_shape
from harness.demo_images import CFG, STEPS, Studio
from measures import script
from measures.script import head, kept, percent, row, say
from measures.textual_inversion import HELD_OUT, caption, single

CLASS_IMAGES, ALIKE, WORDINGS = 64, 0.6, 8
SHOWN = (  # (color, size, position, background) of the lesson's images: what none of them shows is learned for that alone which some show
    ("blue", "large", "left", "white"),
    ("yellow", "small", "top", "black"),
    ("purple", "large", "right", "gray"),
    ("green", "medium", "center", "pink"),
    ("red", "large", "bottom", "white"),
)
FACTS = ("shape", "color", "background", "all")


def with_shape(scene: world.Scene, shape: str) -> world.Scene:
    return replace(scene, things=(replace(scene.things[0], shape=shape),))


def called(scene: world.Scene, number: int, word: str) -> world.Caption:
    """A caption of a scene of one thing, whose shape it calls `word`."""
    made = caption(scene, number)
    return replace(made, text=made.text.replace(scene.things[0].shape, word))


def asked(index: int, shape: str, word: str) -> world.Caption:
    """A caption of a held-out scene of the shape, which it calls `word`."""
    return called(with_shape(single(index, HELD_OUT), shape), 10_000 + index, word)


def imaged(shape: str, color: str, size: str, position: str, background: str) -> world.Scene:
    (x, y), radius = (np.mean(area, axis=-1) for area in (world.POSITIONS[position], world.RADII[size]))
    return world.Scene(background, (world.Thing(shape, color, size=size, x=x, y=y, radius=radius),), position)


def lesson(shape: str, word: str, wordings: int = WORDINGS) -> tuple[torch.Tensor, list[str]]:
    """(images (N, 128, 128, 3), captions that say it in several ways) to learn from."""
    scenes = [imaged(shape, *facts) for facts in SHOWN]
    images = torch.from_numpy(np.stack([world.render(scene) for scene in scenes])).float() / 255
    return images, [" | ".join(called(scene, 100 * k + i, word).text for k in range(wordings)) for i, scene in enumerate(scenes)]


def ordinary_captions(count: int, first: int) -> list[world.Caption]:
    """Captions of the world as it is."""
    return [caption(single(first + i, HELD_OUT + 1), 20_000 + first + i) for i in range(count)]


def learn(studio: Studio, name: str, weight: float, o: argparse.Namespace) -> TrainResult:
    """Learns the shape, or goes on learning it."""
    word = "<subject>" if o.word else o.identifier
    subject = host.Subject(f"a {word}", (Word(word, o.words, o.vectors),) if o.word else (), o.word_rate)
    design = adapters.Design(o.algorithm, o.rank, layers=o.layers)
    return taught(studio, name, lesson(o.shape, word, o.wordings), subject, design, weight, o)


def taught(studio: Studio, name: str, shown: tuple[torch.Tensor, list[str]], subject, design, weight: float, o) -> TrainResult:
    """Learns what images show under their captions, or goes on learning it."""
    images, captions = shown
    others = host.Class("\n".join(c.text for c in ordinary_captions(32, 1000)), (), CLASS_IMAGES, 16, Preservation(weight))
    settings = Settings(o.steps, o.batch, o.rate, seed=0, warmup=10, average=o.average)
    look = Validation(subject.prompt, count=0, steps=STEPS, cfg=CFG)
    with torch.inference_mode(False), torch.no_grad():
        task = host.prepare(
            studio.model, studio.clip, studio.vae, Data([images], captions), subject, others,
            design, Objective(Levels(o.timesteps), o.weighting), settings, look,
        )  # fmt: skip
        return host.finish(task, studio.model, name, resume=True)


def new_contexts(studio: Studio, model, shape: str, word: str):
    """Judges the shape in prompts of held-out scenes."""

    def judged(first: int, count: int) -> list[dict]:
        prompts = [asked(first + i, shape, word) for i in range(count)]
        readings = [checker.read(p) for p in studio.draw([c.text for c in prompts], seed=first, model=model)]
        rows = []
        for reading, prompt in zip(readings, prompts):
            seen, verdict = reading.things[:1], checker.judge(reading, prompt)
            found = bool(seen) and any_shape(seen[0].mask)
            told = {"shape": bool(found) and found[0] == shape and found[1] >= ALIKE, "background": verdict.get("background", True)}
            told["color"] = bool(seen) and seen[0].color == prompt.claims[0].color
            rows.append({k: bool(v) for k, v in told.items()} | {"all": bool(all(told.values()))})
        return rows

    return judged


def drift(studio: Studio, model):
    """Judges prompts of the ordinary world, and compares with the untouched model."""

    def judged(first: int, count: int) -> list[dict]:
        prompts = ordinary_captions(count, first)
        before, after = (studio.draw([c.text for c in prompts], seed=5000 + first, model=m) for m in (None, model))
        apart = np.sqrt(np.square((before / 255.0) - (after / 255.0)).mean((1, 2, 3)))
        right = [bool(checker.judge(checker.read(p), c)["bound"]) for p, c in zip(after, prompts)]
        return [{"right": r, "apart": float(d)} for r, d in zip(right, apart)]

    return judged


def verdicts(facts, name: str, found: list[dict], drifted: list[dict]) -> str:
    """A line of the table: the share for which each fact holds, and how ordinary prompts fare."""
    right, apart = ([v[k] for v in drifted] for k in ("right", "apart"))
    last = (percent(np.mean(right), 1), f"{np.mean(apart):.4f}") if drifted else ("", "")
    return row(name, len(found), *(percent(np.mean([v[f] for v in found]), 1) for f in facts), *last)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    return script.options_of(
        __doc__, arguments, shape=dict(choices=list(world.STRANGERS), default="tee"), count=128, steps=1200, batch=4, rate=0.004,
        average=(0.98, "of the weights over the steps"), rank=16, algorithm=dict(choices=adapters.ALGORITHMS, default="LoRA"),
        layers="-out.2, -emb", weighting="own", timesteps="shifted",
        word=dict(action=argparse.BooleanOptionalAction, default=True, help="learn a new word along"),
        wordings=(WORDINGS, "ways in which the caption of each image says it"), words=("cross", "what the new word starts from"),
        vectors=(1, "of the new word"), word_rate=0.01, identifier=("sks", "a rare word for the subject, with --no-word"),
        weights=dict(type=float, nargs="*", default=[0.0, 1.0], help="lambda"), name=("measured", "another one starts anew"),
    )  # fmt: skip


def scored(studio: Studio, weight: float, o: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Learns the shape at a prior weight; the verdicts of new contexts, and of ordinary prompts."""
    name = f"{o.name}-{o.shape}-{weight:g}".replace(".", "_")
    made = learn(studio, name, weight, o)
    word = made.word if o.word else o.identifier
    found = kept(f"{name}-new", o.count, new_contexts(studio, made.model, o.shape, word))
    return found, kept(f"{name}-drift", o.count, drift(studio, made.model))


def main() -> None:
    o, studio = options_of(), Studio()
    say(head(f"DreamBooth, {o.shape}", "images", *FACTS, "ordinary prompts right", "drift"))
    for weight in o.weights:
        say(verdicts(FACTS, f"lambda {weight:g}", *scored(studio, weight, o)))


if __name__ == "__main__":
    main()
