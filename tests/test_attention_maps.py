"""Sums of attention maps, and masks of them."""

import pytest
import torch
from controlled_diffusion.attention.maps import Maps, Sums, heat, mask_of, phase_of
from torch.testing import assert_close

from checks import refused


def maps(**more):
    sums = Sums()
    for group, size, value in (("1/2", 2, 0.2), ("1/2", 2, 0.4), ("1/1", 4, 0.9)):
        sums.add((0, group), torch.full((1, 2, size, size), value))
    sums.add((1, "1/1"), torch.full((1, 2, 4, 4), 0.1) * torch.tensor([1.0, 3.0])[:, None, None])
    return Maps(**{**dict(words=("red", "Circle"), sums=sums, phases=((0, 0.5), (0.5, 1)), size=(32, 32)), **more})


def test_means_count_every_layer_and_evaluation_once():
    made = maps()
    assert made.groups == ["1/2", "1/1"] and made.seen == [0, 1]
    assert_close(made.mean(), torch.tensor([0.4, 0.45])[None, :, None, None].expand(1, 2, 4, 4))
    assert_close(made.mean(["circle"], ["1/1"]), torch.full((1, 1, 4, 4), 0.6))
    assert_close(made.mean(["red"], phases=[0]), torch.full((1, 1, 4, 4), 0.5))
    assert made.mean(["red"], ["1/2"]).shape == (1, 1, 2, 2)
    assert [t.numel() for t in made.sums.total.values()] == [8, 32, 32]


def test_frames_of_a_video_are_images():
    sums = Sums()
    sums.add((0, "early"), torch.arange(24.0).reshape(2, 1, 3, 2, 2))
    assert_close(maps(words=("a",), sums=sums).mean(), torch.arange(24.0).reshape(6, 1, 2, 2))


@pytest.mark.parametrize("asked, message", [
    (dict(words=["blue"]), "no map of 'blue'; the words captured in this run are: red, Circle"),
    (dict(groups=["1/8"]), "no maps of the layers '1/8'; the groups of this run are: 1/2, 1/1"),
    (dict(groups=["1/2"], phases=[1]), "no maps of phase 2"),
])  # fmt: skip
def test_missing_maps_are_named(asked, message):
    refused(message, maps().mean, **asked)


def test_phases_are_equal_parts_of_the_range():
    assert [phase_of(p, 0.2, 0.6, 4) for p in (0.2, 0.29, 0.31, 0.59, 0.6)] == [0, 0, 1, 3, 3]
    assert phase_of(1.0, 0.0, 1.0, 1) == 0
    assert [phase_of((1 + i) / 10, 0.1, 0.9, 8) for i in range(8)] == list(range(8))  # of steps on their edges


def test_heat_runs_from_0_to_1_and_is_0_for_flat_maps():
    made = heat(torch.stack([torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.full((2, 2), 0.3)]))
    assert_close(made, torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))


def test_masks_are_hard_or_the_heat_itself():
    low = torch.zeros(1, 4, 4)
    low[:, 1:3, 2:] = 1.0
    hard = mask_of(low, (16, 16), 0.5)
    assert hard.shape == (1, 16, 16) and set(hard.unique().tolist()) == {0.0, 1.0}
    assert hard[0, 5:11, 10:].all() and not hard[0, :3].any() and not hard[0, :, :6].any()
    soft = mask_of(low, (16, 16), 0.0)
    assert float(soft.min()) == 0 and float(soft.max()) == 1 and torch.equal((soft > 0.5).float(), hard)
    refused("threshold is 1", mask_of, low, (16, 16), 1.0)
