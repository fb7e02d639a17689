"""The images of trainings: mirrored, changed and masked ones, encoded once."""

import pytest
import torch
from controlled_diffusion.nodes.host.training.images import images_of
from controlled_diffusion.nodes.host.training.run import Stopped
from controlled_diffusion.training.augmentation import Augmentation

from checks import refused
from compare import assert_close
from host.training import images, stopping_at

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.mark.parametrize("change", [dict(crop=0.3), dict(jitter=0.3)])
def test_variants_follow_their_images_and_differ(change, vae):
    plain, made = images_of(vae, [images(3)]), images_of(vae, [images(3)], augmentation=Augmentation(2, **change))
    assert len(made) == 9 and not made.hints and len({float(z.sum()) for z in made.latents}) == 9
    assert all(torch.equal(a, b) for a, b in zip(made.latents, plain.latents))


def test_an_alpha_channel_does_not_change_color_jitter(vae):
    given, jitter = images(3), Augmentation(2, jitter=0.3)
    found = [images_of(vae, [p], augmentation=jitter).latents for p in (given, torch.cat([given, torch.ones(3, 64, 64, 1)], -1))]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("size", "near"), [((75, 100), "96 x 72"), ((64, 65), "64 x 64"), ((1, 1), "8 x 8")])
def test_images_that_the_vae_would_crop_are_refused(size, near, vae):
    refused(rf"'images' is {size[1]} x {size[0]} pixels, .* multiples of 8 .* {near}\.", images_of, vae, [torch.rand(1, *size, 3)])


def test_mirrored_images_follow_the_others_with_their_masks(vae):
    given = images(3)
    made, plain = images_of(vae, [given], [given[..., 0]], flip=True), images_of(vae, [given])
    assert len(made) == 6 and made.originals == 3
    assert all(torch.equal(a, b) for a, b in zip(made.latents, plain.latents))
    assert_close(made.latents[4], vae.encode(given[1:2].flip(2)))
    assert_close(made.masks[4], made.masks[1].flip(-1))


def test_a_stop_while_images_are_encoded_is_passed_on(vae):
    with stopping_at(1, 3), pytest.raises(Stopped):
        images_of(vae, [images(3)])
