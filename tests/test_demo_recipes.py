"""What the recipes of the demo models' adapters draw: hints, edits, captions, labels; the scripts are tried in tests/host."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo import illustrated_world as painting
from controlled_diffusion.training.demo.illustrated_captions import GROUND_WORDS
from controlled_diffusion.training.demo.illustrated_drawings import COLORS, THINGS
from controlled_diffusion.training.demo.illustrated_reader import Reading, Seen
from controlled_diffusion.training.loop import Loop

from demo import control, instruct, ip_adapter
from demo import model as demo_model
from demo import world as shapes
from demo.illustrated_world import ALIKE, ILLUSTRATED, color_of, stands
from demo.shapes_world import PAIRS, SHAPES

WORDS = {*shapes.SHAPES, *shapes.COLORS, *shapes.TEXTURES, *shapes.RADII}
WORLDS = pytest.mark.parametrize("world", [SHAPES, ILLUSTRATED], ids=lambda world: world.name)


def tokens() -> demo_model.Tokens:
    return demo_model.Tokens(lambda word: [sum(map(ord, word)) % 1000])


@WORLDS
def test_a_silhouette_is_white_where_things_are(world):
    scene = world.scene(3)
    wanted = np.logical_or.reduce(world.masks(scene))
    assert ((control.silhouettes(world, scene)[..., 0] > 127) == wanted).all() and wanted.any()


def test_masks_without_painting_are_those_of_the_image():
    for i in range(6):
        scene = ILLUSTRATED.scene(i)
        assert all(map(np.array_equal, painting.paint(scene)[1], ILLUSTRATED.masks(scene)))


@WORLDS
def test_spots_are_about_where_things_are(world):
    for i in range(6):
        scene = world.scene(i)
        near = instruct.around(world, scene).repeat(8, 0).repeat(8, 1) > 0
        assert all((near & mask).sum() > 0.9 * mask.sum() for mask in world.masks(scene)) and near.mean() < 0.9


@pytest.mark.parametrize("index", range(12))
def test_a_family_differs_in_one_thing_alone(index):
    which, (first, recolored, reshaped, gone) = SHAPES.family(index, 80)
    thing, new_color, new_shape = first.things[which], recolored.things[which], reshaped.things[which]
    assert new_color.color != thing.color and new_color.shape == thing.shape
    assert new_shape.shape != thing.shape and new_shape.color == thing.color
    rest = [t for i, t in enumerate(first.things) if i != which]
    assert list(gone.things) == rest
    for scene in (recolored, reshaped):
        assert [t for i, t in enumerate(scene.things) if i != which] == rest
        assert len({(t.color, t.shape) for t in scene.things}) == len(scene.things)
    assert SHAPES.family(index, 80) == SHAPES.family(index, 80) != SHAPES.family(index, 1)


def facts(scene, which: int) -> dict:
    """What an edit may change."""
    thing = scene.things[which] if which < len(scene.things) else None
    return {"ground": scene.ground, "style": scene.style, "thing": thing and thing.name, "color": thing and color_of(scene, thing)}


@pytest.mark.parametrize("index", range(24))
def test_an_illustrated_family_differs_in_one_edit(index):
    which, scenes = ILLUSTRATED.family(index, 80)
    pairs = ILLUSTRATED.pairs(scenes)
    assert {kind for _, _, kind in pairs} >= {"thing", "ground", "style", "remove"}
    for before, after, kind in pairs:
        one, other = scenes[before], scenes[after]
        assert one.seed == other.seed and len({t.name for t in other.things}) == len(other.things)
        assert len(other.things) == len(one.things) - (kind == "remove")
        if kind == "remove":
            assert other.things == tuple(t for i, t in enumerate(one.things) if i != which)
            continue
        changed = {fact for fact, value in facts(one, which).items() if facts(other, which)[fact] != value}
        assert kind in changed and changed - {kind} <= ({"color"} if kind in ("thing", "style") else set())
        rest = [[t for i, t in enumerate(s.things) if i != which] for s in (one, other)]
        assert rest[0] == rest[1] or kind == "style"
        assert all(stands(t, scenes[4].ground) for t in scenes[0].things)


def test_the_rest_of_an_illustrated_edit_is_the_same_pixel_by_pixel():
    """Off the box of the thing that changes, its shadow and what the filters of styles reach."""
    seen = 0
    for index in range(6):
        which, scenes = ILLUSTRATED.family(index, 80)
        one, other = (ILLUSTRATED.image(scenes[i]).astype(int) for i in (1, 3))
        x, y, radius = ILLUSTRATED.spots(scenes[1])[which]
        rows, cols = np.mgrid[: ILLUSTRATED.size, : ILLUSTRATED.size]
        off = (abs(cols - x) > 1.6 * radius + 12) | (rows < y - 1.3 * radius - 12)
        assert (one != other).any() and (one[off] == other[off]).all()
        seen += off.mean()
    assert seen > 1


@pytest.mark.parametrize("index", range(30))
def test_an_instruction_names_one_thing_and_its_change(index):
    rng = np.random.default_rng(index)
    which, scenes = SHAPES.family(index, 80)
    for before, after, kind in PAIRS:
        text = SHAPES.instruction(rng, scenes[before], scenes[after], which, kind)
        words, thing = text.split(), scenes[before].things[which]
        other = [t for i, t in enumerate(scenes[before].things) if i != which]
        if other and thing.shape in words and thing.color not in words:
            assert other[0].shape != thing.shape
        if other:
            assert "it" not in words and not text.endswith("the object")
        new = None if kind == "remove" else getattr(scenes[after].things[which], kind)
        assert words[0] in ("remove", "delete", "erase") if new is None else words[-1] == new


def test_illustrated_instructions_name_thing_and_change():
    rng = np.random.default_rng(0)
    for index in range(40):
        which, scenes = ILLUSTRATED.family(index, 80)
        for before, after, kind in ILLUSTRATED.pairs(scenes):
            text, new = ILLUSTRATED.instruction(rng, scenes[before], scenes[after], which, kind), scenes[after]
            if kind == "ground":
                assert any(text.endswith(words) for words in GROUND_WORDS[new.ground]) or text == "make it night"
            elif kind == "style":
                assert text.endswith(new.style.replace("3d", "3d render"))
            elif kind != "remove":
                assert text.endswith(getattr(new.things[which], dict(thing="name", color="color")[kind]))
            if kind in ("thing", "color", "remove") and len(scenes[before].things) == 2:
                assert scenes[before].things[which].name in text and " it " not in f" {text} "


@WORLDS
def test_an_edit_is_of_its_family_and_kinds_are_balanced(world):
    rng = np.random.default_rng(0)
    drawn = [instruct.edit(world, rng, i % 50) for i in range(600)]
    assert all(asked.kind in world.kinds and before != after for asked, (before, after) in drawn)
    kinds, share = [asked.kind for asked, _ in drawn], 600 / len(world.kinds)
    assert all(0.3 * share < kinds.count(k) < 1.5 * share for k in world.kinds)


def test_families_without_pairs_are_refused():
    """Where half of the samples shall be of two things; otherwise the draw would never end."""
    loop = Loop({"a": torch.nn.Parameter(torch.zeros(1))}, steps=1, learning_rate=1.0)
    latents = torch.zeros(1, SHAPES.variants, 4, 16, 16)
    with pytest.raises(ValueError, match="of 1 families have two things"):
        instruct.train_instruct(SHAPES, None, None, tokens(), latents, 1.0, loop, pair_share=0.5)


def test_the_checker_reads_the_scene_after_the_edit():
    for scene in SHAPES.family(1, 80)[1]:
        assert SHAPES.matches(SHAPES.read([SHAPES.image(scene)])[0], scene)


def test_a_removal_that_leaves_the_thing_does_not_match():
    """The reader's claims say nothing of a scene without things, so their number counts too."""
    _, scenes = next(f for f in (ILLUSTRATED.family(i, 80) for i in range(50)) if len(f[1][0].things) == 1)
    thing, gone = scenes[0].things[0], scenes[3]
    seen = Seen(thing.name, "red", thing.place, np.zeros((192, 192), bool), 1.0)
    readings = [Reading(gone.ground, gone.style, things) for things in ((), (seen,))]
    assert [ILLUSTRATED.matches(reading, gone) for reading in readings] == [True, False]


