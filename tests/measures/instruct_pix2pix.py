"""How well a demo instruction model edits: `python . run tests/measures/instruct_pix2pix.py [--world illustrated] [--count 128] [--trade]
[--image FILE] [--model FILE]`.

Held-out images and instructions. An edit succeeds where the checker reads just the scene that the instruction leaves: things in their colors
and shapes, in the illustrated world also their places, the ground and the style. What it should not touch is compared with the image before,
in PSNR. `--trade` also tables the two scales, and `--image` shows one edit of each kind at each of them. `--model` takes one that Train
Instruction Model made of a demo model instead.
"""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.guidance.instruct_pix2pix import Scales
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance.instruct_pix2pix import InstructPix2Pix, SourceImage
from controlled_diffusion.nodes.host.training import instruct_models
from controlled_diffusion.training.demo import checker
from PIL import Image, ImageDraw, ImageFont

from demo import instruct as demo_instruct
from demo import model as demo_model
from demo import worlds
from demo.any_world import Edit, World
from demo.shapes_world import SHAPES
from measures.script import head, options_of, percent, row, say

HELD_OUT, NOISE, TEXT, IMAGE, BATCH = 4321, 900, 3.0, 1.5, 32
TEXTS, IMAGES = (1.5, 3.0, 7.5), (1.0, 1.5, 2.5)
GOAL, KEPT_GOAL = 0.75, 26  # share of edits, dB


def edits(count: int, kind: str, world: World = SHAPES) -> list[Edit]:
    """Held-out edits of one kind."""
    rng, found, index = np.random.default_rng(HELD_OUT), [], 0
    while len(found) < count:
        edit, _ = demo_instruct.edit(world, rng, index, HELD_OUT)
        found += [edit] * (edit.kind == kind)
        index += 1
    return found


class Editor:
    """The instruction model of a world with a short way to edit a batch."""

    def __init__(self, file: Path | None = None, world: World = SHAPES):
        self.world, self.studio = world, worlds.studio(world)
        with torch.inference_mode():
            own = str(world.files.instruct), str(world.weights)
            self.model = instruct_models.load(self.studio.model, str(file)) if file else demo.load_instruct(*own)

    def images(self, scenes: list) -> torch.Tensor:
        """IMAGE (B, H, W, 3)."""
        return demo_model.as_images([self.world.image(s) for s in scenes]).movedim(1, -1)

    @torch.inference_mode()
    def edited(self, asked: list[Edit], text: float, image: float) -> np.ndarray:
        """uint8 images (B, H, W, 3), each edited by its own instruction."""
        studio, scales, made = self.studio, Scales(text, image), []
        for first in range(0, len(asked), BATCH):
            part = asked[first : first + BATCH]
            before = self.images([e.before for e in part])
            positive, negative = studio.prompt(*(e.text for e in part)), studio.prompt("")
            source = SourceImage(self.model, positive, before, studio.vae)
            guider = InstructPix2Pix(self.model, source.conditions(self.model, positive, negative), scales)
            made.append(studio.draw_with(guider, len(part), NOISE + first))
        return np.concatenate(made)

    @torch.inference_mode()
    def through_the_vae(self, asked: list[Edit]) -> np.ndarray:
        """The images before, encoded and decoded."""
        return np.concatenate([self.studio.images(self.studio.vae.encode(self.images([e.before]))) for e in asked])


def untouched(image: np.ndarray, edit: Edit, world: World = SHAPES) -> float:
    """PSNR in dB against the image before, where the edit has nothing to do (3 pixels around it left out); NaN where that is next to
    nowhere."""
    before, after = world.image(edit.before).astype(float), world.image(edit.after).astype(float)
    touched = np.abs(before - after).max(-1) > 0
    for _ in range(3):
        touched = checker._dilate(touched)
    if touched.mean() > 0.99:
        return math.nan
    return -10 * math.log10(max(np.square((image - before)[~touched] / 255).mean(), 1e-10))


def decibels(values: np.ndarray) -> str:
    """Their mean, of those that there are."""
    return f"{np.nanmean(values):.1f}" if np.isfinite(values).any() else "–"


@dataclass(frozen=True)
class Judged:
    """Of each edit: its image, whether it is right, and the PSNR of what is untouched."""

    images: np.ndarray
    success: np.ndarray
    kept: np.ndarray

    def cell(self) -> str:
        return f"{100 * self.success.mean():.0f} %, {decibels(self.kept)}"


