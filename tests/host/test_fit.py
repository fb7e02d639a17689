"""An image whose sides the VAE cannot take: padded and cropped back, scaled, or refused."""

import folder_paths
import numpy as np
import pytest
import torch
from controlled_diffusion.nodes import MODULES
from controlled_diffusion.nodes.host.inversion.replay import mask_for
from controlled_diffusion.nodes.inputs.fit import FitInput

from checks import refused
from compare import assert_close
from demo.world import random_scene, render
from harness.good_inputs import Sockets, good, nodes, run

SIZE, PADDED, NEAREST = (67, 58), (72, 64), (64, 56)  # height and width
WITH_FIT = [n.__name__ for m in MODULES for n in m.NODES if any(isinstance(i, FitInput) for i in n.GET_SCHEMA().inputs)]
WITH_IMAGE = [
    n.__name__ for m in MODULES for n in m.NODES
    if not n.GET_SCHEMA().is_input_list and any({"IMAGE", "LATENT"} <= {*i.get_io_type().split(",")} for i in n.GET_SCHEMA().inputs)
]  # fmt: skip


@pytest.fixture(scope="module")
def sockets():
    return Sockets()


@pytest.fixture
def image():
    return torch.rand(1, *SIZE, 3, generator=torch.Generator().manual_seed(3))


def given_for(node_id: str, sockets, image, **more) -> dict:
    given = good(node_id, sockets)
    shown = {k: image for k in ("image", "guide", "original") if k in given}
    masks = {"mask": torch.ones(1, *SIZE)} if "mask" in given else {}
    return given | shown | masks | {"vae": sockets("VAE")} | more


def output(node_id: str, name: str, made: tuple):
    names = [o.display_name for o in nodes()[node_id].GET_SCHEMA().outputs]
    return made[names.index(name)]


def test_every_node_that_takes_an_image_or_a_latent_offers_it():
    assert set(WITH_FIT) == set(WITH_IMAGE)


@pytest.mark.parametrize("node_id", WITH_FIT)
def test_outputs_at_the_images_size_are_cropped_back(node_id, sockets, image):
    made = run(node_id, **given_for(node_id, sockets, image))
    (fit,) = (i for i in nodes()[node_id].GET_SCHEMA().inputs if isinstance(i, FitInput))
    for name in fit.shows:
        shown = output(node_id, name, made)
        size = shown.padding.before if name == "inversion" else tuple(shown.shape[1:3])
        assert size == SIZE


@pytest.mark.parametrize("node_id", WITH_FIT)
def test_refuse_says_which_size_fits(node_id, sockets, image):
    given = given_for(node_id, sockets, image, fit="refuse")
    refused(r"is 58 x 67 pixels, but this VAE takes multiples of 8 .* to 56 x 64\.", run, node_id, **given)


BY_HAND = {
    "pad": lambda planes: torch.nn.functional.pad(planes, (0, 6, 0, 5), mode="replicate"),
    "scale": lambda planes: torch.nn.functional.interpolate(planes, NEAREST, mode="bicubic").clamp(0, 1),
}


@pytest.mark.parametrize(("how", "size"), [("pad", PADDED), ("scale", NEAREST)])
def test_an_image_is_changed_as_by_hand(how, size, sockets, image):
    changed = BY_HAND[how](image.movedim(-1, 1)).movedim(1, -1)
    found = [run("DDIMInverter", **given_for("DDIMInverter", sockets, i, fit=how)) for i in (image, changed)]
    ours, by_hand = (output("DDIMInverter", "noisy_latent", made)["samples"] for made in found)
    assert [8 * n for n in ours.shape[-2:]] == list(size) and torch.equal(ours, by_hand)


def test_pixels_outside_the_mask_are_the_images_own(sockets, image):
    mask = torch.zeros(1, *SIZE)
    mask[:, :20, :20] = 1
    made = run("SDEditSampler", **given_for("SDEditSampler", sockets, image, mask=mask))
    shown = output("SDEditSampler", "image", made)
    assert torch.equal(shown[:, 32:, 32:], image[:, 32:, 32:]) and not torch.equal(shown[:, :16, :16], image[:, :16, :16])


def test_the_node_says_what_was_done(sockets, image):
    def text(node_id, **more):
        with torch.inference_mode():
            return nodes()[node_id].EXECUTE_NORMALIZED(**given_for(node_id, sockets, image, **more)).ui

    assert text("SDEditSampler")["text"][0].endswith("image padded from 58 x 67 to 64 x 72 pixels; image cropped back")
    assert text("DDIMInverter")["text"][0].endswith("padded from 58 x 67 to 64 x 72 pixels; Inversion Sampler's image cropped back")
    assert text("SDEditSampler", fit="scale")["text"][0].endswith("image scaled from 58 x 67 to 56 x 64 pixels")


def test_an_image_that_fits_is_left_alone(sockets):
    given = given_for("SDEditSampler", sockets, sockets("IMAGE")) | {"mask": sockets("MASK")}
    padded, plain = (output("SDEditSampler", "image", run("SDEditSampler", **given | {"fit": how})) for how in ("pad", "refuse"))
    assert torch.equal(padded, plain)


@pytest.fixture(scope="module")
def photo(sockets):
    """127 x 101 pixels of a scene that the VAE knows."""
    scene = torch.from_numpy(render(random_scene(np.random.default_rng(5))))[None].float() / 255
    return scene[:, :101, :127]


@torch.inference_mode()
def round_trip(vae, photo):
    padded = torch.nn.functional.pad(photo.movedim(-1, 1), (0, 1, 0, 3), mode="replicate").movedim(1, -1)
    return vae.decode(vae.encode(padded))[:, :101, :127]


@pytest.mark.parametrize("saved", [False, True])
def test_an_inversion_gives_an_image_of_its_own_size_back(saved, sockets, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    inversion = run("BDIAInverter", **given_for("BDIAInverter", sockets, photo, steps=4))[0]
    if saved:
        inversion = run("LoadInversion", model=sockets("MODEL"), name=run("SaveInversion", inversion=inversion, filename_prefix="a")[1])[0]
    image = run("InversionSampler", model=sockets("MODEL"), inversion=inversion, cfg=-1.0, branches="edit", vae=sockets("VAE"))[1]
    assert image.shape == photo.shape
    assert_close(image, round_trip(sockets("VAE"), photo), atol=1e-3, rtol=0)


@pytest.mark.parametrize("node_id", ["FlowEditLatentSampler", "SDEditSampler", "DiffEditSampler"])
def test_an_edit_has_the_images_size_and_its_pixels_outside_the_mask(node_id, sockets, photo):
    mask = torch.zeros(1, 101, 127)
    mask[:, 60:, 80:] = 1
    image = output(node_id, "image", run(node_id, **given_for(node_id, sockets, photo, mask=mask)))
    kept = mask == 0
    assert image.shape == photo.shape and torch.equal(image[kept], photo[kept]) and not torch.equal(image[~kept], photo[~kept])


def test_a_mask_of_the_image_is_where_it_was_in_the_inversion(sockets, photo):
    inversion = run("DDIMInverter", **given_for("DDIMInverter", sockets, photo))[0]
    mask = torch.zeros(1, 101, 127)
    mask[:, 96:, :8] = 1  # the last row of cells, which a scaled mask would reach into the one above
    assert mask_for(mask, inversion).nonzero().tolist() == [[0, 0, 12, 0]]
    assert torch.equal(mask_for(torch.ones(1, 104, 128), inversion), torch.ones(1, 1, 13, 16))
