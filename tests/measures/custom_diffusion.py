"""Two concepts on the demo model, learned apart and merged: `python . run tests/measures/custom_diffusion.py [--count 128]` (resumable).

Five images each show something that their captions do not name: stripes and dots, for which the demo model has other words; or a hat, an
eye or a moon, for which it has none, or a shape that it never saw. Custom Diffusion learns each as a word with keys and values, and the
closed form merges two. Then they are asked for in new contexts: each under its own file, each under the merged one, and two textures on
two things of one image. The checker says how often the concept is there, how often the prompt's color, shape and
background are right, and how far images of the ordinary world have drifted.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import custom_diffusion as merging
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.nodes.host.training.trainer import TrainResult
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.textual_inversion import Word

from demo import model as demo_model
from demo import world
from demo.reading import any_shape
from harness.demo_images import Studio
from measures import script, textual_inversion
from measures.personalization import ALIKE, SHOWN, asked, drift, kept, lesson, ordinary_captions, taught, verdicts
from measures.script import head, say
from measures.textual_inversion import EXTRAS, HELD_OUT, LEARN, caption, placed, single

IMAGES = len(SHOWN)
FACTS = ("concept", "color", "shape", "background", "all")
IDEAS = (*EXTRAS, *world.STRANGERS)


@dataclass(frozen=True)
class Idea:
    """A concept: a strange shape, whose word stands for the noun of a caption, or another thing, whose word stands before the color."""

    name: str

    @property
    def strange(self) -> bool:
        return self.name in world.STRANGERS

    @property
    def placeholder(self) -> str:
        return f"<{self.name}>"

    def lesson(self) -> tuple[torch.Tensor, list[str]]:
        """(images (N, 128, 128, 3), captions with the placeholder)."""
        if self.strange:
            return lesson(self.name, self.placeholder)
        if self.name in world.TEXTURES:
            return self._textured()
        images, captions = textual_inversion.lesson(self.name, IMAGES)
        return images, [placed(text, self.placeholder) for text in captions]

    def _textured(self) -> tuple[torch.Tensor, list[str]]:
        """Three images of one thing and two of two, where one has the texture: the first that the caption names, then the last."""
        scenes = [textual_inversion.with_extra(single(i, LEARN), self.name) for i in range(IMAGES - 2)]
        for index, last in enumerate((False, True)):
            scene = scene_of_two(index, LEARN + 3)
            scenes.append(replace(scene, things=tuple(replace(t, texture="plain") for t in scene.things)))
            textured = replace(scenes[-1].things[last], texture=self.name)
            scenes[-1] = replace(scenes[-1], things=tuple(textured if i == last else t for i, t in enumerate(scenes[-1].things)))
        captions = [self._caption(scene, i) for i, scene in enumerate(scenes)]
        return torch.from_numpy(np.stack([world.render(s) for s in scenes])).float() / 255, captions

    def _caption(self, scene: world.Scene, index: int) -> str:
        """One that says of the texture alone by the placeholder; of two things the fourth image's names the textured one first."""
        rng, first = np.random.default_rng((LEARN, 40_000 + index)), index == IMAGES - 2
        for made in (world.random_caption(scene, rng) for _ in range(1000)):
            named = [claim.texture for claim in made.claims]
            if made.text.count(self.name) == 1 and len(named) == len(scene.things) and named[0 if first else -1] == self.name:
                return made.text.replace("plain ", "").replace(self.name, self.placeholder)
        raise ValueError(f"No caption of {scene} names '{self.name}' once.")


def scene_of_two(index: int, seed: int) -> world.Scene:
    """A scene of two things, without what captions never name."""
    scenes = (demo_model.scene(1000 * index + i, seed) for i in range(1000))
    return next(s for s in scenes if len(s.things) == 2 and not s.moon and not any(t.accessory for t in s.things))


def prompt(index: int, idea: Idea, word: str) -> tuple[str, world.Caption]:
    """(what is asked for, what it claims) of a held-out scene of one thing with a concept under its word."""
    if idea.strange:
        made = asked(index, idea.name, word)
        return made.text, made
    made = caption(single(index, HELD_OUT), 10_000 + index)
    return placed(made.text, word), made


def pair(index: int, words: dict[Idea, str], seed: int = HELD_OUT + 2) -> tuple[str, world.Caption]:
    """The same of a scene of two things, each with a texture."""
    scene = scene_of_two(index, seed)
    scene = replace(scene, things=tuple(replace(t, texture=idea.name) for t, idea in zip(scene.things, words)))
    rng = np.random.default_rng((LEARN, 30_000 + index))
    wordings = (world.random_caption(scene, rng) for _ in range(1000))
    made = next(c for c in wordings if all(claim.texture for claim in c.claims))
    text = made.text
    for idea, word in words.items():
        text = text.replace(idea.name, word)
    return text, made


def judged_pair(image: np.ndarray, claimed: world.Caption) -> dict[str, bool]:
    """What the checker says of both things; right in all where each has its own color and shape, and there is nothing more."""
    found = checker.judge(checker.read(image), claimed)
    row = {"concept": found["texture"], "color": found["color"], "shape": found["shape"], "background": found.get("background", True)}
    return {k: bool(v) for k, v in row.items()} | {"all": bool(all(row.values()) and found["bound"])}


