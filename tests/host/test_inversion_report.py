"""Inversion Report: the right numbers on the right images."""

from dataclasses import replace

import pytest
import torch
from controlled_diffusion.inversion import quality
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.inversion import invert as inverting
from controlled_diffusion.nodes.host.inversion import lpips
from controlled_diffusion.nodes.host.inversion.inversion_report import Report
from controlled_diffusion.nodes.inversion_report import InversionReport

from compare import assert_close
from host import tiny
from host.video import tiny_video_vae

pytestmark = pytest.mark.usefixtures("inference_mode")


def draw(batch: int = 1, height: int = 64, width: int = 64, channels: int = 3, seed: int = 0):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def report(reference, **inputs):
    return InversionReport.execute(reference, **inputs).args


@pytest.fixture(scope="module")
def inversion():
    with torch.inference_mode():
        latent = {"samples": torch.randn(2, 4, 8, 8)}
        model = tiny.unet("eps", output_scale=0.05)
        return inverting.invert(model, None, latent, tiny.conditioning(1), DDIM(), noise_levels.levels(model, "normal", 5, 0.0))


def test_the_text_holds_the_numbers_of_each_image_and_their_mean():
    reference, made = draw(2), draw(2)
    made[0] = (made[0] + 0.1).clamp(max=1)
    made[1] = made[1].round()
    text = report(reference, reconstruction=made)[1].splitlines()
    numbers = [quality.psnr(made, reference), quality.ssim(made, reference), quality.largest_error(made, reference)]

    def row(pick):
        return "PSNR {:.2f} dB, SSIM {:.4f}, max error {:.3f}".format(*(float(pick(n)) for n in numbers))

    assert text[0] == f"reconstruction, mean of 2: {row(torch.mean)}"
    assert text[1:] == [f"  image {i + 1}: {row(lambda n, i=i: n[i])}" for i in range(2)]
    equal = InversionReport.execute(reference[:1], reconstruction=reference[:1].clone(), edit=draw(seed=1))
    told = equal.args[1].splitlines()
    assert told[0] == "reconstruction: PSNR equal, SSIM 1.0000, max error 0.000" and told[1].startswith("edit: PSNR 7.")
    assert equal.ui.as_dict() == {"text": (equal.args[1],)}


def test_the_vae_round_trip_is_measured(vae):
    reference = draw(2)
    floor = vae.decode(vae.encode(reference))
    image, text = report(reference, reconstruction=floor, vae=vae)
    assert f"VAE round trip, mean of 2: PSNR {float(quality.psnr(floor, reference).mean()):.2f} dB" in text
    assert text.count("PSNR to the VAE round trip equal") == 3
    assert image.shape[2] > report(reference, reconstruction=floor)[0].shape[2]


def test_a_video_vae_takes_an_image_or_the_frames_of_a_video():
    vae, reference = tiny_video_vae(), draw(5)
    floor = vae.decode(vae.encode(reference))[0]
    text = report(reference, reconstruction=floor, vae=vae)[1]
    assert f"VAE round trip, mean of 5: PSNR {float(quality.psnr(floor, reference).mean()):.2f} dB" in text
    assert "VAE round trip: PSNR" in report(reference[:1], vae=vae)[1]


def test_the_cost_and_the_settings_of_the_inversion_are_told(inversion):
    costly = replace(inversion, seconds=12.34, evaluations=77, cfg=3.0, model=replace(inversion.model, patched=9))
    text = report(draw(2), inversion=costly)[1]
    assert "5 steps from sigma 14.61, for reconstruction at cfg 3; BaseModel (SD15, eps), with LoRA on 9 weights" in text
    assert "inverting 2 images took 12.3 s and 77 evaluations of the network for each" in text
    assert text.startswith("ddim")
    assert "LoRA" not in report(draw(2), inversion=inversion)[1]


def columns(image, count: int, rows: int = 1, side: int = 256):
    """The drawn images, column by column and row by row, found by their size."""
    gap = 10
    assert image.shape[2] == (side + gap) * count + gap
    found = []
    for x in range(gap, image.shape[2], side + gap):
        dark = (image[0, :, x : x + side] != 1).any(-1).all(-1)  # lines without any paper
        starts = [y for y in range(1, len(dark)) if dark[y] and not dark[y - 1]]
        assert len(starts) == rows
        found.append([image[0, y : y + side, x : x + side] for y in starts])
    return found