def judged(editor: Editor, asked: list[Edit], text: float = TEXT, image: float = IMAGE) -> Judged:
    images, world = editor.edited(asked, text, image), editor.world
    right = np.array([world.matches(reading, world.wanted(e)) for reading, e in zip(world.read(images), asked)])
    return Judged(images, right, np.array([untouched(p, e, world) for p, e in zip(images, asked)]))


def table(editor: Editor, count: int) -> None:
    """Success and untouched parts of each kind, all and those with two things, between which the instruction chooses."""
    say(head(f"instruction ({count} each, s_T {TEXT}, s_I {IMAGE})", "success", "of two things", "untouched parts, dB"))
    missed, alone = [], []
    for kind in editor.world.kinds:
        asked = edits(count, kind, editor.world)
        found = judged(editor, asked)
        two = np.array([len(e.before.things) == 2 for e in asked])
        say(row(kind, *(percent(part.mean(), 1) for part in (found.success, found.success[two])), decibels(found.kept)))
        alone += [untouched(p, e, editor.world) for p, e in zip(editor.through_the_vae(asked[:16]), asked)]
        kept = found.kept[np.isfinite(found.kept)]
        missed += [kind] * bool(found.success.mean() < GOAL or (len(kept) and kept.mean() < KEPT_GOAL))
    say(f"\nThe VAE alone leaves the untouched parts at {decibels(np.array(alone))} dB.")
    say(f"Each kind {percent(GOAL)} right, the rest {KEPT_GOAL} dB: {'MISSED by ' + ', '.join(missed) if missed else 'reached'}")


def trade(editor: Editor, count: int) -> tuple[list[Edit], dict[tuple[float, float], Judged]]:
    """Edits of all kinds at all scales (s_T, s_I)."""
    asked = [e for kind in editor.world.kinds for e in edits(count, kind, editor.world)]
    say("\n" + head(f"s_T \\ s_I ({len(asked)} edits: success, dB)", *IMAGES))
    found = {}
    for text in TEXTS:
        found |= {(text, image): judged(editor, asked, text, image) for image in IMAGES}
        say(row(text, *(found[text, image].cell() for image in IMAGES)))
    return asked, found


def sheet(world: World, asked: list[Edit], found: dict[tuple[float, float], Judged]) -> Image.Image:
    """A row for each s_T and a column for each s_I, in them one edit of each kind; the images before and the instructions on top."""
    of_kind = ([i for i, e in enumerate(asked) if e.kind == kind] for kind in world.kinds)
    shown = [max(numbers, key=lambda i: len(asked[i].before.things)) for numbers in of_kind]
    side, margin, left = world.size, 22, 70
    width = len(shown) * (side + 4) + 16
    paper = Image.new("RGB", (left + len(IMAGES) * width, (1 + len(TEXTS)) * (side + 2 * margin)), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(12)
    for line, text in enumerate((None, *TEXTS)):
        top = line * (side + 2 * margin)
        draw.text((4, top + margin + side / 2), "before" if text is None else f"s_T {text:g}", fill="black", font=font)
        for column, image in enumerate(IMAGES):
            told = "" if text is None else f"s_I {image:g}: {found[text, image].cell()} dB"
            draw.text((left + column * width, top + 4), told, fill="black", font=font)
            for place, i in enumerate(shown):
                x = left + column * width + place * (side + 4)
                made = world.image(asked[i].before) if text is None else found[text, image].images[i]
                paper.paste(Image.fromarray(made), (x, top + margin))
                if text is None:
                    told = textwrap.fill(asked[i].text, 20)
                    draw.multiline_text((x, top + margin + side), told, fill="black", font=font, spacing=0)
    return paper


def main() -> None:
    options = options_of(
        __doc__, None, worlds.add_options, count=(128, "edits of each kind"), trade=dict(action="store_true", help="also table both scales"),
        image=dict(type=Path, help="also table both scales, and show an edit of each kind in this file"),
        model=dict(type=Path, help="the file of a model that Train Instruction Model made of the demo model or its editor"),
    )  # fmt: skip
    editor = Editor(options.model, worlds.chosen(options))
    table(editor, options.count)
    if options.trade or options.image:
        asked, found = trade(editor, options.count // 8)
        if options.image:
            sheet(editor.world, asked, found).save(options.image)


if __name__ == "__main__":
    main()
