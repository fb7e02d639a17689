import math

import pytest
import torch
from controlled_diffusion.guidance import multi_cfg
from controlled_diffusion.guidance.instruct_pix2pix import (
    Conditions,
    Scales,
    around_the_image,
    channels,
    coefficients,
    excess,
)
from controlled_diffusion.guidance.schedules import Constant, NoiseScale, Ramp, Schedule
from torch.testing import assert_close

SCALE = NoiseScale(tuple(10 * 0.9**i for i in range(50)))
CLOSE = dict(atol=1e-12, rtol=1e-12)
SCALES = [(7.5, 1.5), (3.0, 3.0), (7.5, 1.0), (1.0, 1.5), (0.0, 1.5), (7.5, 0.0), (-2.0, 4.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)]


def predictions():
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 4, 8, 8, generator=draw, dtype=torch.float64) for name in ("nothing", "image", "edit")}


def equation(nothing, image, edit, text_scale, image_scale):
    """Equation 3 of the paper."""
    return nothing + image_scale * (image - nothing) + text_scale * (edit - image)


def through_channels(base: str, made, sigma: float, seen: dict):
    """What the multi-channel guidance of the pack makes of channels whose conditionings are names of predictions."""
    terms = [multi_cfg.term(seen[c.conditioning] - seen[c.null or base], c.strength(sigma, SCALE)) for c in made]
    return multi_cfg.combine(seen[base], terms)


@pytest.mark.parametrize("text, image", SCALES)
def test_the_coefficients_are_those_of_the_equation(text, image):
    seen = predictions()
    counts = coefficients(text, image)
    assert sum(counts.values()) == pytest.approx(1.0)
    assert_close(sum(counts[name] * seen[name] for name in seen), equation(**seen, text_scale=text, image_scale=image), **CLOSE)


@pytest.mark.parametrize(
    "text, image, rows",
    [
        (7.5, 1.5, ["nothing", "image", "edit"]),
        (1.0, 1.5, ["nothing", "image", "edit"]),
        (7.5, 0.0, ["nothing", "image", "edit"]),
        (3.0, 3.0, ["nothing", "edit"]),
        (7.5, 1.0, ["image", "edit"]),
        (0.0, 1.5, ["nothing", "image"]),
        (1.0, 1.0, ["edit"]),
        (0.0, 1.0, ["image"]),
        (0.0, 0.0, ["nothing"]),
        (7.5 * 0.2, 1.5, ["nothing", "edit"]),
    ],
)
def test_a_prediction_is_needed_only_where_it_counts(text, image, rows):
    counts, seen = coefficients(text, image), predictions()
    assert [name for name, count in counts.items() if count] == rows
    full = equation(**seen, text_scale=text, image_scale=image)
    assert_close(sum(counts[name] * seen[name] for name in rows), full, **CLOSE)


@pytest.mark.parametrize("text, image", SCALES)
def test_both_arrangements_of_channels_are_the_equation(text, image):
    seen, conditions = predictions(), Conditions("nothing", "image", "edit")
    scales = Scales(text, image, Schedule(Ramp(2.0, 0.5)), Schedule(Ramp(0.0, 1.5)))
    for sigma in (8.0, 2.0, 0.3):
        now = dict(zip(("text_scale", "image_scale"), scales.at(sigma, SCALE)))
        expected = equation(**seen, **now)
        assert_close(through_channels("nothing", channels(conditions, scales), sigma, seen), expected, **CLOSE)
        assert_close(through_channels("image", around_the_image(conditions, scales), sigma, seen), expected, **CLOSE)


def test_the_images_excess_is_nothing_at_all_at_scale_one():
    conditions = Conditions("nothing", "image", "edit")
    assert excess(conditions, Scales(image_scale=1.0)).strength(1.0, SCALE) == 0.0
    halved = excess(conditions, Scales(image_scale=2.0, image_schedule=Schedule(Constant(0.5))))
    assert halved.strength(1.0, SCALE) == 0.0
    assert excess(conditions, Scales(image_scale=1.5)).strength(1.0, SCALE) == 0.5


def test_a_schedule_multiplies_and_ends_its_scale():
    scales = Scales(6.0, 2.0, Schedule(Constant(0.5)), Schedule(end=0.5))
    assert scales.at(SCALE.sigma(0.25), SCALE) == (3.0, 2.0)
    assert scales.at(SCALE.sigma(0.75), SCALE) == (3.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused_by_its_name(value):
    with pytest.raises(ValueError, match=rf"text_scale is {value}; give a finite number, usually 5 to 10"):
        Scales(text_scale=value)
    with pytest.raises(ValueError, match=rf"image_scale is {value}; give a finite number, usually 1 to 2"):
        Scales(image_scale=value)
