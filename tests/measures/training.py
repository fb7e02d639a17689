"""What the trainers teach the demo model, in one table: `python . run tests/measures/training.py` (resumable; hours of one CPU core).

Each part is one of the other measures with its defaults, which say more of it: `textual_inversion.py`, `personalization.py`,
`custom_diffusion.py`, `noisy_classifier.py`, `instruct_pix2pix.py`. The checker judges new contexts; the trained weights are kept, and a second
run asks only for what is missing.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from demo.shapes_world import SHAPES
from harness.demo_images import Studio
from measures import custom_diffusion, instruct_pix2pix, noisy_classifier, personalization, textual_inversion
from measures.script import head, options_of, percent, row, say

EACH = 128
SHAPE_GOAL, EDIT_GOAL, KEPT_GOAL = 80, 75, 26


def share(name: str, right: Sequence[bool], goal: int | None = None) -> str:
    return row(name, f"{sum(right)} of {len(right)}", percent(np.mean(right), 1), f"{goal} %" if goal else "")


def of(verdicts: list[dict], fact: str) -> list[bool]:
    return [v[fact] for v in verdicts if fact in v]


def words(studio: Studio, count: list[str]) -> Iterator[str]:
    verdicts = textual_inversion.with_the_word(studio, textual_inversion.options_of(count))
    name = "textual inversion, a texture that no caption names"
    yield share(f"{name}: it is there", of(verdicts, "striped"), SHAPE_GOAL)
    for fact in ("color", "shape"):
        yield share(f"{name}: {fact} of the prompt", of(verdicts, fact), SHAPE_GOAL)


def subjects(studio: Studio, count: list[str]) -> Iterator[str]:
    o, lost = personalization.options_of(count), {}
    for weight in (0.0, 1.0):
        found, drifted = personalization.scored(studio, weight, o)
        yield share(f"DreamBooth, lambda {weight:g}: a shape of no image before", of(found, "shape"), SHAPE_GOAL if weight else None)
        lost[weight] = [not right for right in of(drifted, "right")]
    yield share("ordinary prompts that lambda 0 loses", lost[0.0])
    goal = f"{50 * np.mean(lost[0.0]):.1f} % (half)"
    yield f"| ordinary prompts that lambda 1 loses | {sum(lost[1.0])} of {len(lost[1.0])} | {100 * np.mean(lost[1.0]):.1f} % | {goal} |"


def concepts(studio: Studio, count: list[str]) -> Iterator[str]:
    for name, found, _ in custom_diffusion.scored(studio, custom_diffusion.options_of(count)):
        yield share(f"Custom Diffusion, {name}", of(found, "concept"), None if "own words" in name else SHAPE_GOAL)


@torch.inference_mode()
def classifiers(studio: Studio, count: list[str]) -> Iterator[str]:
    o = noisy_classifier.options_of([])
    scenes = noisy_classifier.held_out(o.count)
    latents, made = noisy_classifier.latents_of(studio, scenes), noisy_classifier.learned(studio, o)
    for sigma in (0.5, 2.0, 8.0):
        found = noisy_classifier.shares(made, latents, scenes, sigma)
        told = ", ".join(f"{fact} {100 * right:.0f} %" for fact, right in found.items())
        yield f"| noisy classifier at sigma {sigma:g} | {len(scenes)} | {told} | |"


def edits(studio: Studio, count: list[str]) -> Iterator[str]:
    editor = instruct_pix2pix.Editor()
    for kind in SHAPES.kinds:
        found = instruct_pix2pix.judged(editor, instruct_pix2pix.edits(int(count[-1]), kind))
        yield share(f"instruction: {kind}", found.success.tolist(), EDIT_GOAL)
        yield f"| instruction: {kind}, untouched parts | {len(found.kept)} | {found.kept.mean():.1f} dB | {KEPT_GOAL} dB |"


PARTS = {"words": words, "subjects": subjects, "concepts": concepts, "classifiers": classifiers, "edits": edits}


def main() -> None:
    only = dict(nargs="*", choices=list(PARTS), default=list(PARTS))
    options, studio = options_of(__doc__, count=(EACH, "prompts or edits of each kind"), only=only), Studio()
    say(head("taught to the demo model", "right", "share", "goal"))
    for part in options.only:
        for line in PARTS[part](studio, ["--count", str(options.count)]):
            say(line)


if __name__ == "__main__":
    main()
