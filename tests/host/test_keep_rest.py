"""Keep the Rest in the real ComfyUI."""

import pytest
import torch
from controlled_diffusion.nodes.inputs.checks import with_checks
from controlled_diffusion.nodes.keep_rest import KeepRest

from checks import refused
from node_schema import defaults
from test_keep_rest import MASK, SIZE, blobs, moved, repainted, tinted

NODE = with_checks(KeepRest)


def kept(source, edit, mask=MASK, **settings):
    """(image, mask, report) of images (B, 3, H, W)."""
    images = dict(source=source.movedim(1, -1), edit=edit.movedim(1, -1))
    return NODE.execute(**images, mask=mask, **defaults(KeepRest) | settings).args


def test_the_report_says_what_moved_and_what_was_put_back():
    source = blobs()
    edits = [moved(tinted(repainted(source)), (1.0, 1.02), (3.0, -2.0))[0], source, blobs(5)]
    image, mask, report = kept(source, torch.cat(edits))
    first, still, other = report.split("\n")
    assert first == "image 1: shifted by +3.0, -2.0 pixels, stretched by +0.0, +2.0 %; put back"
    assert still.startswith("image 2: shifted by ") and still.endswith("not moved")
    assert "image 3: " in other and "not put back: what the mask leaves out is too unlike" in other
    assert image.shape == (3, SIZE, SIZE, 3) and mask.shape == (3, SIZE, SIZE)
    for i in range(3):
        assert torch.equal(image[i][mask[i] == 0], source[0].movedim(0, -1)[mask[i] == 0])


def test_grow_and_feather_are_shares_of_the_shorter_side():
    source, edit = blobs(), blobs(5)
    assert torch.equal(kept(source, edit, grow=0, feather=0)[1], MASK)
    grown = kept(source, edit, grow=0.05, feather=0)[1]
    assert float(grown[0, 51, 80]) == 1 and float(grown[0, 49, 80]) == 0
    faded = kept(source, edit, grow=0.05, feather=0.05)[1]
    assert float(faded[0, 49, 80]) == 0 < float(faded[0, 54, 80]) < 1


def test_a_mask_without_anything_left_is_told():
    """A mask narrower than the feather, or an empty one, shows nothing of the edit."""
    thin = torch.zeros_like(MASK)
    thin[:, 80:84] = 1
    for mask, settings in ((thin, dict(grow=0.0, feather=0.05)), (torch.zeros_like(MASK), dict(align=False))):
        image, _, report = kept(blobs(), blobs(5), mask, **settings)
        assert torch.equal(image, blobs().movedim(1, -1)) and "nothing comes from the edit" in report
    assert kept(blobs(), repainted(blobs()), align=False)[2] == "image 1: not aligned"


def test_an_edit_outside_of_the_mask_is_told():
    source, half = blobs(), MASK.clone()
    half[..., 85:] = 0
    told = "; 56 % of what changed lies outside the mask and is cut off. To keep it, paint the mask larger or raise grow"
    assert kept(source, repainted(source), half, align=False, grow=0.0)[2] == f"image 1: not aligned{told}"
    assert kept(source, repainted(source), half, grow=0.0)[2].endswith(told)
    assert kept(source, repainted(source), half, grow=0.2, align=False)[2] == "image 1: not aligned"


def test_an_edit_of_another_size_is_scaled_to_the_source():
    source = blobs()
    edit = torch.nn.functional.interpolate(repainted(source), (240, 200), mode="bicubic")
    image, mask, _ = kept(source, edit, colors="off")
    assert image.shape == (1, SIZE, SIZE, 3)
    assert float((image - repainted(source).movedim(1, -1)).abs()[mask == 1].mean()) < 0.01


def test_a_mask_of_another_size_is_scaled_to_the_source():
    """Load Image gives an empty one of 64 x 64 where nothing was painted."""
    source, edit = blobs(), blobs(5)
    assert torch.equal(kept(source, edit, torch.zeros(1, 64, 64))[0], source.movedim(1, -1))
    half = torch.zeros(1, 48, 96)
    half[..., 48:] = 1
    assert kept(source, edit, half, grow=0, feather=0)[1][0, 0].round().sum() == SIZE / 2


def test_a_mask_that_leaves_nothing_out_gives_the_edit():
    edit = blobs(5)
    image, _, report = kept(blobs(), edit, torch.ones_like(MASK))
    assert torch.equal(image, edit.movedim(1, -1)) and "the mask leaves nothing out" in report


@pytest.mark.parametrize("source, mask, message", [
    (torch.cat([blobs()] * 3), MASK, "edit holds 2 images, but there are 3; give 1, or 3"),
    (blobs(), torch.cat([MASK] * 3), "mask holds 3 images, but there are 2; give 1, or 2"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(source, mask, message):
    refused(message, kept, source, torch.cat([blobs(5)] * 2), mask)
