"""Faithfulness against realism of SDEdit on the demo model: `python . run tests/measures/sdedit.py`.

Stroke paintings of known scenes (a blob of the right colour where each thing belongs) become pictures. Faithful: the
things stand where the strokes were, in their colours. Real: the checker reads the whole scene, shapes and all.
"""

import argparse

import numpy as np
import torch
from controlled_diffusion.nodes.sdedit import SDEditSampler
from controlled_diffusion.training import demo_checker, demo_model
from controlled_diffusion.training.demo_world import BACKGROUNDS, COLORS, PAIR_PLACES, SIZE, Caption, Claim, Scene

from harness.demo_pictures import CFG, SCHEDULER, Studio

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def scenes(count: int) -> list[Scene]:
    """Plain scenes of one or two things."""
    found = (demo_model.scene(i, seed=77) for i in range(100 * count))
    return [s for s in found if all(t.texture == "plain" and not t.accessory for t in s.things) and not s.moon][:count]


def caption(scene: Scene) -> Caption:
    places = (scene.layout,) if len(scene.things) == 1 else PAIR_PLACES[scene.layout]
    where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "center": "in the center"}
    text = " and ".join(f"a {t.color} {t.shape} {where[p]}" for t, p in zip(scene.things, places))
    claims = tuple(Claim(t.shape, t.color, position=p) for t, p in zip(scene.things, places))
    return Caption(f"{text} on a {scene.background} background", claims, scene.background)


def strokes(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A rough painting of a scene: three rectangles of paint for each thing, float (128, 128, 3) in [0, 1]."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        for _ in range(3):
            x, y = thing.x + rng.uniform(-5, 5), thing.y + rng.uniform(-5, 5)
            w, h = thing.radius * rng.uniform(0.6, 0.9, 2)
            picture[max(0, int(y - h)) : int(y + h), max(0, int(x - w)) : int(x + w)] = COLORS[thing.color]
    return picture / 255


def faithful(picture: np.ndarray, scene: Scene) -> bool:
    """Whether every thing's colour is found where the strokes were."""
    seen = demo_checker.read(picture).things
    return all(any(t.color == s.color and s.mask[int(t.y), int(t.x)] for s in seen) for t in scene.things)


@torch.inference_mode()
def edited(studio: Studio, chosen: list[Scene], strength: float, repeats: int = 1) -> np.ndarray:
    rng = np.random.default_rng(5)
    guide = torch.from_numpy(np.stack([strokes(s, rng) for s in chosen]))
    positive = studio.prompt(*(caption(s).text for s in chosen))
    result = SDEditSampler.execute(
        studio.model,
        positive,
        studio.prompt(""),
        guide,
        seed=3,
        steps=20,
        cfg=CFG,
        sampler_name="euler_ancestral",
        scheduler=SCHEDULER,
        strength=strength,
        strength_unit="percent",
        process="VP",
        repeats=repeats,
        vae=studio.vae,
    )
    return (result.args[1] * 255 + 0.5).clamp(0, 255).byte().numpy()


def trade_off(studio: Studio, count: int, strength: float, repeats: int = 1) -> tuple[float, float]:
    """(faithful, real) shares at a strength."""
    chosen = scenes(count)
    pictures = edited(studio, chosen, strength, repeats)
    real = [demo_checker.judge(demo_checker.read(p), caption(s))["bound"] for p, s in zip(pictures, chosen)]
    return float(np.mean([faithful(p, s) for p, s in zip(pictures, chosen)])), float(np.mean(real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="paintings for each strength")
    count, studio = parser.parse_args().count, Studio()
    print(
        f"| strength t0 ({count} stroke paintings) | faithful: colour where the strokes were | real: the whole scene is read |\n|---|---|---|"
    )
    for strength in STRENGTHS:
        print("| {:.1f} | {:.0f} % | {:.0f} % |".format(strength, *(100 * v for v in trade_off(studio, count, strength))))


if __name__ == "__main__":
    main()
