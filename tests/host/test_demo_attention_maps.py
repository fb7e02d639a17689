"""Attention maps on the demo model: the map of a word lies over the thing it names."""

import comfy.sample
import numpy as np
import pytest
import torch
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture, AttentionMapView
from controlled_diffusion.training import demo_checker

from harness.demo_pictures import CFG, SAMPLER, SCHEDULER, STEPS, Studio

SCENES = [
    ("a red circle and a blue star on a white background", "circle"),
    ("a purple star and a red square on a pink background", "star"),
]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


@pytest.mark.usefixtures("inference_mode")
def test_the_map_of_a_word_lies_over_its_thing_and_not_over_the_other():
    studio, own, other, moved = Studio(), [], [], []
    for number, (prompt, word) in enumerate(SCENES):
        model, positive = AttentionMapCapture.execute(studio.model, studio.clip, prompt, word, "all", 0.0, 1.0, 1).args
        noise = studio.noise(2, 20 * number)
        settings = (model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, studio.prompt(""), torch.zeros_like(noise))
        latent = comfy.sample.sample(*settings, disable_pbar=True, seed=number)
        masks = AttentionMapView.execute(model, {"samples": latent}, "", "mean", "all", word, 0.4).args[1].bool().numpy()
        for mask, picture in zip(masks, studio.pictures(latent)):
            things = demo_checker.read(picture).things
            own += [overlap(mask, t.mask) for t in things if t.shape == word]
            other += [overlap(mask, t.mask) for t in things if t.shape != word]
            moved += [np.mean([overlap(np.roll(mask, 16 * i, 1), t.mask) for i in range(1, 8)]) for t in things if t.shape == word]
    assert len(own) >= 3 and np.mean(own) >= 0.6 and min(own) >= 0.3, own
    assert np.mean(other) <= 0.1 and np.mean(own) >= np.mean(moved) + 0.4, (other, moved)
