import numpy as np
import pytest
import torch
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.host.guidance.guidance_report import weights_image
from controlled_diffusion.nodes.host.images import image_grid, line_chart, read
from PIL import Image

from host.sampling import sigmas_of

pytestmark = pytest.mark.usefixtures("inference_mode")
CHANNELS = [Channel(None, 4.0, schedule=Schedule(Ramp(1.0, 0.0))), Channel(None, 2.0, negative=True)]


@pytest.mark.parametrize("steps", [None, 0, 1, 8])
def test_weights_are_drawn_over_percents_or_over_the_steps(any_model, steps):
    sigmas = None if steps is None else sigmas_of(any_model, steps) if steps else torch.FloatTensor([])
    image = weights_image(any_model, CHANNELS, sigmas)
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.01


def test_the_interval_and_zero_init_are_drawn_too(eps_model):
    def drawn(**rules):
        return weights_image(eps_model, CHANNELS, None, Rules(**rules))

    plain, both = drawn(), [drawn(interval=Schedule(start=0.4, end=0.5)), drawn(zero_init_percent=0.3)]
    assert torch.equal(plain, weights_image(eps_model, CHANNELS, None)) and not any(torch.equal(plain, p) for p in both)


BLUE, RED = (45, 108, 223), (212, 58, 47)  # of the first line and of the second


def pixels(color, **lines):
    """Where a chart of lines has a color."""
    return np.abs(np.asarray(line_chart(lines, "", ""), np.int32) - np.array(color)).sum(-1) < 30


def test_lines_of_one_point_and_equal_lines_are_seen():
    assert pixels(BLUE, one=[(0, 1.0)], two=[(0, 0.5), (2, 0.5)])[:, :200].sum() > 20
    line = [(0, 0.0), (1, 1.0)]
    assert all(pixels(color, one=line, two=line)[100:300, 100:600].sum() > 100 for color in (BLUE, RED))


def test_files_are_read_as_viewers_show_them(tmp_path):
    """Photos as their camera was held, and 16-bit gray without a white image."""
    turned, gray = tmp_path / "turned.jpg", tmp_path / "gray.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8)).save(turned, exif=exif)
    assert read(turned).shape == (1, 16, 8, 3)
    Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)).save(gray)
    assert torch.equal(read(gray), torch.full((1, 2, 2, 3), 100 / 255))


def test_a_grid_shows_images_names_and_captions_in_their_places():
    red, blue = (Image.new("RGB", (40, 20), color) for color in ("#ff0000", "#0000ff"))
    grid = image_grid([[red, blue], [blue, red]], ["one", "two"], ["a", "b"], [[["below"], []], [[], []]], left=30, top=24, gap=4, below=24)
    assert grid.size == (30 + 2 * 44, 24 + 2 * 44)
    assert [grid.getpixel(p) for p in ((30, 24), (74, 24), (30, 68), (74, 68))] == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]
    dark = np.asarray(grid.convert("L")) < 100
    assert dark[:24, 30:70].any() and dark[:24, 74:114].any() and dark[24:44, :30].any() and dark[68:88, :30].any()
    assert dark[44:68, 30:70].any() and not dark[44:68, 74:114].any()
