"""The low-rank form of the demo model's ControlNet."""

import numpy as np
import torch
from controlled_diffusion.training.demo import world

from demo import control as demo_control
from demo import model as demo_model

WEIGHTS = {
    "input_blocks.1.0.in_layers.2.weight": torch.randn(32, 24, 3, 3, generator=torch.Generator().manual_seed(0)),
    "input_blocks.1.0.in_layers.2.bias": torch.randn(32),
    "time_embed.0.weight": torch.randn(40, 20),
    "input_hint_block.0.weight": torch.randn(16, 3, 3, 3),
    "zero_convs.0.0.weight": torch.zeros(32, 32, 1, 1),
}


def test_it_starts_as_the_denoisers_own_weights():
    parts = demo_control.trainable_parts(WEIGHTS)
    for name, weight in demo_control.whole_weights(WEIGHTS, parts).items():
        assert torch.equal(weight, WEIGHTS[name]), name


def test_hints_and_zero_convolutions_are_whole_and_the_rest_of_low_rank():
    parts = demo_control.trainable_parts(WEIGHTS)
    assert set(parts) == {
        "input_hint_block.0.weight",
        "zero_convs.0.0.weight",
        "input_blocks.1.0.in_layers.2.up",
        "input_blocks.1.0.in_layers.2.down",
        "time_embed.0.up",
        "time_embed.0.down",
    }
    assert parts["input_blocks.1.0.in_layers.2.down"].shape == (demo_control.RANK, 24 * 9)


def test_a_trained_difference_is_added_as_the_host_adds_it():
    name, parts = "input_blocks.1.0.in_layers.2", {k: p.detach() for k, p in demo_control.trainable_parts(WEIGHTS).items()}
    parts[f"{name}.up"] = torch.randn(32, demo_control.RANK)
    whole = demo_control.whole_weights(WEIGHTS, parts)[f"{name}.weight"]
    added = torch.mm(parts[f"{name}.up"], parts[f"{name}.down"]).reshape(32, 24, 3, 3)
    torch.testing.assert_close(whole, WEIGHTS[f"{name}.weight"] + added)


def test_a_silhouette_is_white_where_things_are():
    scene = demo_model.scene(3)
    hint = demo_control.silhouettes(scene)
    wanted = np.logical_or.reduce(world.thing_masks(scene))
    assert hint.shape == (128, 128, 3) and (hint[..., 0] > 127).tolist() == wanted.tolist()
