"""Two LoRAs in one image on the demo model, each on its own thing: `python . run tests/measures/word_regions.py [--count 32]` (resumable).

DreamBooth learns two shapes that the demo model never saw, a LoRA and a word each, apart and without class images, as most LoRAs are. Then
prompts ask for both in one image, in any order, colors and backgrounds. Both LoRAs on the model are the plain use; Word Regions finds where
each phrase is drawn, by a prompt in words that the model knows, and gives it its LoRA and its word there. The checker says how often each thing has its own shape, and how well regions fit things.
"""

import argparse
import re
from dataclasses import dataclass

import comfy.hooks
import comfy.sample
import node_helpers
import numpy as np
import torch
from controlled_diffusion.nodes.host.attention import word_regions
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.nodes.host.training.trainer import TrainResult
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.textual_inversion import Word

from demo.reading import any_shape
from demo.world import BACKGROUNDS, COLORS
from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures import script
from measures.attention_maps import iou, prompts
from measures.personalization import ALIKE, lesson, taught
from measures.script import head, kept, percent, row, say

SHAPES = {"tee": "cross", "hourglass": "triangle"}  # and what their words start from
SEEDS = 4  # images of a scene
FACTS = ("own shape", "both", "fit", "placed")
PLACED = 0.3  # least IoU of a region with its own thing, and more than with the other


@dataclass(frozen=True)
class Scene:
    """What is asked for: the color and the shape of both things, in the order in which the prompt names them."""

    things: tuple[tuple[str, str], ...]
    background: str

    @classmethod
    def of(cls, index: int) -> "Scene":
        rng = np.random.default_rng((77, index))
        shapes, colors = rng.permutation(list(SHAPES)), rng.choice(list(COLORS), 2, replace=False)
        return cls(tuple((str(c), str(s)) for c, s in zip(colors, shapes)), str(rng.choice(list(BACKGROUNDS))))

    def phrases(self, words: dict[str, str]) -> list[str]:
        return [f"{color} {words[shape]}" for color, shape in self.things]

    def prompt(self, words: dict[str, str]) -> str:
        one, two = self.phrases(words)
        return f"a {one} and a {two} on a {self.background} background"


def learn(studio: Studio, shape: str, o: argparse.Namespace) -> TrainResult:
    word = f"<{shape}>"
    subject = host.Subject(f"a {word}", (Word(word, SHAPES[shape], 1),), 0.01)
    return taught(studio, f"word-regions-{shape}-{o.prior:g}-{o.steps}", lesson(shape, word), subject, adapters.Design("LoRA", 16, layers="-out.2, -emb"), o.prior, o)


class Concepts:
    """The two shapes: their words, the model with both LoRAs, and each as a hook."""

    def __init__(self, studio: Studio, o: argparse.Namespace):
        made = {shape: learn(studio, shape, o) for shape in SHAPES}
        self.words, self.both = {shape: result.word for shape, result in made.items()}, studio.model
        for result in made.values():
            self.both = adapters.patched(self.both, result.lora)
        self.hooks = {shape: comfy.hooks.create_hook_lora(lora=result.lora, strength_model=1.0, strength_clip=1.0) for shape, result in made.items()}


def hooked(conditioning: list, hooks) -> list:
    return node_helpers.conditioning_set_values(conditioning, {"hooks": hooks})


@torch.inference_mode()
def drawn(studio: Studio, concepts: Concepts, scene: Scene, seed: int, way: argparse.Namespace | None) -> tuple[np.ndarray, torch.Tensor | None]:
    """(images, masks (images, phrases, H, W)) of `SEEDS` seeds, by both LoRAs on the model or by Word Regions."""
    negative = studio.prompt("")
    model, positive = concepts.both, studio.prompt(scene.prompt(concepts.words))
    if way is not None:
        finding = word_regions.Finding(way.sampling == "restart", way.percent, "", way.anchors, way.rest, way.spread)
        whole = [scene.prompt(SHAPES | {shape: concepts.words[shape]}) for _, shape in scene.things]
        alone = [f"a {phrase} on a {scene.background} background" for phrase in scene.phrases(concepts.words)]
        texts = whole if way.text == "whole" else alone
        given = {i: hooked(studio.prompt(text), concepts.hooks[shape]) for i, (text, (_, shape)) in enumerate(zip(texts, scene.things))}
        phrases = "\n".join(scene.phrases(SHAPES))
        task = word_regions.Task(scene.prompt(SHAPES), phrases, finding, given, None, negative if way.negative else None)
        model, positive, other = word_regions.prepare(studio.model, studio.clip, task)
        negative = other or negative
    noise = studio.noise(SEEDS, seed)
    given = (STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, torch.zeros_like(noise))
    latent = comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=seed)
    if way is None:
        return studio.images(latent), None
    masks = word_regions.masks_of(word_regions.run_with(model, {"samples": latent}), "")
    return studio.images(latent), masks.unflatten(0, (2, SEEDS)).transpose(0, 1)


