"""The training of the demo model's IP-Adapter and of the encoder that it sees through."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.attention.ip_adapter import decoupled, multi_head, recognise
from controlled_diffusion.training.demo import config, world
from controlled_diffusion.training.loop import Loop
from torch.testing import assert_close

from demo import ip_adapter as recipe
from demo import model as demo_model

WIDTHS, TEXT, FEATURES = (16, 32), 24, 12
WORDS = {*world.SHAPES, *world.COLORS, *world.TEXTURES, *world.RADII}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers():
    return [(draw(w, TEXT, seed=i), draw(w, TEXT, seed=9 + i)) for i, w in enumerate(WIDTHS)]


def batches(count: int = 64, batch: int = 32) -> recipe.Batches:
    tokens = demo_model.Tokens(lambda word: [sum(map(ord, word)) % 1000])
    return recipe.Batches(draw(count, 4, 8, 8), draw(count, FEATURES), tokens, batch)


def test_a_neutral_caption_names_place_and_ground_and_no_look():
    for i in range(200):
        scene, rng = recipe.scene(i), np.random.default_rng(i)
        text = recipe.neutral_caption(scene, rng)
        words = set(text.replace(",", "").split())
        assert not words & WORDS, text
        assert {w for w in words if w in world.BACKGROUNDS} <= {scene.background}
        assert {w for w in words if w in ("left", "right", "top", "bottom", "center")} <= {scene.layout}


def test_scenes_hold_one_thing_and_held_out_ones_are_others():
    scenes = [recipe.scene(i) for i in range(100)]
    assert all(len(s.things) == 1 for s in scenes)
    assert recipe.scene(0) == recipe.scene(0) != recipe.scene(0, seed=1)


def test_labels_are_the_facts_of_the_scene():
    scenes = [recipe.scene(i) for i in range(50)]
    for row, scene in zip(recipe.labels(scenes).tolist(), scenes):
        told = {k: options[i] for i, (k, options) in zip(row, recipe.NAMED.items())}
        thing = scene.things[0]
        assert told == dict(shape=thing.shape, color=thing.color, texture=thing.texture, background=scene.background, size=thing.size)


def test_a_reference_shows_the_targets_look_and_is_now_and_then_left_out():
    made = batches(600)
    made.features = torch.arange(600.0)[:, None] + 1  # so that a reference can be told by its features
    rng = np.random.default_rng((recipe.SEED, 3, 1))
    picks = rng.integers(600, size=32)
    references = made(3).features[:, 0].long() - 1
    seen = [(int(t), int(r)) for t, r in zip(picks, references) if r >= 0]
    assert 20 <= len(seen) < 32
    assert all(recipe.looks(recipe.scene(t)) == recipe.looks(recipe.scene(r)) for t, r in seen)
    assert any(recipe.scene(t) != recipe.scene(r) for t, r in seen)


def test_batches_depend_on_their_number_alone():
    a, b, c = batches()(5), batches()(5), batches()(6)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.features, b.features) and torch.equal(a.levels, b.levels)
    assert not torch.equal(a.levels, c.levels)
    assert (a.levels[:16] >= demo_model.NOISY).all() and a.levels.min() >= 0 and a.levels.max() < 1000


def test_captions_of_every_kind_occur_in_their_shares():
    made, rng = batches(), np.random.default_rng(0)
    texts = [made._caption(recipe.scene(i % 50), rng) for i in range(600)]
    empty = sum(t == "" for t in texts) / 600
    looks = sum(bool(set(t.replace(",", "").split()) & WORDS) for t in texts) / 600
    assert abs(empty - 0.15) < 0.05 and abs(looks - 0.25) < 0.06


def started(count: int):
    """Start values for so many of the layers."""
    return recipe.start(layers()[:count], draw(64, FEATURES), draw(64, recipe.TOKENS, TEXT, seed=6), (torch.ones(TEXT), torch.zeros(TEXT)))


def test_it_starts_as_the_texts_own_keys_and_values_in_the_published_layout():
    parts = started(2)
    found = recognise(parts, "start")
    assert (found.kind, found.features, found.width, len(found.layers)) == ("base", FEATURES, TEXT, 2)
    for ours, theirs in zip(found.layers, layers()):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert found.tokens(draw(1, FEATURES)).shape == (1, recipe.TOKENS, TEXT)


def test_it_starts_with_the_words_for_what_is_seen():
    """Of as many looks as features can tell apart, in the text's own norm."""
    kinds, scale, shift = torch.arange(60) % FEATURES, 1 + 0.3 * draw(TEXT, seed=7), 0.3 * draw(TEXT, seed=8)
    features = draw(FEATURES, FEATURES)[kinds]
    words = F.layer_norm(draw(FEATURES, recipe.TOKENS, TEXT, seed=9), (TEXT,), scale, shift)[kinds]
    found = recognise(recipe.start(layers(), features, words, (scale, shift)), "start")
    assert_close(found.tokens(features), words, atol=1e-3, rtol=1e-3)


