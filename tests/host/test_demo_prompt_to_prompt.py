"""Prompt-to-Prompt does its job on the demo model: the word changes, the picture stays."""

import comfy.sample
import numpy as np
import pytest
import torch
from controlled_diffusion.nodes.prompt_to_prompt import P2PAttentionPatch
from controlled_diffusion.training import demo_checker

from harness.demo_pictures import CFG, SAMPLER, SCHEDULER, STEPS, Studio

SWAPS = [
    ("a red circle on a white background", "a blue circle on a white background", "blue"),
    ("a green square on a gray background", "a yellow square on a gray background", "yellow"),
    ("a purple star on a pink background", "an orange star on a pink background", "orange"),
    ("a yellow cross on a black background", "a red cross on a black background", "red"),
]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of the largest thing of two pictures."""
    a, b = (demo_checker.read(p).things[0].mask for p in (one, other))
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.usefixtures("inference_mode")
def test_a_swapped_colour_comes_and_the_thing_stays_where_it_was():
    studio, kept, free = Studio(), [], []
    for number, (source, target, color) in enumerate(SWAPS):
        inputs = {i.id: getattr(i, "default", None) for i in P2PAttentionPatch.GET_SCHEMA().inputs}
        inputs |= dict(
            model=studio.model, clip=studio.clip, source=source, targets=target, operation="auto", width=128, height=128, self_end=0.6
        )
        model, positive, negative, latent, _ = P2PAttentionPatch.execute(**inputs).args
        noise = comfy.sample.prepare_noise(latent["samples"], number, latent["batch_index"])
        made = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent["samples"], disable_pbar=True, seed=number
        )
        before, after = studio.pictures(made)
        assert demo_checker.read(after).things[0].color == color
        assert torch.equal(noise[0], noise[1])
        kept.append(overlap(before, after))
        alone = studio.draw([source, target], number)  # another noise for each, and no patch
        free.append(overlap(*alone) if all(demo_checker.read(p).things for p in alone) else 0.0)
    assert np.mean(kept) >= 0.85 and np.mean(kept) > np.mean(free) + 0.1
