"""Prompt-to-Prompt does its job on the demo model: what is named changes, the picture stays."""

import numpy as np
import pytest

from harness.demo_pictures import Studio
from measures import prompt_to_prompt as measure

WAYS = ("no patch", "Prompt-to-Prompt")
EDITS = [(name, group) for group, (_, _, operations) in measure.GROUPS.items() for name in operations]
NUMBER = 1  # of the held-out edits: one of two things is changed


@pytest.fixture(scope="module")
def studio():
    return Studio()


@pytest.fixture(scope="module")
def found(studio):
    """{group: {way: {operation: (success, IoU of the things, PSNR of what should stay)}}}; without the patch only of swaps."""
    return {group: measure.measured(studio, group, NUMBER, WAYS if group == "swap" else WAYS[1:]) for group in measure.GROUPS}


@pytest.mark.parametrize("name, group", EDITS, ids=[name for name, _ in EDITS])
def test_every_operation_makes_its_edit_and_keeps_the_rest(found, name, group):
    success, overlap, psnr = found[group]["Prompt-to-Prompt"][name]
    assert success
    if name in ("swap a colour", "insert a texture", "delete a texture", "reorder two things"):
        assert overlap >= 0.85 and psnr >= 28


def test_the_things_stay_nearer_to_their_places_than_without_the_patch(studio, found):
    numbers = [found["swap"], measure.measured(studio, "swap", 0, WAYS)]
    without, kept = (np.mean([overlap for n in numbers for _, overlap, _ in n[way].values()]) for way in WAYS)
    assert kept >= without + 0.1, (kept, without)
