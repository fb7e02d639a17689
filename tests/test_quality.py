"""PSNR, SSIM and the largest error, against their definitions written out."""

import math

import pytest
import torch
from controlled_diffusion.inversion.quality import largest_error, psnr, ssim
from torch.testing import assert_close

from checks import refused


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def slow_ssim(a, b) -> float:
    """SSIM of two images (H, W) by its definition: weights, means and variances of one window after another."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    found = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            near = [(weights[i][j] / total, float(a[top + i, left + j]), float(b[top + i, left + j])) for i in range(11) for j in range(11)]
            x, y = sum(w * p for w, p, _ in near), sum(w * q for w, _, q in near)
            spread_x, spread_y = sum(w * (p - x) ** 2 for w, p, _ in near), sum(w * (q - y) ** 2 for w, _, q in near)
            common = sum(w * (p - x) * (q - y) for w, p, q in near)
            found.append((2 * x * y + 0.01**2) * (2 * common + 0.03**2) / ((x * x + y * y + 0.01**2) * (spread_x + spread_y + 0.03**2)))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    "other", [lambda a: draw(*a.shape, seed=1), lambda a: (a + 0.1).clamp(max=1), lambda a: 1 - a, lambda a: a.round()]
)
def test_ssim_is_its_definition_written_out(other):
    a = draw(1, 14, 17, 3)
    b = other(a)
    slow = sum(slow_ssim(a[0, ..., c], b[0, ..., c]) for c in range(3)) / 3
    assert float(ssim(a, b)) == pytest.approx(slow, abs=1e-9)


def test_ssim_is_scikit_images(tmp_path):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = draw(1, 40, 32, 3), (draw(1, 40, 32, 3) + draw(1, 40, 32, 3, seed=1)) / 2
    images = a[0].double().numpy(), b[0].double().numpy()
    gauss = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    wanted = metrics.structural_similarity(*images, **gauss, data_range=1.0, channel_axis=-1)
    assert float(ssim(a, b)) == pytest.approx(wanted, abs=1e-9)


def test_ssim_of_two_flat_images_is_the_luminance_term_alone():
    a, b = torch.full((1, 16, 16, 1), 0.25), torch.full((1, 16, 16, 1), 0.75)
    assert float(ssim(a, b)) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-9)


def test_equal_images_are_as_near_as_can_be():
    a = draw(2, 16, 16, 3)
    assert_close(ssim(a, a.clone()), torch.ones(2, dtype=torch.float64))
    assert psnr(a, a.clone()).tolist() == [math.inf, math.inf] and largest_error(a, a.clone()).tolist() == [0, 0]


def test_psnr_of_a_constant_error():
    a = torch.full((2, 16, 16, 3), 0.5)
    b = a + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert_close(psnr(a, b), torch.tensor([20.0, 40.0], dtype=torch.float64), atol=1e-4, rtol=0)


def test_the_largest_error_is_of_one_value_of_the_own_image():
    a, b = torch.zeros(3, 16, 16, 3), torch.zeros(3, 16, 16, 3)
    b[1, 3, 4, 2], b[2, 7, 9, 0] = -0.25, 0.5
    assert largest_error(a, b).tolist() == [0, 0.25, 0.5]


@pytest.mark.parametrize("measure", [psnr, ssim, largest_error])
def test_an_image_of_a_batch_is_measured_as_alone(measure):
    a, b = draw(3, 16, 20, 3), draw(3, 16, 20, 3, seed=1)
    assert_close(measure(a, b), torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(3)]))


def test_images_that_cannot_be_compared_are_refused():
    for measure in (psnr, ssim, largest_error):
        told = r"\(1, 16, 16, 3\) and \(1, 16, 17, 3\).* cannot be compared"
        refused(told, measure, draw(1, 16, 16, 3), draw(1, 16, 17, 3))
    refused("at least 11 x 11 pixels, got 10 x 16", ssim, draw(1, 10, 16, 3), draw(1, 10, 16, 3))
