"""Editing methods on the illustrated model: `python . run tests/measures/illustrated_edits.py [--weights FILE] [--count 24]`.

Held-out edits of the illustrated world: another thing, color, ground or style, as captions before and after say it. Prompt-to-Prompt
edits an image that the model draws from the caption before; all others edit the scene itself. An edit is right if the reader sees just
the scene after: what changed, and all that should stay. The rest is compared in PSNR where the edit has nothing to do: off the changed
thing, or on the things where the ground changes; a style changes everything. The VAE alone says how near the others can come. What is
measured is kept in .host/measures, apart for every file of weights, so that a run that was stopped goes on.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.training.demo.illustrated_captions import GROUND_WORDS, PLACE_WORDS, STYLE_WORDS, Caption

from demo import worlds
from demo.any_world import Edit, World
from demo.illustrated_world import ILLUSTRATED, Scene, Thing, colored, with_article
from harness.demo_images import Studio
from measures import flow_edit
from measures.change_only_this import Task, by_words, off, with_diffedit, with_flow_edit, with_inversion
from measures.instruct_pix2pix import decibels, edits, untouched
from measures.prompt_to_prompt import LAYOUT, PLACED, STYLE, covered, drawn, widened
from measures.prompt_to_prompt import Edit as PromptEdit
from measures.script import head, kept, options_of, percent, row, say

ATTENTION = {"thing": PLACED, "color": LAYOUT, "ground": STYLE, "style": STYLE}  # settings of Prompt-to-Prompt by kind of edit
KINDS = tuple(ATTENTION)
BATCH = 4


def plain_caption(scene: Scene) -> str:
    """A caption that says everything, in one wording, so that two scenes that differ in one fact have captions that do."""
    nouns = [f"{with_article(colored(scene, thing))} {PLACE_WORDS[thing.place][0]}" for thing in scene.things]
    return f"{' and '.join(nouns)} {GROUND_WORDS[scene.ground][0]}, {STYLE_WORDS[scene.style][1]}"


@dataclass(frozen=True)
class Change(Edit):
    """An edit as the methods take it: an image, and captions before and after."""

    @property
    def image(self) -> np.ndarray:
        return ILLUSTRATED.image(self.before)

    @property
    def texts(self) -> tuple[str, str]:
        return plain_caption(self.before), plain_caption(self.after)


@cache
def changes(count: int) -> list[Change]:
    """`count` edits of each kind; the kinds take turns."""
    of_kinds = [edits(count, kind, ILLUSTRATED) for kind in KINDS]
    return [Change(**vars(edit)) for turn in zip(*of_kinds) for edit in turn]


def attention_settings(change: Change) -> dict:
    return ATTENTION[change.kind]


def staying(change: Change, before, after, size: int) -> np.ndarray:
    """Where two images should be the same, as the reader sees their things: bool (size, size)."""
    if change.kind == "style":
        return np.zeros((size, size), bool)
    if change.kind == "ground":
        return ~widened(~(covered(before.things, size) & covered(after.things, size)))
    parts = [(before, change.before), (after, change.after)]
    return ~widened(np.any([covered(named(reading, scene.things[change.which]), size) for reading, scene in parts], axis=0))


def named(reading, thing: Thing) -> list:
    """The things of that name in an image, or all where there is none."""
    return [seen for seen in reading.things if seen.name == thing.name] or list(reading.things)


def by_prompt(studio: Studio, world: World, part: list[Change], first: int) -> list[dict]:
    """Prompt-to-Prompt on images that the model draws itself."""
    found = []
    for i, change in enumerate(part):
        source, target = change.texts
        images = drawn(studio, first + i, source, [PromptEdit(Caption(target))], **attention_settings(change))
        before, after = world.read(images)
        one, other = (torch.from_numpy(image).float() / 255 for image in images)
        kept_apart = torch.from_numpy(~staying(change, before, after, world.size))
        found.append(dict(kind=change.kind, right=world.matches(after, change.after), kept=off(other, one, kept_apart)))
    return found


def on_scenes(make: Callable, studio: Studio, world: World, part: list[Change], first: int) -> list[dict]:
    """A method on the scenes themselves: `make(task) -> images`, float (B, H, W, 3)."""
    images = (make(Task(studio, None, part)) * 255 + 0.5).clamp(0, 255).byte().numpy()
    return [
        dict(kind=change.kind, right=world.matches(reading, change.after), kept=untouched(image, change, world))
        for change, image, reading in zip(part, images, world.read(images))
    ]


def without_mask(way: Callable, **settings) -> Callable:
    return partial(on_scenes, lambda task: way(task, None, **settings)[0])


WAYS: dict[str, Callable] = {
    "the VAE alone": partial(on_scenes, lambda task: task.decoded(task.latents)),
    "Prompt-to-Prompt": by_prompt,
    "image to image": without_mask(with_flow_edit, settings=dict(denoise=0.7, cfg=4.0)),
    "FlowEdit": without_mask(with_flow_edit, settings=flow_edit.EPS),
    "DiffEdit": partial(on_scenes, lambda task: with_diffedit(task, by_words(task)[0], rule="clean mix")[0]),
    "null-text and Prompt-to-Prompt": without_mask(with_inversion, name="null-text, source start", attention=attention_settings),
}


def measured(studio: Studio, world: World, name: str, count: int) -> list[dict]:
    """The verdicts of `count` edits of each kind."""
    weights, asked = hashlib.sha256(Path(world.weights).read_bytes()).hexdigest()[:12], changes(count)

    def judged(first: int, number: int) -> list[dict]:
        found = WAYS[name](studio, world, asked[first : first + number], first)
        say(f"{name}: {first + number} of {len(asked)}")
        return found

    return kept(f"illustrated_edits/{weights}/{name.replace(' ', '-')}", len(asked), torch.inference_mode()(judged), BATCH)


def line(name: str, found: list[dict]) -> str:
    """Success of all and of each kind, with the PSNR of the rest."""
    cells = [percent(np.mean([one["right"] for one in found]))]
    for kind in KINDS:
        own = [one for one in found if one["kind"] == kind]
        cells.append(f"{percent(np.mean([one['right'] for one in own]))}, {decibels(np.array([one['kept'] for one in own]))}")
    return row(name, *cells)


def main() -> None:
    only = dict(nargs="*", choices=list(WAYS), metavar="WAY", help=f"some of: {'; '.join(WAYS)}")
    options = options_of(__doc__, None, worlds.add_places, count=(24, "edits of each kind"), only=only)
    world = worlds.placed(ILLUSTRATED, options)
    studio = worlds.studio(world)
    lines = [line(name, measured(studio, world, name, options.count)) for name in options.only or WAYS]
    say("\n".join([head(f"{options.count} edits of each kind: right, the rest in dB", "all", *KINDS), *lines]))


if __name__ == "__main__":
    main()
