import math

import pytest
import torch
from controlled_diffusion.guidance import multi_cfg
from controlled_diffusion.guidance.instruct_pix2pix import Conditions, Scales, around_the_image, channels, coefficients, excess
from controlled_diffusion.guidance.schedules import Constant, NoiseScale, Ramp, Schedule
from torch.testing import assert_close

from checks import draw, refused

SCALE = NoiseScale(tuple(10 * 0.9**i for i in range(50)))
CLOSE = dict(atol=1e-12, rtol=1e-12)
SCALES = [(7.5, 1.5), (3.0, 3.0), (7.5, 1.0), (1.0, 1.5), (0.0, 1.5), (7.5, 0.0), (-2.0, 4.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)]
ALL = ["nothing", "image", "edit"]
SEEN = {name: draw(2, 4, 8, 8, seed=i, dtype=torch.float64) for i, name in enumerate(ALL)}


def equation(nothing, image, edit, text_scale, image_scale):
    """Equation 3 of the paper."""
    return nothing + image_scale * (image - nothing) + text_scale * (edit - image)


def through_channels(base: str, made, sigma: float):
    """What the multi-channel guidance of the pack makes of channels whose conditionings are names of predictions."""
    terms = [multi_cfg.term(SEEN[c.conditioning] - SEEN[c.null or base], c.strength(sigma, SCALE)) for c in made]
    return multi_cfg.combine(SEEN[base], terms)


ROWS = [ALL, ["nothing", "edit"], ["image", "edit"], ALL, ["nothing", "image"], ALL, ALL, ["edit"], ["nothing"], ["image"]]


@pytest.mark.parametrize("scales, rows", [*zip(SCALES, ROWS), ((7.5 * 0.2, 1.5), ["nothing", "edit"])], ids=str)
def test_the_coefficients_are_those_of_the_equation(scales, rows):
    """And a prediction is needed only where it counts."""
    counts = coefficients(*scales)
    assert sum(counts.values()) == pytest.approx(1.0) and [name for name, count in counts.items() if count] == rows
    assert_close(sum(counts[name] * SEEN[name] for name in rows), equation(*SEEN.values(), *scales), **CLOSE)


@pytest.mark.parametrize("text, image", SCALES)
def test_both_arrangements_of_channels_are_the_equation(text, image):
    conditions, scales = Conditions(*ALL), Scales(text, image, Schedule(Ramp(2.0, 0.5)), Schedule(Ramp(0.0, 1.5)))
    for sigma in (8.0, 2.0, 0.3):
        expected = equation(*SEEN.values(), *scales.at(sigma, SCALE))
        assert_close(through_channels("nothing", channels(conditions, scales), sigma), expected, **CLOSE)
        assert_close(through_channels("image", around_the_image(conditions, scales), sigma), expected, **CLOSE)


def test_the_images_excess_is_nothing_at_all_at_scale_one():
    halved = Scales(image_scale=2.0, image_schedule=Schedule(Constant(0.5)))
    for scales, expected in ((Scales(image_scale=1.0), 0.0), (halved, 0.0), (Scales(image_scale=1.5), 0.5)):
        assert excess(Conditions(*ALL), scales).strength(1.0, SCALE) == expected


def test_a_schedule_multiplies_and_ends_its_scale():
    scales = Scales(6.0, 2.0, Schedule(Constant(0.5)), Schedule(end=0.5))
    assert scales.at(SCALE.sigma(0.25), SCALE) == (3.0, 2.0)
    assert scales.at(SCALE.sigma(0.75), SCALE) == (3.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused_by_its_name(value):
    refused(rf"text_scale is {value}; give a finite number, usually 5 to 10", Scales, text_scale=value)
    refused(rf"image_scale is {value}; give a finite number, usually 1 to 2", Scales, image_scale=value)
