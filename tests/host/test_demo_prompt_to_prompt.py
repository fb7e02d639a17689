"""Prompt-to-Prompt does its job on the demo model: what is named changes, the image stays."""

import numpy as np
import pytest
from controlled_diffusion.training.demo import checker

from demo.world import Caption, Claim
from harness.demo_images import Studio
from measures import prompt_to_prompt as measure

WAYS = ("no patch", "Prompt-to-Prompt")
EDITS = [(name, group) for group, (_, _, operations) in measure.GROUPS.items() for name in operations]
pytestmark = pytest.mark.slow
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
    if name in ("swap a color", "insert a texture", "delete a texture", "reorder two things"):
        assert overlap >= 0.85 and psnr >= 28


def test_the_things_stay_nearer_to_their_places_with_the_patch(found):
    without, kept = (np.mean([overlap for _, overlap, _ in found["swap"][way].values()]) for way in WAYS)
    assert kept >= without + 0.1, (kept, without)


def drawn(studio, seed: int, source: str, targets: list[Caption], **knobs):
    """(what is read, where things are) of the source's image and of each target's."""
    readings = [checker.read(p) for p in measure.drawn(studio, seed, source, [measure.Edit(t) for t in targets], **knobs)]
    return [(r, measure.covered(r.things)) for r in readings]


def test_words_of_degree_grade_what_the_word_behind_them_does(studio):
    """The model was never trained on such words, and reads the size of a thing from its noun."""
    source = "a red {}circle on a white background"
    targets = [Caption(source.format(word)) for word in ("barely ", "", "super ")]
    for knobs, graded in ((measure.WEIGHED, True), (measure.WAYS["no patch"], False)):
        _, *made = drawn(studio, 1, source.format(""), targets, **knobs)
        areas = [int(where.sum()) for _, where in made]
        assert (areas == sorted(areas) and len(set(areas)) == len(areas)) == graded, areas


def test_alpha_lets_a_style_in_and_keeps_the_places(studio):
    """All layers to the end leave a texture no room; with nothing taken over the things stand elsewhere."""
    source = "a red star on the left and a blue circle on the right on a white background"
    claims = Claim("star", "red", "dotted", None, "left"), Claim("circle", "blue", "dotted", None, "right")
    style = Caption(source.replace("red", "dotted red").replace("blue", "dotted blue").replace("white", "black"), claims, "black")
    found = {}
    for alpha in (1.0, 0.5, 0.0):
        (_, before), (reading, after) = drawn(studio, 5, source, [style], alpha=alpha, **measure.WAYS["everything"])
        found[alpha] = all(checker.judge(reading, style).values()), (before & after).sum() / (before | after).sum()
    assert not found[1.0][0] and found[0.5][0] and found[0.0][0]
    assert found[0.5][1] >= 0.85 and found[0.0][1] < 0.8, found
