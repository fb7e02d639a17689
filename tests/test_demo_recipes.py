"""What the recipes of the demo model draw: scenes, hints, edits, captions; the scripts themselves are tried in tests/host."""

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo import checker

from demo import control, ip_adapter, world
from demo import model as demo_model
from demo.instruct import KINDS, PAIRS, edit, family, instruction

WORDS = {*world.SHAPES, *world.COLORS, *world.TEXTURES, *world.RADII}


def test_a_silhouette_is_white_where_things_are():
    wanted = np.logical_or.reduce(world.thing_masks(demo_model.scene(3)))
    assert ((control.silhouettes(demo_model.scene(3))[..., 0] > 127) == wanted).all() and wanted.any()


@pytest.mark.parametrize("index", range(12))
def test_a_family_differs_in_one_thing_alone(index):
    which, (first, recolored, reshaped, gone) = family(index)
    thing, new_color, new_shape = first.things[which], recolored.things[which], reshaped.things[which]
    assert new_color.color != thing.color and new_color.shape == thing.shape
    assert new_shape.shape != thing.shape and new_shape.color == thing.color
    rest = [t for i, t in enumerate(first.things) if i != which]
    assert list(gone.things) == rest
    for scene in (recolored, reshaped):
        assert [t for i, t in enumerate(scene.things) if i != which] == rest
        assert len({(t.color, t.shape) for t in scene.things}) == len(scene.things)
    assert family(index) == family(index) != family(index, seed=1)


@pytest.mark.parametrize("index", range(30))
def test_an_instruction_names_one_thing_and_its_change(index):
    rng = np.random.default_rng(index)
    which, scenes = family(index)
    for before, after, kind in PAIRS:
        text = instruction(rng, scenes[before], scenes[after], which, kind)
        words, thing = text.split(), scenes[before].things[which]
        other = [t for i, t in enumerate(scenes[before].things) if i != which]
        if other and thing.shape in words and thing.color not in words:
            assert other[0].shape != thing.shape
        if other:
            assert "it" not in words and not text.endswith("the object")
        new = None if kind == "remove" else getattr(scenes[after].things[which], kind)
        assert words[0] in ("remove", "delete", "erase") if new is None else words[-1] == new


def test_an_edit_is_of_its_family_and_kinds_are_balanced():
    rng = np.random.default_rng(0)
    drawn = [edit(rng, i % 50) for i in range(600)]
    assert all((before, after, asked.kind) in PAIRS for asked, (before, after) in drawn)
    kinds = [asked.kind for asked, _ in drawn]
    assert all(150 < kinds.count(k) < 250 for k in KINDS)


def test_the_checker_reads_the_scene_after_the_edit():
    for scene in family(1)[1]:
        seen = sorted((t.color, t.shape) for t in checker.read(world.render(scene)).things)
        assert seen == sorted((t.color, t.shape) for t in scene.things)


def test_a_neutral_caption_names_place_and_ground_and_no_look():
    for i in range(200):
        scene, rng = ip_adapter.scene(i), np.random.default_rng(i)
        words = set(ip_adapter.neutral_caption(scene, rng).replace(",", "").split())
        assert len(scene.things) == 1 and not words & WORDS
        assert {w for w in words if w in world.BACKGROUNDS} <= {scene.background}
        assert {w for w in words if w in ("left", "right", "top", "bottom", "center")} <= {scene.layout}


def test_references_show_the_targets_look_or_nothing():
    tokens = demo_model.Tokens(lambda word: [sum(map(ord, word)) % 1000])
    features = torch.arange(600.0)[:, None] + 1  # so that a reference can be told by its features
    drawn = ip_adapter.Batches(torch.zeros(600, 4, 8, 8), features, tokens, 32)(3)
    picks = np.random.default_rng((ip_adapter.SEED, 3, 1)).integers(600, size=32)
    seen = [(int(t), int(r) - 1) for t, r in zip(picks, drawn.features[:, 0]) if r > 0]
    assert 20 <= len(seen) < 32 and any(t != r for t, r in seen)
    assert all(ip_adapter.looks(ip_adapter.scene(t)) == ip_adapter.looks(ip_adapter.scene(r)) for t, r in seen)
