"""Negative Attention on the demo model: `python . run tests/measures/negative_attention.py [--count 64]`.

A prompt that leaves the color of a thing open, and a negative that names one color: the share of images that still have it. At cfg 1 a negative of the
sampler does nothing; at cfg 4 it is what is to be reached. Also the operations (launches on a GPU) and the CPU time of a step at cfg 1 against one
without, in turns, on the demo model and on tiny random members of families, whose few layers and tokens cost more in Python than published ones.
Set COMFYUI_OPTIONS=--use-pytorch-cross-attention for the attention that a GPU has.
"""

import time
from collections.abc import Iterator

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from controlled_diffusion.nodes.negative_attention import NegativeAttention
from controlled_diffusion.training.demo import checker

from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from harness.operations import Operations
from host import tiny, tiny_dits
from measures.script import head, options_of, percent, row, say

BATCH, SEED = 16, 1000
PROMPTS = {color: f"a large {color} circle on a white background" for color in ("orange", "red")}
TEXT = "a large circle on a white background"


FAMILIES = {"SD3": "sd3", "Flux": "flux", "Qwen-Image": "qwen", "Z-Image": "zimage", "HunyuanImage": "hunyuan_image", "Wan": "wan"}
TWO_DEEP = dict(transformer_depth=[2, 2], transformer_depth_output=[2] * 4, transformer_depth_middle=2, use_linear_in_transformer=True)


def with_negative(model, negative: list, scale: float, tau: float, alpha: float):
    return NegativeAttention.execute(model, negative, scale, tau, alpha, 0.0, 1.0).args[0]


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


def members(studio: Studio) -> Iterator[tuple[str, tuple]]:
    """(name, (model, positive, negative, empty latent))"""
    prompts = studio.prompt(TEXT), studio.prompt(PROMPTS["orange"])
    yield "demo model", (studio.model, *prompts, torch.zeros_like(studio.noise(4, 0)))
    yield "SDXL", (tiny.unet(**TWO_DEEP), tiny.conditioning(1), tiny.conditioning(2), torch.zeros(1, 4, 32, 32))
    for name, family in FAMILIES.items():
        yield name, (tiny_dits.dit(family), tiny_dits.text(family, 1, 32), tiny_dits.text(family, 2, 32), tiny_dits.empty(family))


def cost(model, positive: list, negative: list, empty: torch.Tensor, rounds: int = 12) -> tuple[int, int, float]:
    """Operations of a step without and with the negative, and the median ratio of the CPU times."""
    noise, euler, sigmas = comfy.sample.prepare_noise(empty, 0), comfy.samplers.sampler_object("euler"), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.0])
    guiders = [comfy.samplers.CFGGuider(each) for each in (model, with_negative(model, negative, 5.0, 2.5, 0.25))]
    for guider in guiders:
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)

    def run(guider, steps: int) -> float:
        start = time.process_time()
        guider.sample(noise, empty, euler, sigmas[-steps - 1 :], disable_pbar=True, seed=0)
        return time.process_time() - start

    def launched(guider, steps: int) -> int:
        with Operations() as found:
            run(guider, steps)
        return found.launched

    ratios = []
    for guider in guiders:
        run(guider, 1)
    counts = [launched(guider, 2) - launched(guider, 1) for guider in guiders]
    for _ in range(rounds):
        plain, own = (run(guider, 4) for guider in guiders)
        ratios.append(own / plain)
    return *counts, float(np.median(ratios))


def main() -> None:
    colors = dict(nargs="*", choices=list(PROMPTS), default=list(PROMPTS), help="unwanted colors")
    settings = dict(nargs="*", default=["5,2.5,0.25", "5,2.5,0.5", "8,2.5,0.5"], help="scale,tau,alpha")
    options, studio = options_of(__doc__, count=(64, "images for each number"), settings=settings, colors=colors), Studio()
    say(head("model", "operations of a step", "with the negative", "ratio", "CPU time"))
    with torch.inference_mode():
        for name, parts in members(studio):
            without, own, time_ratio = cost(*parts)
            say(row(name, without, own, f"{own / without:.2f}", f"{time_ratio:.2f}"))
    empty = studio.prompt("")
    say(head("unwanted color", "way", "images with the color", "a circle on white"))
    for color in options.colors:
        negative = studio.prompt(PROMPTS[color])
        ways = {"cfg 1": (studio.model, 1.0, negative), "cfg 4, empty negative": (studio.model, CFG, empty), "cfg 4, negative": (studio.model, CFG, negative)}
        for given in options.settings:
            ways[f"cfg 1, Negative Attention {given}"] = (with_negative(studio.model, negative, *map(float, given.split(","))), 1.0, empty)
        for way, (model, cfg, other) in ways.items():
            say(row(color, way, *judged(drawn(studio, model, cfg, other, options.count), color)))


if __name__ == "__main__":
    main()