def test_a_neutral_caption_names_place_and_ground_and_no_look():
    for i in range(200):
        scene, rng = SHAPES.single(i, 90), np.random.default_rng(i)
        words = set(SHAPES.neutral_caption(scene, rng).text.replace(",", "").split())
        assert len(scene.things) == 1 and not words & WORDS
        assert {w for w in words if w in shapes.BACKGROUNDS} <= {scene.background}
        assert {w for w in words if w in ("left", "right", "top", "bottom", "center")} <= {scene.layout}


def test_illustrated_neutral_captions_say_no_look():
    for i in range(100):
        scene = ILLUSTRATED.single(i, 90)
        caption = ILLUSTRATED.neutral_caption(scene, np.random.default_rng(i))
        assert not any(name in caption.text.split() for name in THINGS) and caption.ground in (None, scene.ground)
        assert (caption.ground is None) == (not any(words in caption.text for words in GROUND_WORDS[scene.ground]))


def test_singles_in_a_row_look_alike():
    """Four with the same look, two and two of them on the same ground, all at other places."""
    for first in range(0, 40, ALIKE):
        scenes = [ILLUSTRATED.single(first + i, 90) for i in range(ALIKE)]
        look, grounded = zip(*map(ILLUSTRATED.looks, scenes))
        assert len(set(look)) == 1 and len(set(grounded)) <= 2 and grounded[0] == grounded[1] and grounded[2] == grounded[3]
        assert len({s.things[0].x for s in scenes}) == ALIKE


