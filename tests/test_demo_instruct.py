"""The demo world's edits, and how the instruction model starts."""

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo import checker, world
from controlled_diffusion.training.loop import Loop

from demo import instruct as demo_instruct
from demo import model as demo_model
from demo.instruct import PAIRS, edit, family, instruction


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


def test_a_family_is_the_same_every_time_and_another_seed_is_another():
    assert family(3) == family(3) and family(3) != family(4) and family(3) != family(3, seed=1)


@pytest.mark.parametrize("index", range(30))
def test_an_instruction_names_one_thing_and_what_becomes_of_it(index):
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
        if kind == "remove":
            assert words[0] in ("remove", "delete", "erase")
        else:
            new = scenes[after].things[which]
            assert words[-1] == (new.color if kind == "color" else new.shape)


def test_an_edit_is_of_its_family_and_kinds_are_balanced():
    rng = np.random.default_rng(0)
    drawn = [edit(rng, i % 50) for i in range(600)]
    for asked, (before, after) in drawn[:50]:
        assert (before, after, asked.kind) in PAIRS
    kinds = [asked.kind for asked, _ in drawn]
    assert all(150 < kinds.count(k) < 250 for k in demo_instruct.KINDS)


def test_the_checker_reads_the_scene_after_the_edit():
    _, (first, recolored, _, gone) = family(1)
    for scene in (first, recolored, gone):
        seen = sorted((t.color, t.shape) for t in checker.read(world.render(scene)).things)
        assert seen == sorted((t.color, t.shape) for t in scene.things)


def test_two_things_come_as_often_as_asked():
    picks = demo_instruct._drawn(np.random.default_rng(0), 40, 400, 0.75)
    pairs = [len(family(i)[1][0].things) == 2 for i in picks]
    assert 0.69 < np.mean(pairs) < 0.81 and len(set(picks)) > 30


def test_what_is_around_a_thing_holds_all_that_differs_when_it_changes():
    for index in range(20):
        which, scenes = family(index)
        differs = np.abs(world.render(scenes[0]).astype(int) - world.render(scenes[3])).max(-1) > 0
        cells = differs.reshape(16, 8, 16, 8).any((1, 3))
        where = demo_instruct.around(scenes[0], 16)
        hat = scenes[0].things[which].accessory == "hat"
        assert hat or not (cells & (where == 0)).any()
        assert where.mean() < 0.75


def test_the_loss_weighs_what_is_told_at_noisy_levels_and_places_with_things():
    noise, alpha = torch.zeros(2, 4, 2, 2), torch.full((2, 1, 1, 1), 0.01)
    told, nothing = torch.tensor([True, False]).view(2, 1, 1, 1), torch.zeros(2, 1, 2, 2)
    here = torch.tensor([[1.0, 0], [0, 0]]).expand(2, 1, 2, 2)

    def loss(eps, where=nothing, focus=0.0):
        return float(demo_instruct.edit_loss(eps, noise, alpha, told, where, focus))

    first, second = (torch.stack([torch.full((4, 2, 2), float(i == k)) for i in range(2)]) for k in (0, 1))
    snr = 0.01 / 0.99
    assert loss(first) == pytest.approx(snr**0.25 / snr / 2, rel=1e-5) and loss(second) == pytest.approx(snr**0.5 / snr / 2, rel=1e-5)
    there = first * here
    assert loss(there, here, 3.0) == pytest.approx(loss(there) * 4 / 1.75, rel=1e-5)


def test_dropout_takes_the_image_the_instruction_and_both_a_twentieth_each():
    """Counts what the network is given, over many samples."""
    counted = {"image": 0, "text": 0, "both": 0, "all": 0}
    weight = torch.nn.Parameter(torch.zeros(1))

    def unet(seen, levels, context):
        no_image, no_text = (seen[:, 4:] == 0).all((1, 2, 3)), context == 0
        counted["image"] += int((no_image & ~no_text).sum())
        counted["text"] += int((~no_image & no_text).sum())
        counted["both"] += int((no_image & no_text).sum())
        counted["all"] += len(seen)
        return seen[:, :4] * weight

    loop = Loop({"w": weight}, steps=40, learning_rate=1e-3, warmup=1)
    tokens = lambda text: torch.tensor(len(text))  # noqa: E731
    latents = torch.randn(20, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for _ in demo_instruct.train_instruct(unet, lambda ids: ids, tokens, latents, 5.0, loop, batch=100):
        pass
    for name in ("image", "text", "both"):
        assert 0.035 < counted[name] / counted["all"] < 0.065, counted


def test_the_loss_falls_to_nothing_for_a_network_that_knows_the_noise():
    """The noisy latent and the image after: a network that is told the answer has no loss."""
    latents = torch.zeros(5, 4, 4, 2, 2)
    weight, levels_of = torch.nn.Parameter(torch.ones(1)), demo_model.alphas_cumprod()

    def unet(seen, levels, context):
        a = levels_of[levels.long()].view(-1, 1, 1, 1)
        return seen[:, :4] / (1 - a).sqrt() * weight

    loop = Loop({"w": weight}, steps=2, learning_rate=0.0, warmup=1)
    tokens = lambda text: torch.tensor(len(text))  # noqa: E731
    steps = list(demo_instruct.train_instruct(unet, lambda ids: ids, tokens, latents, 5.0, loop, batch=8))
    assert max(s.loss for s in steps) < 1e-3  # bfloat16
