"""The reader of illustrated scenes judges claims one by one, and its training scenes are labeled right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo import illustrated_world
from controlled_diffusion.training.demo.illustrated_captions import Caption, Claim, random_caption
from controlled_diffusion.training.demo.illustrated_drawings import THINGS
from controlled_diffusion.training.demo.illustrated_reader import NOTHING, UNKNOWN, Reading, Seen, _regions, _seen, pair_score
from controlled_diffusion.training.demo.illustrated_scenes import STYLES, random_scene
from controlled_diffusion.training.loop import save_atomically

from demo import illustrated_reader as reader

MASK = np.zeros((192, 192), bool)


def seen(name: str, color: str = "red", place: str = "left") -> Seen:
    return Seen(name, color, place, MASK, 0.9)


PAIR = Reading("beach", "cartoon", (seen("car"), seen("cat", "blue", "right")))


@pytest.mark.parametrize(
    "claims, ground, style, wrong",
    [
        ((Claim("car", "red", None, "left"), Claim("cat", None, None, "right")), "beach", "cartoon", []),
        ((Claim("car", "blue"), Claim("cat")), "beach", None, ["color"]),
        ((Claim("car", None, None, "right"), Claim("cat")), None, None, ["place"]),
        ((Claim("car"), Claim("dog")), None, None, ["both things"]),
        ((Claim("car"),), "snow", "3d", ["count", "ground", "style"]),
        ((Claim("owl"),), "beach", None, ["count", "thing"]),
    ],
)
def test_false_claims_are_found(claims, ground, style, wrong):
    verdict = reader.judge(PAIR, Caption("", claims, ground, style))
    assert sorted(fact for fact, holds in verdict.items() if not holds) == wrong


def test_unnamed_facts_are_not_judged():
    assert set(reader.judge(PAIR, Caption("", (Claim("car"), Claim("cat"))))) == {"count", "both things"}
    assert reader.judge(PAIR, Caption("")) == {}


def labeled_scenes(share: float):
    """(scene, which of its things are scrambled, labels of its cells, their colors) of twenty scenes."""
    for i in range(20):
        rng = np.random.default_rng(i)
        scene = random_scene(rng)
        _, masks, hurt = reader.paint(scene, rng, share)
        yield scene, hurt, *reader._labels(scene, masks, hurt)


def test_scrambled_things_are_labeled_unknown():
    for _, hurt, cells, colors in labeled_scenes(1.0):
        assert all(hurt) and set(np.unique(cells)) <= {NOTHING, UNKNOWN} and (colors == -1).all()


def test_clean_things_are_labeled():
    for scene, hurt, cells, _ in labeled_scenes(0.0):
        assert not any(hurt) and set(np.unique(cells)) - {0} == {1 + THINGS.index(thing.name) for thing in scene.things}


def test_scrambled_sprites_differ():
    """A scrambled thing covers other pixels, or the same ones in other colors."""
    for i in range(30):
        rng = np.random.default_rng(i)
        scene = random_scene(rng, pair_share=0.0)
        clean, _ = illustrated_world.paint(scene)
        image, masks, _ = reader.paint(scene, rng, 1.0)
        assert (np.abs(image.astype(int) - clean).max(-1) > 12).sum() > 0.02 * masks[0].sum()


def test_perfect_maps_read_true():
    """From the labels themselves as probabilities, all facts of a scene are read."""
    for i in range(30):
        rng = np.random.default_rng(i)
        scene = random_scene(rng)
        _, masks, hurt = reader.paint(scene, rng, 0.0)
        cells, colors = (
            np.moveaxis(np.eye(n)[label], -1, 0) for n, label in zip((UNKNOWN + 1, 7), reader._labels(scene, masks, hurt))
        )
        things = tuple(_seen(region, cells, colors) for region in _regions(cells))
        assert all(reader.judge(Reading(scene.ground, scene.style, things), reader.truth_of(scene)).values())


def test_network_shapes():
    cells, colors, ground, style = reader.new_reader()(torch.rand(2, 3, 192, 192))
    assert cells.shape == (2, UNKNOWN + 1, 48, 48) and colors.shape == (2, 7, 48, 48)
    assert ground.shape == (2, 10) and style.shape == (2, len(STYLES))


@pytest.mark.slow
def test_clean_scenes_are_read():
    scores = reader.clean_scores(reader.load(reader.WEIGHTS), 100)
    assert min(scores[fact] for fact in reader.GOALS) >= 0.98 and min(scores.values()) >= 0.96


@pytest.mark.slow
def test_scrambled_things_are_refused():
    assert reader.refused(reader.load(reader.WEIGHTS), 100) > 0.95


def test_loss_falls():
    """Two steps on the same batch."""
    network, batch = reader.new_reader(), reader.batch_of(0, size=2)
    losses = []
    for _ in range(2):
        loss = reader.reader_loss(network, batch)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for p, gradient in zip(network.parameters(), gradients):
            p.data -= 0.01 * gradient if gradient is not None else 0
    assert losses[1] < losses[0]


def test_weights_in_8_bits_read_alike(tmp_path):
    network, images = reader.new_reader(), torch.rand(1, 3, 192, 192)
    for i, p in enumerate(network.parameters()):
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    save_atomically(reader.stored(network), tmp_path / "reader.safetensors")
    assert (tmp_path / "reader.safetensors").stat().st_size < 0.3 * 4 * sum(p.numel() for p in network.parameters())
    for exact, small in zip(network(images), reader.load(tmp_path / "reader.safetensors")(images)):
        assert (exact - small).abs().max() < 0.05 * exact.std() + 0.05 * exact.abs().max()


def truth(scene) -> Reading:
    """All that a scene shows, as a perfect reader would see it."""
    _, masks = illustrated_world.paint(scene)
    things = [Seen(t.name, t.color or "red", t.place, mask, 1.0) for t, mask in zip(scene.things, masks)]
    return Reading(scene.ground, scene.style, tuple(sorted(things, key=lambda seen: -int(seen.mask.sum()))))


def test_pairs_score_by_what_is_read_and_what_is_kept():
    """From readings by truth: 0 where an image is not what is told, else the share of the pixels that stay."""
    for i in range(40):
        rng = np.random.default_rng(i)
        one, other = random_scene(rng), random_scene(rng)
        (before, _), (after, _) = illustrated_world.paint(one), illustrated_world.paint(other)
        told = [random_caption(scene, rng).text for scene in (one, other)]
        readings = [truth(one), truth(other)]
        score = pair_score(before, after, readings, told)
        assert 0 < score < 1 and pair_score(before, before, [readings[0]] * 2, [told[0]] * 2) == 1 > score
        wrong = replace(readings[1], things=tuple(replace(t, name="book" if t.name != "book" else "owl") for t in readings[1].things))
        assert pair_score(before, after, [readings[0], wrong], told) == 0
        assert pair_score(before, after, [readings[0], replace(readings[1], things=readings[1].things[1:])], told) == 0
    assert pair_score(before, after, readings, ["on the beach", told[1]]) == 0, "a sentence without a thing of the world claims nothing"