def judged_one(image: np.ndarray, claimed: world.Caption, idea: Idea) -> dict[str, bool]:
    """What the checker says of the largest thing."""
    reading, claim = checker.read(image), claimed.claims[0]
    if not reading.things:
        return dict.fromkeys(FACTS, False)
    seen = reading.things[0]
    shape, score = any_shape(seen.mask)
    there = textual_inversion.shown(image, reading) | ({shape} if score >= ALIKE else set())
    found = {"concept": idea.name in there, "color": seen.color == claim.color, "shape": shape == claim.shape}
    found["background"] = checker.judge(reading, claimed).get("background", True)
    return {k: bool(v) for k, v in found.items()} | {"all": bool(all(found.values()))}


def new_contexts(studio: Studio, model, words: dict[Idea, str]):
    """Judges prompts of held-out scenes with one concept, or two, in them."""
    ideas = list(words)

    def judged(first: int, count: int) -> list[dict]:
        numbers = range(first, first + count)
        texts, claims = zip(*(pair(i, words) if len(ideas) > 1 else prompt(i, ideas[0], words[ideas[0]]) for i in numbers))
        images = studio.draw(list(texts), seed=first, model=model)
        if len(ideas) > 1:
            return [judged_pair(p, c) for p, c in zip(images, claims)]
        return [judged_one(p, c, ideas[0]) for p, c in zip(images, claims)]

    return judged


def learn(studio: Studio, idea: Idea, name: str, o: argparse.Namespace) -> TrainResult:
    word = Word(idea.placeholder, "shape" if idea.strange else "", 1)
    subject = host.Subject(f"a {idea.placeholder}" + ("" if idea.strange else " shape"), (word,), o.word_rate)
    return taught(studio, name, idea.lesson(), subject, merging.KeysAndValues(), o.prior_weight, o)


@torch.inference_mode()
def merge(studio: Studio, learned: dict[Idea, TrainResult], o: argparse.Namespace):
    """The MODEL with all concepts."""
    lines = [f"{made.name} = {text}" for made in learned.values() for text in made.sentences[: o.sentences]]
    regular = [c.text for c in ordinary_captions(o.regular, 3000)]
    found = merging.merge(studio.model, studio.clip, merging.concepts_of("\n".join(lines)), regular)
    return adapters.patched(studio.model, found)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    concepts = dict(choices=IDEAS, nargs="+", default=["striped", "dotted"])
    return script.options_of(
        __doc__, arguments, concepts=concepts, count=128, steps=200, batch=4, rate=0.002, average=(0.0, "of the weights over the steps"),
        weighting="own", timesteps="uniform", word_rate=0.01, prior_weight=1.0, sentences=(8, "of each concept, for merging"),
        regular=(400, "ordinary prompts, for merging"), name=("measured", "another one starts anew"),
    )  # fmt: skip


Found = tuple[str, list[dict], list[dict]]  # what is asked for, the verdicts of new contexts, and those of ordinary prompts


def scored(studio: Studio, o: argparse.Namespace) -> Iterator[Found]:
    """Learns each concept, and merges two; what is found of each, and of both."""
    learned, words = {}, {}
    for idea in (Idea(name) for name in o.concepts):
        name = f"{o.name}-{idea.name}"
        made = learned[idea] = learn(studio, idea, name, o)
        words[idea] = made.word
        found = kept(f"{name}-new", o.count, new_contexts(studio, made.model, {idea: made.word}))
        yield idea.name, found, kept(f"{name}-drift", o.count, drift(studio, made.model))
    if len(learned) == 2:
        yield from together(studio, merge(studio, learned, o), words, o)


def together(studio: Studio, model, words: dict[Idea, str], o: argparse.Namespace) -> Iterator[Found]:
    """What is found of the merged MODEL."""
    ideas, name = list(words), "-".join([o.name, *(idea.name for idea in words), f"{o.sentences}", f"{o.regular}"])
    drifted = kept(f"{name}-drift", o.count, drift(studio, model))
    for idea in ideas:
        found = kept(f"{name}-{idea.name}", o.count, new_contexts(studio, model, {idea: words[idea]}))
        yield f"{idea.name}, merged", found, drifted
    if all(idea.name in world.TEXTURES for idea in ideas):
        found = kept(f"{name}-both", o.count, new_contexts(studio, model, words))
        yield " and ".join(idea.name for idea in ideas) + ", merged", found, drifted
        own = kept(f"{'-'.join(idea.name for idea in ideas)}-own-words", o.count, new_contexts(studio, None, {i: i.name for i in ideas}))
        yield "the same two in the model's own words", own, []


def main() -> None:
    say(head("Custom Diffusion", "images", *FACTS, "ordinary prompts right", "drift"))
    for found in scored(Studio(), options_of()):
        say(verdicts(FACTS, *found))


if __name__ == "__main__":
    main()
