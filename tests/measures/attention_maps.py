"""Masks from attention maps on the demo model: `python . run tests/measures/attention_maps.py`.

Images of two things are drawn while their words' maps are captured. The mask of a word (threshold 0.4, the node's default) is compared
(IoU) with the thing it names, as the checker sees it, with the other thing, and with its own thing after the mask was moved sideways.
"""

from collections import defaultdict

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.host.attention import attention_maps
from controlled_diffusion.training.demo import checker

from demo.world import BACKGROUNDS, COLORS, SHAPES
from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures.script import head, options_of, row, say

THRESHOLD, BATCH = 0.4, 2


def prompts(count: int):
    """(prompt, ((color, shape), (color, shape))) of two things that differ in both."""
    rng = np.random.default_rng(21)
    for _ in range(count):
        colors, shapes = rng.choice(list(COLORS), 2, replace=False), rng.choice(SHAPES, 2, replace=False)
        things = tuple((str(c), str(s)) for c, s in zip(colors, shapes))
        (a, b), (c, d) = things
        yield f"{_a(a)} {a} {b} and {_a(c)} {c} {d} on a {rng.choice(list(BACKGROUNDS))} background", things


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


@torch.inference_mode()
def captured(studio: Studio, prompt: str, words: list[str], seed: int):
    """(maps, images) of one prompt."""
    model, positive = attention_maps.prepare(studio.model, studio.clip, prompt, ", ".join(words), "all", 0.0, 1.0, 1, None)
    noise = studio.noise(BATCH, seed)
    settings = (model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, studio.prompt(""), torch.zeros_like(noise))
    latent = comfy.sample.sample(*settings, disable_pbar=True, seed=seed)
    return attention_maps.maps_of(model, {"samples": latent}), studio.images(latent)


def measured(studio: Studio, count: int) -> dict[str, list[tuple[float, float, float]]]:
    """For each kind of word (IoU with its thing, with the other, with its thing after moving) of every thing drawn right."""
    found = defaultdict(list)
    for number, (prompt, things) in enumerate(prompts(count)):
        maps, images = captured(studio, prompt, [w for thing in things for w in thing], 900 + 10 * number)
        for i, image in enumerate(images):
            seen = {(t.color, t.shape): t.mask for t in checker.read(image).things}
            if set(seen) != set(things):
                continue
            for thing, other in (things, things[::-1]):
                for kind, words in (("color", thing[0]), ("noun", thing[1]), ("both", f"{thing[0]}, {thing[1]}")):
                    mask = attention_maps.mask(maps, words, "all", THRESHOLD, None)[i].bool().numpy()
                    moved = np.mean([iou(np.roll(mask, 16 * step, 1), seen[thing]) for step in range(1, 8)])
                    found[kind].append((iou(mask, seen[thing]), iou(mask, seen[other]), float(moved)))
    return found


def main() -> None:
    found = measured(Studio(), options_of(__doc__, count=(24, "prompts, two images each")).count)
    title = f"mask of a thing's word ({len(found['noun'])} things)"
    say(head(title, "IoU with the thing", "with the other thing", "after moving the mask"))
    for kind, values in found.items():
        say(row(kind, *(f"{v:.3f}" for v in np.mean(values, 0))))


if __name__ == "__main__":
    main()
