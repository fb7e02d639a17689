"""Two LoRAs in one image on the demo model, each on its own thing: `python . run tests/measures/word_regions.py [--count 48]` (resumable).

DreamBooth learns two shapes that the demo model never saw, a LoRA and a word each, apart and without class images, as most LoRAs are
(`--prior 1`: with). Then prompts ask for both in one image, in any order, colors and backgrounds. Ways: both LoRAs on the model; ComfyUI's hook
LoRAs in the regions that were found at 20 % (a pass for each, the image goes on); Word Regions, whose LoRAs act by token. The checker says how
often each thing has its own shape, and how well regions fit things.
"""

import argparse
import re
from dataclasses import dataclass

import comfy.hooks
import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.host.attention import word_regions
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.nodes.host.training.trainer import TrainResult
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.textual_inversion import Word
from node_helpers import conditioning_set_values as with_values

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


def sampled(studio: Studio, model, positive: list, negative: list, seed: int, **more) -> torch.Tensor:
    """The latent of `SEEDS` images."""
    noise = studio.noise(SEEDS, seed)
    given = (STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=seed, **more)


def masks_of(model, latent: torch.Tensor) -> torch.Tensor:
    """(images, phrases, H, W) in pixels."""
    return word_regions.masks_of(word_regions.run_with(model, {"samples": latent}), "").unflatten(0, (2, SEEDS)).transpose(0, 1)


def finding(o: argparse.Namespace, percent: float, start: float) -> word_regions.Finding:
    return word_regions.Finding(percent, start, "", o.anchors, o.rest, o.spread)


def plain(studio: Studio, concepts: Concepts, scene: Scene, seed: int, o: argparse.Namespace) -> tuple:
    """Both LoRAs on the model."""
    return sampled(studio, concepts.both, studio.prompt(scene.prompt(concepts.words)), studio.prompt(""), seed), None


def hooked(studio: Studio, concepts: Concepts, scene: Scene, seed: int, o: argparse.Namespace) -> tuple:
    """ComfyUI's nodes: each LoRA a hook of a conditioning in a mask, and of its negative, from the step after that which found the regions."""
    task = word_regions.Task(scene.prompt(SHAPES), "\n".join(scene.phrases(SHAPES)), finding(o, HOOKED, HOOKED), {})
    model, whole = word_regions.prepare(studio.model, studio.clip, task)
    masks = masks_of(model, sampled(studio, model, whole, studio.prompt(""), seed, last_step=round(STEPS * HOOKED) + 1))
    begin, sides = HOOKED + 0.5 / STEPS, []
    own = [studio.prompt(scene.prompt(SHAPES | {shape: concepts.words[shape]})) for _, shape in scene.things]
    for both, each in ((studio.prompt(scene.prompt(SHAPES)), own), (studio.prompt(""), [studio.prompt("")] * 2)):
        made = with_values(both, {"end_percent": begin}) + with_values(both, {"start_percent": begin, "default": True})
        for number, (conditioning, (_, shape)) in enumerate(zip(each, scene.things)):
            values = {"mask": masks[:, number], "mask_strength": 1.0, "set_area_to_bounds": False, "start_percent": begin}
            made += with_values(conditioning, values | {"hooks": concepts.hooks[shape]})
        sides.append(made)
    return sampled(studio, studio.model, *sides, seed), masks


def by_token(studio: Studio, concepts: Concepts, scene: Scene, seed: int, o: argparse.Namespace) -> tuple:
    """Word Regions, whose phrases are the learned words."""
    regions = {number: concepts.hooks[shape] for number, (_, shape) in enumerate(scene.things)}
    task = word_regions.Task(scene.prompt(concepts.words), "\n".join(scene.phrases(concepts.words)), finding(o, o.percent, o.start), regions)
    model, positive = word_regions.prepare(studio.model, studio.clip, task)
    latent = sampled(studio, model, positive, studio.prompt(""), seed)
    return latent, masks_of(model, latent)


