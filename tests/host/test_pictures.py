import numpy as np
import pytest
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.host.pictures import line_chart, weights_picture

from host.sampling import sigmas_of

pytestmark = pytest.mark.usefixtures("inference_mode")
CHANNELS = [Channel(None, 4.0, schedule=Schedule(Ramp(1.0, 0.0))), Channel(None, 2.0, negative=True)]


@pytest.mark.parametrize("steps", [None, 0, 1, 8])
def test_weights_are_drawn_over_percents_or_over_the_steps(any_model, steps):
    sigmas = None if steps is None else sigmas_of(any_model, steps) if steps else torch.FloatTensor([])
    picture = weights_picture(any_model, CHANNELS, sigmas)
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3
    assert picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.01


def test_a_line_goes_through_its_points_and_equal_lines_are_both_seen():
    line = [(0, 0.0), (1, 1.0)]
    chart = np.asarray(line_chart({"one": line, "two": line}, "", ""), np.int32)
    first, second = (np.abs(chart - np.array(c)).sum(-1) < 30 for c in ((45, 108, 223), (212, 58, 47)))
    assert first[100:300, 100:600].sum() > 100 and second[100:300, 100:600].sum() > 100
