from collections import Counter

import numpy as np
import pytest
from controlled_diffusion.training.demo import checker

from demo import world
from demo.reading import any_shape
from demo.world import PAIR_PLACES, Caption, Claim, Scene, Thing


def truth(scene: Scene) -> Caption:
    """Everything there is to say about a scene."""
    places = (scene.layout,) if len(scene.things) == 1 else PAIR_PLACES[scene.layout]
    return Caption("", tuple(Claim(t.shape, t.color, t.texture, t.size, p) for t, p in zip(scene.things, places)), scene.background)


def test_the_checker_reads_clean_scenes():
    """All that it says of them is true, and its masks are where the things are."""
    rng = np.random.default_rng(7)
    right, asked, overlaps = Counter(), Counter(), []
    for i in range(100):
        scene = world.random_scene(rng)
        reading = checker.read(world.render(scene))
        for fact, holds in checker.judge(reading, truth(scene)).items():
            right[fact] += holds
            asked[fact] += 1
        if i < 40:
            overlaps += [max((m & t.mask).sum() / (m | t.mask).sum() for t in reading.things) for m in world.thing_masks(scene)]
    assert {f: right[f] / asked[f] for f in asked if right[f] / asked[f] < 0.995} == {}
    assert np.mean(overlaps) > 0.9


@pytest.mark.parametrize("claim, wrong", [
    (Claim("circle", "red", "plain", "large", "left"), "color"),
    (Claim("square", "blue", "plain", "large", "left"), "shape"),
    (Claim("circle", "blue", "striped", "large", "left"), "texture"),
    (Claim("circle", "blue", "plain", "small", "left"), "size"),
    (Claim("circle", "blue", "plain", "large", "top"), "position"),
])  # fmt: skip
def test_each_false_claim_is_caught_and_only_that_one(claim, wrong):
    image = world.render(Scene("gray", (Thing("circle", "blue", "plain", "large", 42, 64, 33),), "left"))
    verdict = checker.judge(checker.read(image), Caption("", (claim,), "gray"))
    assert [fact for fact, holds in verdict.items() if not holds and fact != "bound"] == [wrong]


def test_swapped_colors_of_two_things_are_not_bound():
    one, two = Thing("circle", "red", x=34, radius=24), Thing("square", "blue", x=94, radius=24)
    reading = checker.read(world.render(Scene("white", (one, two), "horizontal")))
    right = Caption("", (Claim("square", "blue"), Claim("circle", "red")), "white")
    swapped = Caption("", (Claim("square", "red"), Claim("circle", "blue")), "white")
    assert checker.judge(reading, right)["bound"] and not checker.judge(reading, swapped)["bound"]


def test_two_touching_things_are_told_apart_by_color():
    one, two = Thing("square", "red", x=50, radius=24), Thing("square", "blue", x=92, radius=24)
    seen = checker.read(world.render(Scene("white", (one, two), "horizontal"))).things
    assert sorted(t.color for t in seen) == ["blue", "red"]


def test_an_empty_image_and_noise_satisfy_no_claim():
    caption = Caption("", (Claim("circle", "red"),), "black")
    for image in (np.full((128, 128, 3), 150, np.uint8), np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)):
        assert not checker.judge(checker.read(image), caption)["bound"]


def test_captions_are_true_varied_and_silent_about_accessories():
    rng = np.random.default_rng(9)
    facts, texts = ("shape", "color", "texture", "size", "position"), set()
    for _ in range(300):
        scene = world.random_scene(rng)
        caption, whole = world.random_caption(scene, rng), truth(scene)
        texts.add(caption.text)
        for claim in caption.claims:
            assert any(all(getattr(claim, f) in (None, getattr(t, f)) for f in facts) for t in whole.claims), caption.text
        assert not any(word in caption.text for word in ("eye", "hat", "moon", "teal"))
    assert len(texts) > 280


def test_scenes_and_images_follow_the_seed():
    one, again = (world.random_scene(np.random.default_rng(3)) for _ in range(2))
    assert one == again and np.array_equal(world.render(one), world.render(again))


def test_the_world_is_as_rich_as_promised():
    assert len(world.COLORS) >= 6 and len(world.SHAPES) >= 5 and len(world.BACKGROUNDS) >= 4
    assert len(world.TEXTURES) >= 3 and {"left", "right", "top", "bottom"} <= set(world.POSITIONS)


@pytest.mark.parametrize("shape", [*world.SHAPES, *world.STRANGERS])
def test_strangers_to_the_world_are_told_from_its_shapes(shape):
    for radius in (19, 26, 34):
        thing = world.Thing(shape, "red", x=60, y=66, radius=radius)
        (seen,) = checker.read(world.render(Scene("white", (thing,), "center"))).things
        found, overlap = any_shape(seen.mask)
        assert found == shape and overlap > 0.85