HOOKED = 0.2  # percent of the sampling at which regions of hook LoRAs are found
WAYS = {"both LoRAs on the model": plain, "hook LoRAs in the regions": hooked, "Word Regions, by token": by_token}


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
        __doc__, arguments, count=48, steps=400, batch=4, rate=0.004, average=(0.98, "of the weights over the steps"), prior=(0.0, "weight of class images"),
        weighting="own", timesteps="shifted", percent=(0.45, "find_percent"), start=(0.15, "start_percent"), anchors=0.05, rest=0.5, spread=3,
        prompts=(12, "ordinary ones; 0: none"), only=dict(nargs="*", default=[], help="ways to draw"), name=("measured", "another one draws anew"),
    )  # fmt: skip


def verdicts_of(studio: Studio, concepts: Concepts, o: argparse.Namespace, way):
    """Judges scenes, `SEEDS` images of each."""

    @torch.inference_mode()
    def found(first: int, count: int) -> list[dict]:
        scene = Scene.of(first // SEEDS)
        latent, masks = way(studio, concepts, scene, 4000 + first, o)
        return [judged(image, scene, None if masks is None else masks[i]) for i, image in enumerate(studio.images(latent))]

    return found


@torch.inference_mode()
def regions_found(studio: Studio, percent: float, o: argparse.Namespace) -> list[tuple[float, float]]:
    """(IoU of a region with its thing, with the other) of ordinary prompts of two things, for images that the checker reads as asked."""
    fits = []
    for number, (prompt, things) in enumerate(prompts(o.prompts)):
        phrases = "\n".join(" ".join(thing) for thing in things)
        task = word_regions.Task(prompt, phrases, word_regions.Finding(percent, percent, "", o.anchors, o.rest), {})
        model, positive = word_regions.prepare(studio.model, studio.clip, task)
        latent = sampled(studio, model, positive, studio.prompt(""), 900 + 10 * number)
        masks = masks_of(model, latent).transpose(0, 1).numpy() > 0.5
        for i, image in enumerate(studio.images(latent)):
            seen = {(t.color, t.shape): t.mask for t in checker.read(image).things}
            if set(seen) == set(things):
                fits += [(iou(masks[c, i], seen[things[c]]), iou(masks[c, i], seen[things[1 - c]])) for c in range(2)]
    return fits


def say_regions(studio: Studio, o: argparse.Namespace) -> None:
    say(head("regions of two things, no spread", "things", "IoU with the thing", "with the other", "region on its own thing"))
    for share in (0.2, 0.3, 0.45):
        fits = np.array(regions_found(studio, share, o))
        placed = (fits[:, 0] >= PLACED) & (fits[:, 0] > fits[:, 1])
        say(row(f"find_percent {share}", len(fits), *(f"{v:.2f}" for v in fits.mean(0)), percent(placed.mean())))


def main() -> None:
    o, studio = options_of(), Studio()
    if o.prompts:
        say_regions(studio, o)
    concepts = Concepts(studio, o)
    say(head("two LoRAs, each for one of two things", "images", "its own shape", "both", "IoU of region and thing", "region on its own thing"))
    for title, way in WAYS.items():
        if o.only and title not in o.only:
            continue
        settings = f"{o.percent:g}-{o.start:g}-{o.spread}" if way is by_token else ""
        name = re.sub("[, ]+", "-", f"word-regions-{o.name}-{o.prior:g}-{title}-{settings}")
        verdicts = kept(name, o.count, verdicts_of(studio, concepts, o, way), SEEDS)
        say(row(title, len(verdicts), *(_shown(fact, np.mean([v[fact] for v in verdicts]), way) for fact in FACTS)))


def _shown(fact: str, value: float, way) -> str:
    if way is plain and fact in ("fit", "placed"):
        return ""
    return f"{value:.2f}" if fact == "fit" else percent(value)


if __name__ == "__main__":
    main()
