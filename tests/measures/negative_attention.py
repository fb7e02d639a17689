"""Negative Attention on the demo model: `python . run tests/measures/negative_attention.py [--count 64]`.

A prompt that leaves the color of a thing open, and a negative that names one color: the share of images that still have it. At cfg 1 a negative of the
sampler does nothing; at cfg 4 it is what is to be reached. Also the CPU time of a step against one without, in turns.
"""

import time

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.negative_attention import NegativeAttention
from controlled_diffusion.training.demo import checker

from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures.script import head, options_of, percent, row, say

BATCH, SEED = 16, 1000
PROMPTS = {color: f"a large {color} circle on a white background" for color in ("orange", "red")}
TEXT = "a large circle on a white background"


def with_negative(studio: Studio, negative: list, scale: float, tau: float, alpha: float):
    return NegativeAttention.execute(studio.model, negative, scale, tau, alpha, 0.0, 1.0).args[0]


@torch.inference_mode()
def drawn(studio: Studio, model, cfg: float, negative: list, count: int) -> list[np.ndarray]:
    images = []
    for first in range(0, count, BATCH):
        noise = studio.noise(min(BATCH, count - first), SEED + first)
        given = (studio.prompt(TEXT), negative, torch.zeros_like(noise))
        images += list(studio.images(comfy.sample.sample(model, noise, STEPS, cfg, SAMPLER, SCHEDULER, *given, disable_pbar=True, seed=0)))
    return images


def judged(images: list[np.ndarray], color: str) -> tuple[str, str]:
    """Shares of images that have the color, and that have a large circle on white."""
    read = [checker.read(image) for image in images]
    right = [r.background == "white" and any(t.shape == "circle" for t in r.things) for r in read]
    return percent(np.mean([any(t.color == color for t in r.things) for r in read])), percent(np.mean(right))


def cost(studio: Studio, negative: list, rounds: int = 12) -> float:
    """CPU time of two steps with the node over that without: the median ratio of runs in turns."""
    models, noise, ratios = (with_negative(studio, negative, 5.0, 2.5, 0.25), studio.model), studio.noise(4, 0), []
    for _ in range(rounds):
        times = []
        for model in models:
            start = time.process_time()
            given = (studio.prompt(TEXT), negative, torch.zeros_like(noise))
            comfy.sample.sample(model, noise, 4, 1.0, SAMPLER, SCHEDULER, *given, disable_pbar=True, seed=0)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return float(np.median(ratios))


def main() -> None:
    colors = dict(nargs="*", choices=list(PROMPTS), default=list(PROMPTS), help="unwanted colors")
    settings = dict(nargs="*", default=["5,2.5,0.25", "5,2.5,0.5", "8,2.5,0.5"], help="scale,tau,alpha")
    options, studio = options_of(__doc__, count=(64, "images for each number"), settings=settings, colors=colors), Studio()
    with torch.inference_mode():
        say(f"CPU time of a step at cfg 1: {cost(studio, studio.prompt(PROMPTS['orange'])):.2f} of one without")
    empty = studio.prompt("")
    say(head("unwanted color", "way", "images with the color", "a circle on white"))
    for color in options.colors:
        negative = studio.prompt(PROMPTS[color])
        ways = {"cfg 1": (studio.model, 1.0, negative), "cfg 4, empty negative": (studio.model, CFG, empty), "cfg 4, negative": (studio.model, CFG, negative)}
        for given in options.settings:
            ways[f"cfg 1, Negative Attention {given}"] = (with_negative(studio, negative, *map(float, given.split(","))), 1.0, empty)
        for way, (model, cfg, other) in ways.items():
            say(row(color, way, *judged(drawn(studio, model, cfg, other, options.count), color)))


if __name__ == "__main__":
    main()