@WORLDS
def test_references_carry_what_the_caption_leaves_open(world):
    features = torch.arange(600.0)[:, None] + 1  # so that a reference can be told by its features
    drawn = ip_adapter.Batches(world, torch.zeros(400, 4, 8, 8), features, tokens(), 32)
    batch, rng = drawn(3), np.random.default_rng((ip_adapter.SEED, 3, 1))
    picks = rng.integers(400, size=32)
    captions = [drawn._caption(world.single(int(t), ip_adapter.SEED), rng) for t in picks]
    seen = [(int(t), int(r) - 1, c) for t, r, c in zip(picks, batch.features[:, 0], captions) if r > 0]
    assert 20 <= len(seen) < 32 and any(t != r for t, r, _ in seen)
    for target, reference, caption in seen:
        wanted = world.carried(world.single(target, ip_adapter.SEED), caption)
        assert wanted in world.looks(world.single(reference, ip_adapter.SEED))


def test_an_edit_is_right_in_any_color_that_its_instruction_leaves_open():
    rng, tried = np.random.default_rng(0), set()
    for i in range(40):
        edit, _ = instruct.edit(ILLUSTRATED, rng, i)
        thing = edit.after.things[edit.which] if edit.kind != "remove" else None
        if thing is None or color_of(edit.after, thing) is None:
            continue
        others = [t if t is not thing else replace(t, color=next(c for c in COLORS if c != t.color)) for t in edit.after.things]
        seen = tuple(Seen(t.name, t.color or "red", t.place, np.zeros((192, 192), bool), 1.0) for t in others)
        found = ILLUSTRATED.matches(Reading(edit.after.ground, edit.after.style, seen), ILLUSTRATED.wanted(edit))
        assert found == (edit.kind == "thing")
        tried.add(edit.kind)
    assert {"thing", "color"} <= tried


@WORLDS
def test_facts_and_labels_are_in_their_lists(world):
    scenes = [world.single(i, ip_adapter.SEED) for i in range(40)]
    assert ip_adapter.labels(world, scenes).shape == (40, len(world.facts))
    assert all(
        world.present(s) & set(several) for s in scenes for fact, several in world.labels.items() if fact not in ("color", "texture")
    )


@WORLDS
def test_words_for_a_look_are_as_many_for_every_scene(world):
    scenes = [world.single(i, ip_adapter.SEED) for i in range(60)]
    found = ip_adapter.told(world, scenes, tokens(), lambda ids: ids[..., None].float())
    assert found.shape == (60, sum(world.slots), 1) and (found != tokens().end).all() and (found != tokens().start).all()


