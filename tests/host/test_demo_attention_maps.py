"""Attention maps on the demo model: the map of a word lies over the thing it names."""

import numpy as np
import pytest

from harness.demo_images import Studio
from measures import attention_maps as measure


@pytest.mark.usefixtures("inference_mode")
def test_the_mask_of_a_word_lies_over_its_thing_alone():
    for kind, values in measure.measured(Studio(), 2).items():
        own, other, moved = np.mean(values, 0)
        assert len(values) >= 4 and own >= 0.5, (kind, own)
        assert other <= 0.1 and own >= moved + 0.3, (kind, other, moved)