def test_images_are_side_by_side_a_row_each():
    reference, made, edit = draw(2) * 0.9, draw(2, seed=1) * 0.9, draw(2, seed=2) * 0.9
    image = report(reference, reconstruction=made, edit=edit)[0]
    assert image.shape[0] == 1 and image.min() >= 0 and image.max() <= 1
    for column, given in zip(columns(image, 3, 2), (reference, made, edit)):
        for shown, one in zip(column, given):
            assert_close(shown[::4, ::4], one, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_headline_takes_room_only_where_there_is_one():
    reference = draw() * 0.9
    (plain, text), (named, told) = (report(reference, reconstruction=reference.clone(), headline=h) for h in ("", "EDICT"))
    assert told == f"EDICT\n{text}" and named.shape[1] > plain.shape[1]
    room = named.shape[1] - plain.shape[1]
    assert (named[:, :room] != 1).any() and torch.equal(named[:, room + 20 :], plain[:, 20:])


def test_the_numbers_stand_on_the_image():
    reference = draw() * 0.9
    equal, other = (report(reference, reconstruction=made)[0] for made in (reference.clone(), reference * 0.99))
    assert equal.shape == other.shape
    below = slice(30 + 256 + 2, None)
    assert not torch.equal(equal[:, below, 266:], other[:, below, 266:]) and torch.equal(equal[:, :, :266], other[:, :, :266])
    assert (equal[:, below, :266] == 1).all(), "there are numbers below the reference"


def test_each_image_of_a_batch_has_its_own_numbers_below_it():
    reference = draw(2) * 0.9
    made = torch.stack([reference[0] * 0.9, reference[1] * 0.7])
    together, row = report(reference, edit=made)[0], 256 + 3 * 20 + 10
    for i in range(2):
        alone = report(reference[i : i + 1], edit=made[i : i + 1])[0]
        assert torch.equal(together[:, 30 + i * row : 30 + (i + 1) * row], alone[:, 30:])


def test_a_large_image_is_shown_smaller_but_measured_whole():
    reference = draw(1, 1100, 1024) * 0.9
    made = reference.clone()
    made[0, 500, 500, 1] = 1.0
    image, text = report(reference, reconstruction=made)
    assert image.shape[2] == 2 * (512 + 10) + 10 and f"max error {1 - float(reference[0, 500, 500, 1]):.3f}" in text


def test_one_reference_serves_a_batch_and_alpha_is_left_out():
    reference, made = draw(channels=4), draw(3, seed=1)
    found = Report.of(reference, None, None, edit=made).columns
    assert_close(found[1].measures[0].values, quality.psnr(made, reference[..., :3].expand(3, -1, -1, -1)))
    assert len(found[0].images) == 3


@pytest.mark.parametrize(
    "images, given, message",
    [
        (1, dict(reconstruction=draw(height=56)), r"'reconstruction' is 64x56 pixels and the reference 64x64; they must be equal\. Scale"),
        (2, dict(edit=draw(4)), r"'edit' holds 4 images and the reference 2.*ImageFromBatch"),
    ],
    ids=["another size", "both branches in one batch"],
)
def test_images_that_do_not_fit_are_refused(images, given, message):
    with pytest.raises(ValueError, match=message):
        report(draw(images), **given)


def test_lpips_is_measured_where_it_is_installed(tmp_path, monkeypatch):
    """The real package; its network gets random weights, which must already make it 0 for equal images and more for others."""
    assert lpips.available() or "LPIPS" not in report(draw(), edit=draw(seed=1))[1]
    pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not lpips.available()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "hub" / "checkpoints" / lpips._ALEXNET)
    assert lpips.available()
    reference = draw(2)
    made = torch.stack([reference[0], 1 - reference[1]])
    found = lpips.lpips(made, reference)
    assert found[0] == 0 and found[1] > 0
    assert f"LPIPS {float(found[1]):.4f}" in report(reference, edit=made)[1]
