"""How well the demo instruction model edits: `python . run tests/measures/instruct_pix2pix.py [--count 64] [--trade]`.

Held-out pictures and instructions. An edit succeeds where the checker reads just the things that the instruction leaves, in their
colours and shapes; what it should not touch is compared with the picture before, in PSNR. `--trade` also tables the two scales.
"""

import argparse
import math

import numpy as np
import torch
from controlled_diffusion.guidance.instruct_pix2pix import Scales
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.instruct import InstructPix2Pix, Picture
from controlled_diffusion.training import demo_checker, demo_instruct, demo_model
from controlled_diffusion.training import demo_world as world

from harness.demo_pictures import Studio

HELD_OUT, NOISE, TEXT, IMAGE, BATCH = 4321, 900, 7.5, 1.5, 32


def edits(count: int, kind: str) -> list[demo_instruct.Edit]:
    """Held-out edits of one kind."""
    rng, found, index = np.random.default_rng(HELD_OUT), [], 0
    while len(found) < count:
        edit, _ = demo_instruct.edit(rng, index, HELD_OUT)
        found += [edit] * (edit.kind == kind)
        index += 1
    return found


class Editor:
    """The instruction model with a short way to edit a batch."""

    def __init__(self):
        self.studio = Studio()
        with torch.inference_mode():
            self.model = demo.load_instruct()

    @torch.inference_mode()
    def edited(self, asked: list[demo_instruct.Edit], text: float, image: float) -> np.ndarray:
        """uint8 pictures (B, 128, 128, 3), each edited by its own instruction."""
        studio, scales, made = self.studio, Scales(text, image), []
        for first in range(0, len(asked), BATCH):
            part = asked[first : first + BATCH]
            before = demo_model.as_pictures([world.render(e.before) for e in part]).movedim(1, -1)
            positive, negative = studio.prompt(*(e.text for e in part)), studio.prompt("")
            picture = Picture(self.model, positive, before, studio.vae)
            guider = InstructPix2Pix(self.model, picture.conditions(self.model, positive, negative), scales)
            made.append(studio.draw_with(guider, len(part), NOISE + first))
        return np.concatenate(made)


def right(picture: np.ndarray, edit: demo_instruct.Edit) -> bool:
    """Whether the picture shows just the things of the scene after the edit."""
    seen = sorted((t.color, t.shape) for t in demo_checker.read(picture).things)
    return seen == sorted((t.color, t.shape) for t in edit.after.things)


def untouched(picture: np.ndarray, edit: demo_instruct.Edit) -> float:
    """PSNR in dB against the picture before, where the edit has nothing to do (3 pixels around it left out)."""
    before, after = world.render(edit.before).astype(float), world.render(edit.after).astype(float)
    touched = np.abs(before - after).max(-1) > 0
    for _ in range(3):
        touched = demo_checker._dilate(touched)
    return -10 * math.log10(max(np.square((picture - before)[~touched] / 255).mean(), 1e-10))


def judged(editor: Editor, asked: list[demo_instruct.Edit], text: float = TEXT, image: float = IMAGE) -> tuple[float, float]:
    """(share of successful edits, mean PSNR of what is untouched)."""
    pictures = editor.edited(asked, text, image)
    return float(np.mean([right(p, e) for p, e in zip(pictures, asked)])), float(
        np.mean([untouched(p, e) for p, e in zip(pictures, asked)])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="edits of each kind")
    parser.add_argument("--trade", action="store_true", help="also table both scales")
    options, editor = parser.parse_args(), Editor()
    print(f"| instruction ({options.count} each, s_T {TEXT}, s_I {IMAGE}) | success | untouched parts, dB |\n|---|---|---|")
    for kind in demo_instruct.KINDS:
        success, kept = judged(editor, edits(options.count, kind))
        print(f"| {kind} | {100 * success:.1f} % | {kept:.1f} |", flush=True)
    if options.trade:
        asked = [e for kind in demo_instruct.KINDS for e in edits(options.count // 3, kind)]
        print(f"\n| s_T \\ s_I ({len(asked)} edits: success, dB) | 1.0 | 1.5 | 2.5 |\n|---|---|---|---|")
        for text in (1.5, 3.0, 7.5):
            cells = [judged(editor, asked, text, image) for image in (1.0, 1.5, 2.5)]
            print(f"| {text} | " + " | ".join(f"{100 * s:.0f} %, {k:.1f}" for s, k in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
