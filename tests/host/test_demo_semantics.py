"""Each technique must do its job on the demo model, by a number, against the plain alternative."""

import numpy as np
import pytest

from demo import illustrated_reader, illustrated_studio, worlds
from demo.illustrated_world import ILLUSTRATED
from demo.shapes_world import SHAPES
from harness.demo_images import Studio
from measures import classifier, controlnet, diffedit, image_guidance, ip_adapter, multi_cfg, sdedit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio():
    return Studio()


def test_the_illustrated_model_draws_what_it_is_told():
    captions = illustrated_studio.held_out(8)
    readings = ILLUSTRATED.read(worlds.studio(ILLUSTRATED).draw([caption.text for caption in captions], seed=illustrated_studio.NOISE_SEED))
    claims = [holds for reading, caption in zip(readings, captions) for holds in illustrated_reader.judge(reading, caption).values()]
    assert len(claims) >= 30 and np.mean(claims) >= 0.85


def test_a_negative_channel_takes_a_color_away(studio):
    alone, guided = multi_cfg.negative_channel(studio, 6, seed=1012)
    assert guided == 0 and alone >= 0.3


def test_a_masked_negative_beats_ksamplers_negative(studio):
    """A color that spreads from one thing to the other; the negative of weight 3 is KSampler's at cfg 4."""
    ours, plain = (multi_cfg.against_spread(studio, 8, **multi_cfg.NEGATIVES[name]) for name in (multi_cfg.MASKED, multi_cfg.PLAIN))
    assert ours[multi_cfg.REMAINS] < plain[multi_cfg.REMAINS] and ours[multi_cfg.WELL] > plain[multi_cfg.WELL]
    assert all(ours[flag] >= 0.85 for flag in ("the left thing is right", "the background is right"))


def test_masked_channels_put_both_things_in_their_places(studio):
    _, guided = multi_cfg.regions_and_prompt(studio, 6)
    assert guided >= 0.8


def test_a_stroke_painting_becomes_a_real_scene(studio):
    faithful, real, _ = sdedit.trade_off(studio, 6, 0.5)
    assert faithful >= 0.8 and real >= 0.8


def test_more_strength_is_less_faithful(studio):
    low, high = (sdedit.trade_off(studio, 4, s)[0] for s in (0.4, 1.0))
    assert low > high


def test_a_classifier_draws_its_labels_without_a_prompt(studio):
    labels, bench = {"color": ("red", "blue"), "shape": ("square", "cross")}, classifier.Bench(SHAPES, studio)
    chance, guided = (np.mean([*bench.success(labels, scale, 2)[0].values()]) for scale in (0.0, 64.0))
    assert guided >= 0.85 and guided > chance + 0.4


def test_a_structure_channel_holds_the_silhouette_alone(studio):
    bench = controlnet.Bench(SHAPES, studio)
    overlap, color = bench.trade_off(4, 1.0)
    assert overlap >= 0.8 and color >= 0.95 and overlap > bench.trade_off(4, 0.0)[0] + 0.3


def test_a_structure_of_higher_priority_wins_over_text(studio):
    added, projected = (controlnet.Bench(SHAPES, studio).conflict(2, rule) for rule in ("sum", "project"))
    assert projected > added + 0.5


def test_a_reference_image_lends_its_layout_without_a_prompt(studio):
    without, guided = image_guidance.distances(studio, "layout", 4.0, 1)
    assert guided < 0.5 * without


def test_an_ip_adapter_image_lends_color_and_shape(studio):
    bench = ip_adapter.Bench(SHAPES, studio)
    without, shown = (bench.shares(bench.patched, weight, 4)["color and shape"] for weight in (0.0, 1.0))
    assert shown >= 0.7 and without <= 0.2


def test_diffedit_finds_and_changes_only_what_differs(studio):
    changes = [diffedit.change(i) for i in range(4)]
    found = diffedit.masks(studio, changes)
    ours, plain = (np.mean(diffedit.overlap(m, changes)) for m in (found, diffedit.sampled_difference(studio, changes)))
    assert ours >= 0.75 and ours > plain + 0.02
    done, kept = diffedit.edits(studio, changes, found)
    assert np.mean(done) >= 0.8 and all(kept)