def test_words_are_the_last_tokens_of_the_look():
    """By a tower whose token i of a text is its id."""
    ids = {word: i for i, word in enumerate(sorted(WORDS | {"a"}))}
    tokens = demo_model.Tokens(lambda word: [ids[word]])
    scenes = [recipe.scene(i) for i in range(40)]
    found = recipe.told(scenes, tokens, lambda row: row[..., None].float())[..., 0]
    for scene, row in zip(scenes, found.tolist()):
        thing = scene.things[0]
        first = "a" if thing.texture == "plain" else thing.texture
        assert row == [ids[first], ids[thing.color], ids[thing.shape]]


def test_the_encoder_learns_to_name():
    """Embeddings that are a table of numbers: the loss has to sort them by what the scenes show."""
    truth = recipe.labels([recipe.scene(i) for i in range(48)])
    images = torch.arange(48.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    table = torch.nn.Parameter(0.1 * draw(48, config.VISION_CONFIG["projection_dim"]))
    heads = recipe.new_heads()
    loop = Loop({"table": table, **heads}, steps=60, learning_rate=0.05, warmup=5)
    losses = [s.loss for s in recipe.train_encoder(lambda p: table[p[:, 0, 0, 0].long()], heads, images, truth, loop, batch=32)]
    assert losses[0] > 1.0 and losses[-1] < 0.2


def test_images_are_mirrored_half_the_time_and_moved_a_little():
    sides, places = [], []
    left, right = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    halves = torch.cat([left, right], -1).expand(8, -1, -1, -1).clone()
    halves[:, 2, 8, :] = 5.0  # a line across the third channel, by which the height is told
    heads, truth = recipe.new_heads(), torch.zeros(8, len(recipe.NAMED), dtype=torch.long)

    def embed(pixels):
        sides.extend((pixels[:, 0, 0, 12] == 1).tolist())
        places.append((pixels[0, 2, :, 0].argmax().item(), pixels[:, 0, 0].diff(dim=-1).abs().argmax(-1)[0].item()))
        return torch.zeros(len(pixels), config.VISION_CONFIG["projection_dim"])

    list(recipe.train_encoder(embed, heads, halves, truth, Loop(heads, steps=30, learning_rate=0.1), batch=32))
    assert 0.35 < np.mean(sides) < 0.65
    assert len(set(places)) > 10 and {row for row, _ in places} == set(range(8 - recipe.SHIFT, 9 + recipe.SHIFT))


def test_the_adapter_learns_what_only_the_image_tells():
    """A denoiser of one cross-attention whose right answer is a function of the image alone."""
    draw_batch = batches(batch=16)
    parts = started(1)
    direction = draw(FEATURES, 4, seed=3)
    queries, out = draw(1, 64, WIDTHS[0]), draw(WIDTHS[0], 4, seed=4) / 4
    given = {}

    class Noted(recipe.Batches):
        def __call__(self, index):
            drawn = super().__call__(index)
            target = (drawn.features @ direction)[:, :, None, None].expand(-1, -1, 8, 8)
            given[index] = target
            return recipe.Drawn(target, drawn.ids, drawn.features, drawn.levels)

    noted = Noted(draw_batch.latents, draw_batch.features, draw_batch.tokens, 16)

    def predict(noisy, levels, context, pairs):
        q = queries.expand(len(noisy), -1, -1)
        x0 = decoupled(torch.zeros_like(q), q, [tuple(t.float() for t in pairs[0])], 1.0, partial(multi_head, heads=2)) @ out
        a = demo_model.alphas_cumprod()[levels.long()].view(-1, 1, 1, 1)
        return (noisy - a.sqrt() * x0.transpose(1, 2).unflatten(2, (8, 8))) / (1 - a).sqrt()

    loop = Loop(parts, steps=80, learning_rate=0.02, warmup=5)
    losses = [s.loss for s in recipe.train_adapter(predict, lambda ids: draw(len(ids), 77, TEXT), parts, noted, loop)]
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:10])
