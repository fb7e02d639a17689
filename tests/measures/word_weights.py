"""Word weights on the demo model: `python . run tests/measures/word_weights.py [--count 12]`.

Scenes of one thing that the model was never trained on, drawn with the noun or the color of the thing at several weights. The checker reads
how many pixels of the image are things of that shape, or of that color.
"""

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.word_weights import WordWeights
from controlled_diffusion.training.demo import checker

from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures.diffedit import caption, held_out
from measures.prompt_to_prompt import FIRST, covered, plain
from measures.script import head, kept, options_of, percent, row, say

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
PIXELS = 32  # that an area may fall by, of 16384


@torch.inference_mode()
def drawn(studio: Studio, text: str, words: str, seed: int, cfg: float) -> np.ndarray:
    model, positive, _ = WordWeights.execute(studio.model, studio.clip, text, words, 0.0, 1.0, "all").args
    noise = studio.noise(1, seed)
    given = (positive, studio.prompt(""), torch.zeros_like(noise))
    return studio.images(comfy.sample.sample(model, noise, STEPS, cfg, SAMPLER, SCHEDULER, *given, disable_pbar=True, seed=seed))[0]


def areas(studio: Studio, index: int, cfg: float) -> dict:
    """Pixels of things of the scene's shape and of its color, by the weight of the word."""
    scene = plain(held_out(FIRST + index, False))
    text, thing, found = caption(scene).text, scene.things[0], {}
    for kind in ("shape", "color"):
        word = getattr(thing, kind)
        read = [checker.read(drawn(studio, text, f"{word}: {weight}", index, cfg)).things for weight in WEIGHTS]
        found[kind] = [int(covered(t for t in things if getattr(t, kind) == word).sum()) for things in read]
    return found


def main() -> None:
    options = options_of(__doc__, count=(12, "scenes"))
    studio, lines = Studio(), [head("cfg", "word", *(f"weight {w:g}" for w in WEIGHTS), "steps that do not fall")]
    for cfg in (1.0, CFG):
        found = kept(f"word_weights_{cfg:g}", options.count, lambda first, n, cfg=cfg: [areas(studio, first + i, cfg) for i in range(n)], 1)
        for kind, name in (("shape", "noun"), ("color", "color")):
            area = np.array([each[kind] for each in found])
            rising = percent((np.diff(area, axis=1) >= -PIXELS).mean())
            lines.append(row(f"{cfg:g}", name, *(f"{a:.0f}" for a in area.mean(0)), rising))
    say("\n".join(lines))


if __name__ == "__main__":
    main()
