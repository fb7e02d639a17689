"""The images of trainings: mirrored, changed and masked ones, encoded once."""

import pytest
import torch
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.host.training.images import images_of
from controlled_diffusion.nodes.host.training.run import Stopped
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.settings import Data

from checks import refused
from compare import assert_close
from host.training import images, stopping_at

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.mark.parametrize("change", [dict(crop=0.3), dict(jitter=0.3)])
def test_variants_follow_their_images_and_differ(change, vae):
    plain, made = images_of(vae, Data([images(3)])), images_of(vae, Data([images(3)], augmentation=Augmentation(2, **change)))
    assert len(made) == 9 and not made.hints and len({float(z.sum()) for z in made.latents}) == 9
    assert all(torch.equal(a, b) for a, b in zip(made.latents, plain.latents))


def test_an_alpha_channel_does_not_change_color_jitter(vae):
    given, jitter = images(3), Augmentation(2, jitter=0.3)
    found = [images_of(vae, Data([p], augmentation=jitter)).latents for p in (given, torch.cat([given, torch.ones(3, 64, 64, 1)], -1))]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("size", "near"), [((75, 100), "96 x 72"), ((64, 65), "64 x 64"), ((1, 1), "8 x 8")])
def test_images_that_the_vae_would_crop_are_refused(size, near, vae):
    data = Data([torch.rand(1, *size, 3)], fit="refuse")
    refused(rf"'images' is {size[1]} x {size[0]} pixels, .* multiples of 8 .* {near}\.", images_of, vae, data)


@pytest.mark.parametrize("painted", [False, True])
def test_padded_edges_are_not_trained(painted, vae):
    given = torch.rand(1, 60, 68, 3)
    data = Data([given], masks=[torch.ones(1, 60, 68)] if painted else [])
    with progress.node_text() as text:
        made = images_of(vae, data)
    assert_close(made.latents[0], vae.encode(torch.nn.functional.pad(given.movedim(-1, 1), (0, 4, 0, 4), mode="replicate").movedim(1, -1)))
    assert made.masks[0].shape == (1, 1, 8, 9) and bool((made.masks[0][..., :7, :8] == 1).all())
    assert made.masks[0][0, 0, 7].tolist() == [0.5] * 8 + [0.25]
    assert text.lines == ["fit 'pad' changed 1 of 1 images, the first from 68 x 60 to 72 x 64 pixels"]


def test_an_image_can_be_scaled_instead_beside_one_that_fits(vae):
    made = images_of(vae, Data([torch.rand(1, 60, 67, 3), images(1)], fit="scale"))
    assert [tuple(z.shape[-2:]) for z in made.latents] == [(8, 8), (8, 8)] and made.masks == (None, None)


def test_mirrored_images_follow_the_others_with_their_masks(vae):
    given = images(3)
    made, plain = images_of(vae, Data([given], masks=[given[..., 0]], flip=True)), images_of(vae, Data([given]))
    assert len(made) == 6 and made.originals == 3
    assert all(torch.equal(a, b) for a, b in zip(made.latents, plain.latents))
    assert_close(made.latents[4], vae.encode(given[1:2].flip(2)))
    assert_close(made.masks[4], made.masks[1].flip(-1))


def test_a_stop_while_images_are_encoded_is_passed_on(vae):
    with stopping_at(1, 3), pytest.raises(Stopped):
        images_of(vae, Data([images(3)]))
