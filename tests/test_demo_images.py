"""Images of the demo worlds without a model: new to the models, told truly by captions and masks, the same again for the same seed."""

import numpy as np
import pytest
from controlled_diffusion.training.demo import checker, illustrated_captions, images
from controlled_diffusion.training.demo.illustrated_drawings import SHEET, THINGS, UNSEEN
from controlled_diffusion.training.demo.illustrated_scenes import CARTOONS

each_kind = pytest.mark.parametrize("kind", images.KINDS)


def ground_of(caption: str) -> str:
    return next(ground for ground, words in illustrated_captions.GROUND_WORDS.items() if words[0] in caption)


@each_kind
def test_an_image_is_the_same_in_any_count(kind):
    few, many = images.images_of(kind, 2, 5), images.images_of(kind, 6, 5)
    assert len(many) == (6 if kind in images.VARIED else 1)
    for one, other in zip(few, many):
        assert one[1] == other[1] and np.array_equal(one[0], other[0]) and np.array_equal(one[2], other[2])


@pytest.mark.parametrize("kind", images.VARIED)
def test_other_seeds_give_other_images(kind):
    assert not any(np.array_equal(one[0], other[0]) for one, other in zip(images.images_of(kind, 3, 1), images.images_of(kind, 3, 2)))


@each_kind
def test_masks_hold_the_things_alone(kind):
    for image, _, mask in images.images_of(kind, 6, 0):
        assert image.dtype == np.uint8 and mask.dtype == bool and image.shape == (*mask.shape, 3)
        assert 0.02 < mask.mean() < 0.5


@pytest.mark.parametrize("name", ["whale", "rocket"])
def test_unseen_things_are_new_and_on_every_ground(name):
    assert name in UNSEEN and name not in THINGS
    captions = [caption for _, caption, _ in images.images_of(f"a {name}", 10, 0)]
    assert {ground_of(caption) for caption in captions} == {*illustrated_captions.GROUND_WORDS}
    assert all(caption.startswith(f"a {name} ") for caption in captions)


@pytest.mark.parametrize("name", ["whale", "rocket"])
def test_a_seed_shows_one_certain_drawing(name, monkeypatch):
    drawn, scene_of = [], images.scene_of
    monkeypatch.setattr(images, "scene_of", lambda *given: drawn.append(given[-1]) or scene_of(*given))
    for seed in range(8):
        images.images_of(f"a {name}", 4, seed)
    assert all(len({*drawn[i : i + 4]}) == 1 for i in range(0, 32, 4)) and {*drawn} == {*CARTOONS}


def test_outlined_drawings_are_used_by_no_scene():
    assert "streamline" not in CARTOONS
    captions = [caption for _, caption, _ in images.images_of("an outlined style", 10, 0)]
    assert len({*captions}) == 10 and all(caption.endswith(", outlined style") for caption in captions)
    assert all(any(f" {thing} " in caption for thing in THINGS) for caption in captions)


def test_two_squares_are_what_their_caption_says():
    ((image, caption, mask),) = images.images_of("two squares", 3, 0)
    reading = checker.read(image)
    assert all(checker.judge(reading, checker.caption_of(caption)).values())
    assert {thing.color: thing.position for thing in reading.things} == {"red": "left", "blue": "right"}
    assert np.logical_xor(mask, np.logical_or(*(thing.mask for thing in reading.things))).sum() <= 8, "but for the corners"


def test_the_drawings_are_in_the_published_pack():
    assert "tests" not in SHEET.parts[len(SHEET.parents[3].parts) :] and SHEET.with_name("LICENSES.md").is_file()