@WORLDS
def test_patches_show_thing_or_ground_by_the_majority_of_their_pixels(world):
    side, size = world.vision_config["image_size"], world.vision_config["patch_size"]
    masks = torch.zeros(2, 1, side, side)
    masks[0, 0, :size, : 2 * size] = 1  # the first two patches
    masks[0, 0, size : 2 * size, : size // 2 + 1] = 1  # most of one more
    masks[1, 0, :size, : size // 2 - 1] = 1  # too little of one
    truth = ip_adapter.labels(world, [world.single(i, ip_adapter.SEED) for i in (0, 4)])
    row, facts = side // size, list(world.facts)
    for fact, classes in ip_adapter.patch_truth(world, masks, truth).items():
        own, absent = truth[:, facts.index(fact), None], len(world.facts[fact])
        on = torch.zeros(2, row**2, dtype=torch.bool)
        on[0, [0, 1, row]] = True
        assert (classes == torch.where(on if fact in world.on_thing else ~on, own, absent)).all()
    assert set(world.on_thing) | set(world.on_ground) < set(facts)


@WORLDS
def test_patch_loss_is_small_where_every_patch_says_what_it_shows(world):
    heads = {k: v.detach() for k, v in ip_adapter.new_patch_heads(world).items()}
    truth = {k: torch.randint(len(v), (2, 9), generator=torch.Generator().manual_seed(1)) for k, v in heads.items()}
    (fact, head), *_ = heads.items()
    tokens = 100 * torch.nn.functional.normalize(head, dim=1)[truth[fact]]
    right = ip_adapter.patch_loss(tokens, heads, {fact: truth[fact]})
    wrong = ip_adapter.patch_loss(tokens, heads, {fact: (truth[fact] + 1) % len(head)})
    assert right < 0.1 and wrong > 10 and ip_adapter.patch_loss(0 * tokens, heads, truth) > 1


def test_words_have_no_loss_where_a_linear_map_of_the_embedding_tells_them():
    draw = torch.Generator().manual_seed(1)
    plain, scale, shift = torch.randn(8, 2, 5, generator=draw), torch.rand(5, generator=draw) + 0.5, torch.randn(5, generator=draw)
    words = ip_adapter.Words.of(plain * scale + shift, (scale, shift), 10, 2.0)
    torch.testing.assert_close(words.told, (plain - plain.mean(0)).flatten(1))
    embeds, picks = torch.linalg.solve(words.head.detach(), words.told.T).T, torch.tensor([3, 0, 5])
    assert words.loss(embeds[picks], picks) < 1e-6
    assert words.loss(0 * embeds, torch.arange(8)).item() == pytest.approx(2.0, rel=0.1)


def test_masks_move_with_the_images_of_a_batch():
    """A network that reads the thing's mask out of the image itself has no loss left, so masks are mirrored and moved alike."""
    side, size = (ILLUSTRATED.vision_config[k] for k in ("image_size", "patch_size"))
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((6, 1, side, side)) < 0.5).float().cumsum(-1).gt(side / 4).float()
    truth = ip_adapter.labels(ILLUSTRATED, [ILLUSTRATED.single(i, ip_adapter.SEED) for i in range(6)])
    truth[:] = truth[:1]  # one look, so that a patch says all by being covered or not
    answers = [ip_adapter.patch_truth(ILLUSTRATED, torch.full((1, 1, size, size), v), truth[:1]) for v in (0.0, 1.0)]
    heads = {k: torch.zeros_like(v) for k, v in ip_adapter.new_patch_heads(ILLUSTRATED).items()}
    for fact, head in heads.items():
        for covered, answer in enumerate(answers):
            head[int(answer[fact]), covered] = 100
    nothing = torch.nn.Parameter(torch.zeros(1))
    loop = Loop({"a": nothing}, steps=3, learning_rate=1.0)

    def see(pixels):
        covered = torch.nn.functional.avg_pool2d(pixels[:, :1], size).flatten(1) >= 0.5
        return nothing.expand(len(pixels), 1), torch.nn.functional.one_hot(covered.long(), head.shape[1]).float() + 0 * nothing

    whole = {k: torch.zeros(len(v), 1) for k, v in ILLUSTRATED.facts.items()}
    even = ip_adapter.naming_loss(torch.zeros(6, 1), whole, truth)
    patches = ip_adapter.Patches(masks, heads, 1.0)
    run = ip_adapter.train_encoder(ILLUSTRATED, see, whole, masks.expand(-1, 3, -1, -1), truth, loop, batch=6, patches=patches)
    assert all(abs(step.loss - even) < 1e-3 for step in run)


def test_only_the_illustrated_encoder_learns_patches():
    """The shapes' encoder stays as its file has it."""
    assert [bool(world.plans["encoder"].settings.get("patches")) for world in (SHAPES, ILLUSTRATED)] == [False, True]