def judged(image: np.ndarray, scene: Scene, masks: torch.Tensor | None) -> dict:
    """For each thing whether the one of its color has its shape, and of its region the IoU with it and whether it is placed."""
    seen = {thing.color: thing.mask for thing in checker.read(image).things[:2]}
    own, fit, placed = [], [], []
    for number, (color, shape) in enumerate(scene.things):
        found = any_shape(seen[color]) if color in seen else ("", 0.0)
        own.append(found[0] == shape and found[1] >= ALIKE)
        if masks is not None:
            mask = masks[number].numpy() > 0.5
            fits = {c: iou(mask, m) for c, m in seen.items()}
            fit.append(fits.get(color, 0.0))
            placed.append(fit[-1] >= PLACED and fit[-1] == max(fits.values()))
    return {"own shape": float(np.mean(own)), "both": bool(all(own)), "fit": float(np.mean(fit or [0])), "placed": float(np.mean(placed or [0]))}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    return script.options_of(
        __doc__, arguments, count=32, steps=400, batch=4, rate=0.004, average=(0.98, "of the weights over the steps"), prior=(0.0, "weight of class images"),
        weighting="own", timesteps="shifted", percent=(0.2, "find_percent"), anchors=0.05, rest=0.5, spread=2,
        prompts=(12, "ordinary ones"), only=dict(nargs="*", default=[], help="ways to draw"), name=("measured", "another one draws anew"),
    )  # fmt: skip


WAYS = {  # sampling, what a region's prompt says, whether the negative has the LoRAs too
    "both LoRAs on the model": None,
    "go on": ("go on", "whole", True),
    "go on, a prompt of the thing alone": ("go on", "own", True),
    "go on, negative without LoRA": ("go on", "whole", False),
    "restart": ("restart", "whole", True),
    "restart, a prompt of the thing alone": ("restart", "own", True),
}


def verdicts_of(studio: Studio, concepts: Concepts, o: argparse.Namespace, way):
    """Judges scenes, `SEEDS` images of each."""
    asked = way and argparse.Namespace(**vars(o), sampling=way[0], text=way[1], negative=way[2])

    def found(first: int, count: int) -> list[dict]:
        scene = Scene.of(first // SEEDS)
        images, masks = drawn(studio, concepts, scene, 4000 + first, asked)
        return [judged(image, scene, None if masks is None else masks[i]) for i, image in enumerate(images)]

    return found


@torch.inference_mode()
def regions_found(studio: Studio, percent: float, o: argparse.Namespace) -> list[tuple[float, float]]:
    """(IoU of a region with its thing, with the other) of ordinary prompts of two things, for images that the checker reads as asked."""
    fits = []
    for number, (prompt, things) in enumerate(prompts(o.prompts)):
        phrases, noise = "\n".join(" ".join(thing) for thing in things), studio.noise(SEEDS, 900 + 10 * number)
        task = word_regions.Task(prompt, phrases, word_regions.Finding(False, percent, "", o.anchors, o.rest), {})
        model, positive, _ = word_regions.prepare(studio.model, studio.clip, task)
        given = (STEPS, CFG, SAMPLER, SCHEDULER, positive, studio.prompt(""), torch.zeros_like(noise))
        latent = comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=1)
        masks = word_regions.masks_of(word_regions.run_with(model, {"samples": latent}), "").unflatten(0, (2, SEEDS)).numpy() > 0.5
        for i, image in enumerate(studio.images(latent)):
            seen = {(t.color, t.shape): t.mask for t in checker.read(image).things}
            if set(seen) == set(things):
                fits += [(iou(masks[c, i], seen[things[c]]), iou(masks[c, i], seen[things[1 - c]])) for c in range(2)]
    return fits


def say_regions(studio: Studio, o: argparse.Namespace) -> None:
    say(head("regions of two things, no spread", "things", "IoU with the thing", "with the other", "region on its own thing"))
    for share in (0.15, 0.2, 0.3):
        fits = np.array(regions_found(studio, share, o))
        placed = (fits[:, 0] >= PLACED) & (fits[:, 0] > fits[:, 1])
        say(row(f"find_percent {share}", len(fits), *(f"{v:.2f}" for v in fits.mean(0)), percent(placed.mean())))


def main() -> None:
    o, studio = options_of(), Studio()
    say_regions(studio, o)
    concepts = Concepts(studio, o)
    say(head("two LoRAs, each for one of two things", "images", "its own shape", "both", "IoU of region and thing", "region on its own thing"))
    for title, way in WAYS.items():
        if o.only and title not in o.only:
            continue
        name = re.sub("[, ]+", "-", f"word-regions-{o.name}-{title}")
        verdicts = kept(name, o.count, verdicts_of(studio, concepts, o, way), SEEDS)
        say(row(title, len(verdicts), *(_shown(fact, np.mean([v[fact] for v in verdicts]), way) for fact in FACTS)))


def _shown(fact: str, value: float, way) -> str:
    if way is None and fact in ("fit", "placed"):
        return ""
    return f"{value:.2f}" if fact == "fit" else percent(value)


if __name__ == "__main__":
    main()
