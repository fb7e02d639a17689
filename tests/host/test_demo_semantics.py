"""Each technique must do its job on the demo model, by a number, against the plain alternative."""

import pytest

from harness.demo_pictures import Studio
from measures import multi_cfg, sdedit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio():
    return Studio()


def test_a_negative_channel_takes_a_colour_away(studio):
    alone, guided = multi_cfg.negative_channel(studio, 64)
    assert alone >= 0.08 and guided < 0.05


def test_masked_channels_put_both_things_in_their_places(studio):
    single, guided = multi_cfg.masked_channels(studio, 32)
    assert guided >= 0.9 and guided >= single


def test_more_strength_is_more_real_and_less_faithful(studio):
    (faithful_low, real_low), (faithful_high, real_high) = (sdedit.trade_off(studio, 32, s) for s in (0.3, 0.9))
    assert faithful_low > faithful_high + 0.1
    assert real_high > real_low + 0.2


def test_a_stroke_painting_becomes_a_scene_that_the_checker_accepts(studio):
    faithful, real = sdedit.trade_off(studio, 32, 0.7)
    assert faithful >= 0.8 and real >= 0.6
