"""Prompt-to-Prompt does its job on the demo model: the word changes, the picture stays."""

import comfy.sample
import numpy as np
import pytest
from controlled_diffusion.nodes.prompt_to_prompt import P2PAttentionPatch
from controlled_diffusion.training import demo_checker

from harness.demo_pictures import CFG, SAMPLER, SCHEDULER, STEPS, Studio

SWAPS = [
    ("a red circle and a blue star on a white background", "a red circle and a yellow star on a white background", "yellow"),
    ("a green square and a purple cross on a gray background", "an orange square and a purple cross on a gray background", "orange"),
    ("a purple star and a red square on a pink background", "a purple star and a green square on a pink background", "green"),
    ("a yellow cross and a blue circle on a black background", "a yellow cross and a red circle on a black background", "red"),
]


def drawn(studio, number: int, source: str, target: str, **knobs) -> np.ndarray:
    """The source and the target, from the same noise."""
    inputs = {i.id: getattr(i, "default", None) for i in P2PAttentionPatch.GET_SCHEMA().inputs}
    inputs |= dict(model=studio.model, clip=studio.clip, source=source, targets=target, operation="auto", width=128, height=128) | knobs
    model, positive, negative, latent, _ = P2PAttentionPatch.execute(**inputs).args
    noise = comfy.sample.prepare_noise(latent["samples"], number, latent["batch_index"])
    run = (model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent["samples"])
    return studio.pictures(comfy.sample.sample(*run, disable_pbar=True, seed=number))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of all things of two pictures."""
    a, b = (np.logical_or.reduce([t.mask for t in demo_checker.read(p).things]) for p in (one, other))
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.usefixtures("inference_mode")
def test_a_swapped_colour_comes_and_the_things_stay_where_they_were():
    studio, kept, free = Studio(), [], []
    for number, (source, target, color) in enumerate(SWAPS):
        before, after = drawn(studio, number, source, target, self_end=0.6)
        assert color in {t.color for t in demo_checker.read(after).things}
        kept.append(overlap(before, after))
        free.append(overlap(*drawn(studio, number, source, target, self_end=0.0, cross_end=0.0)))
    assert np.mean(kept) >= 0.85 and np.mean(kept) >= np.mean(free) + 0.1, (kept, free)
