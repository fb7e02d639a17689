"""Faithfulness against realism of SDEdit on the demo model: `python . run tests/measures/sdedit.py`.

Stroke paintings of known scenes (a blob of the right color where each thing belongs) become images; the prompt says what, the
strokes say where. Faithful: the things stand where the strokes were, in their colors. Real: the checker reads the whole scene,
shapes and all. The distance to the strokes is the RMS over all pixels in [0, 1].
"""

import numpy as np
import torch
from controlled_diffusion.nodes.sdedit import SDEditSampler
from controlled_diffusion.training.demo import checker

from demo import model as demo_model
from demo.world import BACKGROUNDS, COLORS, SIZE, Caption, Claim, Scene
from harness.demo_images import CFG, SCHEDULER, Studio
from measures.script import head, options_of, percent, row, say

SEED = 5
STRENGTHS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)


def scenes(count: int) -> list[Scene]:
    """Plain scenes of one or two things."""
    found = (demo_model.scene(i, seed=77) for i in range(100 * count))
    return [s for s in found if all(t.texture == "plain" and not t.accessory for t in s.things) and not s.moon][:count]


def caption(scene: Scene) -> Caption:
    """What is to be seen, but not where: that is for the strokes to say."""
    text = " and ".join(f"a {t.color} {t.shape}" for t in scene.things)
    claims = tuple(Claim(t.shape, t.color) for t in scene.things)
    return Caption(f"{text} on a {scene.background} background", claims, scene.background)


def strokes(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A rough painting of a scene: three rectangles of paint for each thing, float (128, 128, 3) in [0, 1]."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        for _ in range(3):
            x, y = thing.x + rng.uniform(-5, 5), thing.y + rng.uniform(-5, 5)
            w, h = thing.radius * rng.uniform(0.6, 0.9, 2)
            image[max(0, int(y - h)) : int(y + h), max(0, int(x - w)) : int(x + w)] = COLORS[thing.color]
    return image / 255


def faithful(image: np.ndarray, scene: Scene) -> bool:
    """Whether every thing's color is found where the strokes were."""
    seen = checker.read(image).things
    return all(any(t.color == s.color and s.mask[int(t.y), int(t.x)] for s in seen) for t in scene.things)


@torch.inference_mode()
def edited(studio: Studio, chosen: list[Scene], strength: float, repeats: int = 1) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    guide = torch.from_numpy(np.stack([strokes(s, rng) for s in chosen]))
    positive = studio.prompt(*(caption(s).text for s in chosen))
    result = SDEditSampler.execute(
        studio.model, positive, studio.prompt(""), guide, seed=3, steps=20, cfg=CFG, sampler_name="euler_ancestral", scheduler=SCHEDULER,
        strength=strength, strength_unit="percent", process="VP", repeats=repeats, vae=studio.vae,
    )  # fmt: skip
    return (result.args[1] * 255 + 0.5).clamp(0, 255).byte().numpy()


def trade_off(studio: Studio, count: int, strength: float, repeats: int = 1) -> tuple[float, float, float]:
    """(faithful, real) shares and the distance to the strokes at a strength."""
    chosen, rng = scenes(count), np.random.default_rng(SEED)
    images = edited(studio, chosen, strength, repeats)
    real = [checker.judge(checker.read(p), caption(s))["bound"] for p, s in zip(images, chosen)]
    apart = [float(np.sqrt(np.mean((p / 255 - strokes(s, rng)) ** 2))) for p, s in zip(images, chosen)]
    return float(np.mean([faithful(p, s) for p, s in zip(images, chosen)])), float(np.mean(real)), float(np.mean(apart))


def main() -> None:
    count, studio = options_of(__doc__, count=(64, "paintings for each strength")).count, Studio()
    say(head(f"strength t0 ({count} stroke paintings)", "faithful", "real", "distance to the strokes"))
    for strength in STRENGTHS:
        faithful, real, apart = trade_off(studio, count, strength)
        say(row(f"{strength:g}", percent(faithful), percent(real), f"{apart:.3f}"))


if __name__ == "__main__":
    main()
