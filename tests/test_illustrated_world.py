"""The illustrated world tells the truth: its images, masks, captions and licenses agree."""

import re
from dataclasses import replace

import numpy as np
import pytest
from controlled_diffusion.training.demo import illustrated_captions, illustrated_drawings, illustrated_scenes, illustrated_world
from controlled_diffusion.training.demo.illustrated_grounds import GROUNDS, SIZE, paint_ground
from controlled_diffusion.training.demo.illustrated_scenes import PAIR_PLACES, STYLES, random_scene

LICENSES = illustrated_drawings.SHEET.with_name("LICENSES.md")


def scenes(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def captioned(count: int, seed: int = 0):
    rng = np.random.default_rng((seed, 1))
    return [(scene, illustrated_captions.random_caption(scene, rng)) for scene in scenes(count, seed)]


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels beside it."""
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def test_same_seed_same_scene():
    one, other = (illustrated_world.scene(np.random.default_rng(3)) for _ in range(2))
    assert one[1] == other[1] and one[2].scene == other[2].scene
    assert np.array_equal(one[0], other[0]) and all(map(np.array_equal, one[2].masks, other[2].masks))


def test_scene_shapes():
    image, caption, truth = illustrated_world.scene(np.random.default_rng(4))
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert isinstance(caption.text, str) and len(truth.masks) == len(truth.scene.things)
    assert all(mask.shape == (SIZE, SIZE) and mask.dtype == bool for mask in truth.masks)


def test_mask_is_where_the_thing_is():
    """Without its thing a scene changes inside the mask and, but for a soft edge, not outside."""
    for full in scenes(40):
        scene = replace(full, style="cartoon", ground="sky", things=full.things[:1])
        image, (mask,) = illustrated_world.paint(scene)
        empty = paint_ground("sky", np.random.default_rng(scene.seed))
        changed = np.abs(image - empty).max(-1) > 24
        assert (changed & ~grown(mask)).sum() < 0.01 * mask.sum()
        assert (changed & mask).sum() > 0.6 * mask.sum()


def test_masks_do_not_overlap():
    for scene in scenes(60):
        masks = illustrated_world.paint(scene)[1]
        assert sum(mask.astype(int) for mask in masks).max() <= 1
        assert min(mask.sum() for mask in masks) > 200


def test_place_agrees_with_mask():
    for scene in scenes(120):
        for thing, mask in zip(scene.things, illustrated_world.paint(scene)[1]):
            offset = np.flatnonzero(mask.any(0)).mean() - SIZE / 2
            found = "middle" if abs(offset) < illustrated_scenes.OFF_CENTER else "left" if offset < 0 else "right"
            assert found == thing.place


def test_size_agrees_with_mask():
    for scene in scenes(80):
        for thing, mask in zip(scene.things, illustrated_world.paint(scene)[1]):
            side = max(np.ptp(np.flatnonzero(mask.any(axis))) for axis in (0, 1))
            assert 0.8 * thing.span < side < 1.25 * thing.span


def test_every_word_occurs():
    drawn = scenes(1500)
    assert {scene.ground for scene in drawn} == set(GROUNDS) and {scene.style for scene in drawn} == set(STYLES)
    things = [thing for scene in drawn for thing in scene.things]
    assert {thing.name for thing in things} == set(illustrated_drawings.THINGS)
    assert {thing.color for thing in things} - {None} == set(illustrated_drawings.COLORS)
    assert all((thing.color is not None) == (thing.name in illustrated_drawings.COLORABLE) for thing in things)


def test_pairs_differ_and_are_ordered():
    for scene in scenes(200):
        if len(scene.things) == 2:
            assert scene.things[0].name != scene.things[1].name
            assert [thing.place for thing in scene.things] == list(PAIR_PLACES)


def test_claims_are_true():
    for scene, caption in captioned(500):
        assert caption.ground in (None, scene.ground) and caption.style in (None, scene.style)
        for claim, thing in zip(caption.claims, scene.things, strict=True):
            assert claim.name == thing.name and claim.color in (None, thing.color)
            assert claim.size in (None, thing.size) and claim.place in (None, thing.place)


def test_captions_say_what_they_claim():
    for _, caption in captioned(500):
        for claim in caption.claims:
            assert all(word in caption.text for word in (claim.name, claim.color or ""))
        assert caption.ground is None or any(words in caption.text for words in illustrated_captions.GROUND_WORDS[caption.ground])
        assert caption.style is None or any(words in caption.text for words in illustrated_captions.STYLE_WORDS[caption.style])


def test_captions_claim_what_they_say():
    for _, caption in captioned(500, seed=1):
        named = {color for color in illustrated_drawings.COLORS if re.search(rf"\b{color}\b", caption.text)}
        assert named == {claim.color for claim in caption.claims if claim.color}
        left, right = (re.search(rf"(on|at|to) the {side}", caption.text) for side in ("left", "right"))
        assert bool(left or right) <= any(claim.place for claim in caption.claims)


def test_order_in_caption_is_true():
    for scene, caption in captioned(600, seed=2):
        match = re.search(r"^(?:an? .*?of )?an? (.+?) to the (left|right) of an? (.+)$", caption.text)
        if match and len(scene.things) == 2:
            left, right = (match[1], match[3]) if match[2] == "left" else (match[3], match[1])
            assert scene.things[0].name in left and scene.things[1].name in right


def test_pencil_drawings_name_no_color():
    drawn = [caption for scene, caption in captioned(800) if scene.style == "pencil drawing"]
    assert drawn and not any(claim.color for caption in drawn for claim in caption.claims)


def test_captions_vary():
    scene = scenes(1)[0]
    rng = np.random.default_rng(0)
    assert len({illustrated_captions.random_caption(scene, rng).text for _ in range(100)}) > 20


def test_one_caption_in_ten_is_empty():
    rng = np.random.default_rng(0)
    empty = [illustrated_world.scene(rng)[1].text == "" for _ in range(300)]
    assert 0.05 < np.mean(empty) < 0.16


@pytest.mark.parametrize("thing", illustrated_drawings.COLORABLE)
def test_recolored_thing_has_its_color(thing):
    for name in illustrated_scenes.CARTOONS:
        for color in illustrated_drawings.COLORS:
            pixels = np.asarray(illustrated_drawings.recolored(thing, name, color), np.float32)
            body = pixels[..., :3][pixels[..., 3] > 200]
            distances = {other: np.linalg.norm(body - np.asarray(rgb), axis=1) for other, rgb in illustrated_drawings.COLORS.items()}
            near = {other: (distance < 60).sum() for other, distance in distances.items()}
            assert max(near, key=near.get) == color


def test_sentences_are_read_back():
    for _, caption in captioned(3000, seed=7):
        found = illustrated_captions.caption_of(caption.text)
        claims = found.claims if all(claim.place for claim in found.claims) else found.claims[:: found.claims[0].name == caption.claims[0].name or -1]
        assert replace(found, claims=claims) == caption, "two things without a place may be named in either order"
    assert illustrated_captions.caption_of("a photo of a zebra") == illustrated_captions.Caption("a photo of a zebra")


def test_unknown_drawing_is_an_error():
    with pytest.raises(ValueError, match="Things: cat"):
        illustrated_drawings.drawing("dragon", "noto")
    with pytest.raises(ValueError, match="has no drawing"):
        illustrated_drawings.drawing("penguin", "streamline")
    with pytest.raises(ValueError, match="choose one of beach"):
        paint_ground("moon", np.random.default_rng(0))


def test_every_used_drawing_exists():
    for thing in illustrated_drawings.THINGS + illustrated_drawings.UNSEEN:
        for name in ("noto", "twemoji", "fluent flat", "fluent 3d"):
            assert max(illustrated_drawings.drawing(thing, name).size) == illustrated_drawings.CELL


def test_outlined_things_are_those_that_streamline_has():
    assert {*illustrated_drawings.OUTLINED} == {thing for thing in illustrated_drawings.THINGS if has_drawing(thing, "streamline")}


def has_drawing(thing: str, name: str) -> bool:
    try:
        return bool(illustrated_drawings.drawing(thing, name))
    except ValueError:
        return False


def test_licenses_are_complete():
    rows = [line.strip("|").split("|") for line in LICENSES.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert set(table) == set(illustrated_drawings.SETS)
    for name, (_, license_name, by, source, _, count) in table.items():
        assert license_name in {"MIT", "Apache-2.0", "OFL-1.1", "CC0-1.0", "CC-BY-4.0"}
        assert by and source.startswith("https://")
        assert int(count) == sum(has_drawing(thing, name) for thing in illustrated_drawings.THINGS + illustrated_drawings.UNSEEN)


def test_sheet_is_small():
    assert illustrated_drawings.SHEET.stat().st_size < 4 * 2**20


@pytest.mark.parametrize("name, mirrored", [("cow", False), ("airplane", False), ("car", True)])
def test_only_what_may_be_mirrored_is(name, mirrored):
    thing = illustrated_scenes.Thing(name, "noto", None, "normal", "middle", 96.0, 160.0, 110.0)
    one, other = (illustrated_world.paint(illustrated_scenes.Scene("white", "cartoon", (replace(thing, flip=f),)))[0] for f in (False, True))
    assert np.array_equal(one, other) != mirrored


def test_drawings_in_another_pose_are_left_out():
    rng = np.random.default_rng(0)
    drawn = {name: {illustrated_scenes.drawn_by(rng, "cartoon", name) for _ in range(40)} for name in ("dog", "cat")}
    assert drawn == {"dog": {"twemoji", "fluent flat"}, "cat": set(illustrated_scenes.CARTOONS)}
