"""The edits, lessons and images that measure the illustrated model say and show what they should; none needs its weights."""

import numpy as np
import pytest
from controlled_diffusion.training.demo.illustrated_drawings import drawing
from controlled_diffusion.training.demo.illustrated_reader import Reading, Seen

import edits_image
from demo.illustrated_world import ILLUSTRATED
from harness.demo_images import Studio
from measures import illustrated_edits, illustrated_training
from measures.prompt_to_prompt import Caption, Edit, drawn

SIZE = ILLUSTRATED.size


def perfect(scene) -> Reading:
    """What a reader without faults sees."""
    masks = ILLUSTRATED.masks(scene)
    return Reading(scene.ground, scene.style, tuple(Seen(t.name, t.color or "red", t.place, m, 1.0) for t, m in zip(scene.things, masks)))


def test_kinds_of_edits_take_turns_and_stay_when_there_are_more():
    few, more = illustrated_edits.changes(2), illustrated_edits.changes(3)
    assert [change.kind for change in more] == 3 * list(illustrated_edits.KINDS) and more[:8] == few


def test_captions_differ_in_what_changes_alone():
    for change in illustrated_edits.changes(6):
        one, other = ({*text.replace(",", "").split()} - {"a", "an"} for text in change.texts)
        assert one != other
        if change.kind == "color":
            assert len(one ^ other) <= 2
        for scene, words in ((change.before, one), (change.after, other)):
            assert all({*thing.name.split()} <= words for thing in scene.things)


def test_perfect_edits_are_right_and_sources_wrong():
    for change in illustrated_edits.changes(6):
        assert ILLUSTRATED.matches(perfect(change.after), change.after) and not ILLUSTRATED.matches(perfect(change.before), change.after)


def test_the_rest_is_off_the_changed_thing_or_on_things_that_stay():
    for change in illustrated_edits.changes(6):
        rest = illustrated_edits.staying(change, perfect(change.before), perfect(change.after), SIZE)
        masks = [ILLUSTRATED.masks(scene) for scene in (change.before, change.after)]
        if change.kind == "style":
            assert not rest.any()
        elif change.kind == "ground":
            assert rest.any() and not (rest & ~np.logical_or.reduce(masks[0])).any()
        else:
            assert rest.mean() > 0.5 and not any((rest & mask[change.which]).any() for mask in masks)


@pytest.mark.parametrize("what", illustrated_training.CONCEPTS)
def test_lessons_say_the_word_in_every_caption(what):
    concept = illustrated_training.CONCEPTS[what]
    images, captions = concept.lesson("<new>", 3)
    assert images.shape == (concept.images, SIZE, SIZE, 3) and len(captions) == concept.images
    for i, several in enumerate(captions):
        texts, scene = several.split(" | "), concept.scene(illustrated_training.LESSON, i)
        assert len(texts) == 3 and all(text.count("<new>") == 1 and "whale" not in text for text in texts)
        assert drawing(scene.things[0].name, scene.things[0].drawing)


@pytest.mark.parametrize("what", illustrated_training.CONCEPTS)
def test_every_second_example_shows_what_is_new(what):
    concept = illustrated_training.CONCEPTS[what]
    images, shown = concept.examples(1, 8)
    assert len(images) == 8 and shown.tolist() == 4 * [True, False]
    for i in range(20):
        base, rng = illustrated_training.plain(1, i), np.random.default_rng(i)
        new, old = concept.shown(base, rng).things[0], concept.absent(base, rng).things[0]
        assert (new.name, new.drawing) != (old.name, old.drawing) and drawing(old.name, old.drawing)
        assert (new.x, new.span) == (old.x, old.span)


def test_every_version_of_the_image_changes_its_prompt():
    changed = [version.target != edits_image.SOURCE for version in edits_image.VERSIONS]
    assert len(changed) == 6 and all(changed)


def test_the_image_shows_source_and_versions():
    images = [np.full((192, 192, 3), 30 * i, np.uint8) for i in range(7)]
    paper = np.asarray(edits_image.composed(images, [str(i) for i in range(7)]))
    shades = [int((paper == 30 * i).all(-1).sum()) for i in range(7)]
    assert shades[0] > 4 * 192**2 and all(count >= 192**2 for count in shades[1:])


@pytest.mark.usefixtures("inference_mode")
def test_prompt_to_prompt_draws_at_the_side_of_the_studio():
    studio = Studio(side=8)
    images = drawn(studio, 0, "a red circle", [Edit(Caption("a blue circle"))])
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
