"""Guidance by a loss on the predicted image: exact answers, and distances that mean what they say."""

import pytest
import torch
from controlled_diffusion.guidance import image_guidance as guidance
from controlled_diffusion.guidance.image_guidance import DISTANCES, ImageGradient, color_distance, layout_distance
from controlled_diffusion.guidance.schedules import NoiseScale
from torch.testing import assert_close

from checks import draw

VP = NoiseScale(tuple(14.6 * (0.03 / 14.6) ** (i / 100) for i in range(101)))
FLOW = NoiseScale(tuple(1 - 0.999 * i / 100 for i in range(101)), True)


@pytest.mark.parametrize("scale", [VP, FLOW], ids=["eps", "flow"])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_the_cheap_form_is_exact_for_unit_variance(scale, sigma):
    def loss(latents):
        return (latents - 0.5).square().mean((1, 2, 3)) + latents.sin().mean((1, 2, 3))

    def posterior_mean(x):
        """E[x0 | x] of data N(0, 1)."""
        a = 1 - sigma if scale.flow else 1.0
        return a * x / (a**2 + sigma**2)

    x, leaf = (draw(3, 4, 6, 6, dtype=torch.float64).requires_grad_(leaf) for leaf in (False, True))
    cheap = ImageGradient(loss)(x, sigma, posterior_mean(x), scale)
    exact = ImageGradient(loss, through_denoiser=True)(leaf, sigma, posterior_mean(leaf), scale)
    assert_close(cheap, exact, rtol=1e-9, atol=1e-12)
    assert float(exact.abs().max()) > 1e-3


def test_the_weight_means_the_same_at_every_size_and_batch():
    def moved(size, batch=0):
        zeros = torch.zeros(3, 4, size, size)
        return ImageGradient(lambda z: (z - 1).square().mean((1, 2, 3)), batch=batch)(zeros, 1.0, zeros, VP)

    assert_close(moved(8)[:, :, :1, :1], moved(32)[:, :, :1, :1])
    assert_close(moved(8, batch=2), moved(8))


@pytest.mark.parametrize("through", [False, True], ids=["cheap", "through the denoiser"])
def test_a_video_is_read_a_part_of_its_frames_at_a_time(through):
    z, seen = draw(2, 4, 3, 8, 8, seed=4).requires_grad_(through), []
    denoised = 0.5 * z if through else z

    def moved(batch):
        gradient = ImageGradient(lambda p: seen.append(len(p)) or (p - 1).square().mean((1, 2, 3)), through, batch=batch)
        return gradient(z, 1.0, 0.5 * z if through else z, VP)

    assert_close(moved(2), moved(0))
    assert seen == [2, 2, 2, 6]
    assert_close(moved(0), 64 / 3 * 2 * (1 - denoised) / (4 * 64) * 0.5)


def test_it_moves_towards_less_loss():
    z, loss = draw(2, 4, 8, 8, seed=1), lambda latents: (latents - 0.3).square().mean((1, 2, 3))
    assert (loss(z + 0.1 * ImageGradient(loss)(z, 1.0, z, VP)) < loss(z)).all()


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_0_from_the_image_itself_only(kind):
    a, b = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert float(DISTANCES[kind](a, a)) < 1e-9 and float(DISTANCES[kind](a, 0.5 * b)) > 1e-3


def test_each_distance_sees_what_it_names():
    left = torch.zeros(1, 3, 32, 32)
    left[:, 0, :, :16] = 1.0
    right, green = left.flip(3), left[:, [1, 0, 2]]
    assert float(color_distance(left, right)) < 1e-9 < float(color_distance(left, green))
    assert float(layout_distance(left, right)) > 0.1 and float(layout_distance(left, green)) > 0.1
    gray = (left * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True).expand(-1, 3, -1, -1)
    assert float(guidance.brightness_distance(left, gray)) < 1e-9 < float(guidance.brightness_distance(left, right))
    assert float(layout_distance(left, torch.nn.functional.interpolate(left, scale_factor=2.0))) < 1e-9


def test_embeddings_are_compared_by_angle():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert_close(guidance.embedding_distance(a, torch.tensor([[3.0, 0.0]])), torch.tensor([0.0, 1.0]))


def test_colors_of_one_mean_differ_in_their_spread():
    checks, gray = torch.tensor([0.2, 0.8]).repeat(1, 3, 8, 4), torch.full((1, 3, 8, 8), 0.5)
    assert float(color_distance(checks, gray)) == pytest.approx(3 * 0.3**2, rel=0.05)
