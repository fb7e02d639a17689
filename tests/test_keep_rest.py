"""An edit put into its source: registration, colors, and the source's own pixels everywhere else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from controlled_diffusion.guidance.colors import matched, spread
from controlled_diffusion.guidance.diffedit import dilated
from controlled_diffusion.guidance.keep_rest import COLORS, CUT, UNSURE, keep_rest
from controlled_diffusion.guidance.registration import Motion, registered
from torch.testing import assert_close

from demo import world

SIZE = 192
MASK = torch.zeros(1, SIZE, SIZE)
MASK[:, 60:130, 50:120] = 1
TINT = torch.tensor([[0.9, 0.08, 0.0], [0.03, 0.95, 0.02], [0.0, 0.1, 0.8]]), torch.tensor([0.04, -0.02, 0.05])


def blobs(seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """Blobs of many sizes, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [F.interpolate(torch.rand(1, 3, n, n, generator=generator), (size, size), mode="bicubic") / n**0.3 for n in (4, 9, 23, 61)]
    image = sum(parts)
    return ((image - image.amin()) / (image.amax() - image.amin())) * 0.8 + 0.1


def moved(image: torch.Tensor, scale, shift) -> tuple[torch.Tensor, Motion]:
    """The image after a motion, and that motion."""
    motion = Motion(torch.tensor([scale]), torch.tensor([shift]))
    return Motion(1 / motion.scale, -motion.shift / motion.scale).undone(image), motion


def tinted(image: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,bjhw->bihw", TINT[0], image) + TINT[1][:, None, None]


def repainted(image: torch.Tensor) -> torch.Tensor:
    """The image with something else inside the mask."""
    return torch.where(MASK[:, None] > 0, blobs(9).flip(1), image)


def error(found: Motion, true: Motion) -> float:
    return float(Motion(found.scale - true.scale + 1, found.shift - true.shift).distance(SIZE, SIZE).max())


MOTIONS = [
    ((1.0, 1.0), (0.0016, -0.002)), ((1.0, 1.0), (0.04, -0.04)), ((1.04, 1.04), (0.0, 0.0)), ((0.96, 1.03), (-0.025, 0.03)),
    ((1.02, 0.97), (0.04, 0.04)),
]  # fmt: skip  # scales, and shifts as shares of the side


def leaves(seed: int = 0) -> torch.Tensor:
    """Dead leaves, as photos are: things of all sizes that cover each other, with sharp edges; (1, 3, SIZE, SIZE)."""
    generator, fine = torch.Generator().manual_seed(seed), 2 * SIZE
    image, places = torch.full((3, fine, fine), 0.5), torch.arange(fine)
    for x, y, share, *color in torch.rand(300, 6, generator=generator).tolist():
        radius = min(fine / 4, 6 / (1 - share) ** 0.5)
        within = (places - x * fine) ** 2 + (places[:, None] - y * fine) ** 2 < radius**2
        image = torch.where(within, torch.tensor(color)[:, None, None], image)
    return F.avg_pool2d(image[None], 2)


@pytest.mark.parametrize("source", [blobs(), leaves()], ids=["blobs", "leaves"])
@pytest.mark.parametrize("scale, shift", MOTIONS)
def test_shifts_and_scales_up_to_4_percent_are_found(source, scale, shift):
    edit, motion = moved(source, scale, tuple(SIZE * share for share in shift))
    assert error(registered(source, tinted(repainted(edit)), 1 - MASK[:, None])[0], motion) < 0.1


def one_of_two(number: int, spill: int = 0):
    """Scenes of the demo world, their first or second thing repainted, and moved: (source, edit, mask, motion) of each motion.

    The other thing shows the motion. The repainted thing may be `spill` pixels larger than the mask.
    """
    scene = world.random_scene(np.random.default_rng(number), 1.0)
    source = torch.from_numpy(world.render(scene)).float().movedim(-1, 0)[None] / 255
    mask = dilated(torch.from_numpy(world.thing_masks(scene)[number % 2])[None].float(), 4)
    changed = torch.where(dilated(mask, spill)[:, None] > 0, 1 - source, source)
    for scale, shift in MOTIONS:
        edit, motion = moved(changed, scale, tuple(128 * share for share in shift))
        yield source, tinted(edit), mask, motion
    yield source, changed, mask, Motion.none(1)


def farthest(found: Motion, true: Motion, mask: torch.Tensor) -> float:
    """How many pixels a motion is off, anywhere in the mask (1, H, W)."""
    places = torch.stack(torch.meshgrid([torch.arange(n) - (n - 1) / 2 for n in mask.shape[:0:-1]], indexing="xy"), -1)[mask[0] > 0]
    return float(((found.scale - true.scale) * places + found.shift - true.shift).norm(dim=1).max())


@pytest.mark.parametrize("number", [1, 3, 7, 13, 16, 17, 22, 25, 29, 34, 39])
def test_one_thing_on_a_plain_ground_tells_of_the_other(number):
    """Near each other, striped, as bright as the ground: where it is said to be sure the motion is right, and mostly it is sure."""
    found = [(registered(source, edit, 1 - mask[:, None]), mask, true) for source, edit, mask, true in one_of_two(number)]
    sure = [farthest(motion, true, mask) for (motion, error), mask, true in found if error <= UNSURE]
    assert max(sure) < 0.1 and 2 * len(sure) > len(found)


def test_an_edit_that_spills_out_of_its_mask_makes_the_motion_unsure():
    """By 4 of 128 pixels, next to the only other thing."""
    found = [(*registered(source, edit, 1 - mask[:, None]), mask, true) for n in (13, 16) for source, edit, mask, true in one_of_two(n, 4)]
    wrong = [float(error) for motion, error, mask, true in found if farthest(motion, true, mask) > 0.6]
    assert wrong and min(wrong) > UNSURE


def test_every_image_of_a_batch_has_its_own_motion():
    source = torch.cat([blobs(1), blobs(2)])
    edits, motions = zip(moved(source[:1], (1.0, 1.0), (3.0, 0.0)), moved(source[1:], (0.98, 0.98), (0.0, -4.0)))
    found, _ = registered(source, torch.cat(edits), torch.ones(2, 1, SIZE, SIZE))
    assert all(error(Motion(found.scale[i : i + 1], found.shift[i : i + 1]), motion) < 0.1 for i, motion in enumerate(motions))


def test_outside_the_mask_the_source_stays_bit_for_bit():
    source = blobs()
    edit, _ = moved(tinted(repainted(source)), (1.02, 1.0), (3.0, 2.0))
    for feather in (0, 9):
        for colors in COLORS:
            kept = keep_rest(source, edit, MASK, feather, colors=colors)
            outside = (kept.mask == 0)[:, None].expand_as(source)
            assert torch.equal(kept.image[outside], source[outside]) and bool(outside[(MASK == 0)[:, None].expand_as(source)].all())
            assert not torch.allclose(kept.image, source, atol=0.05)


def test_an_edit_that_moved_and_changed_color_is_put_back_in_place():
    """What the edit repainted comes out where it belongs and in its own colors, because the rest tells how the whole was changed."""
    source = blobs()
    wanted = repainted(source)
    edit, _ = moved(tinted(wanted), (1.03, 0.98), (4.0, -3.0))

    def apart(**settings) -> float:
        return float((keep_rest(source, edit, MASK, **settings).image - wanted).abs().mean((0, 1))[MASK[0] > 0].mean())

    assert apart(colors="whole image") < 0.015
    assert apart(align=False, colors="off") > 0.05
    assert apart(colors="whole image") < 0.5 * apart(align=False, colors="whole image")
    assert apart(colors="whole image") < 0.5 * apart(colors="off")


@pytest.mark.parametrize("source", [blobs(), leaves()], ids=["blobs", "leaves"])
def test_an_image_that_did_not_move_is_not_resampled(source):
    edit = repainted(source)
    kept = keep_rest(source, edit, MASK, colors="off")
    assert torch.equal(kept.image, edit) and not kept.undone
    noisy = (edit + 0.02 * torch.randn(edit.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    inside = (MASK > 0)[:, None].expand_as(noisy)
    assert torch.equal(keep_rest(source, noisy, MASK, colors="off").image[inside], noisy[inside])


@pytest.mark.parametrize("edit", [blobs(5), torch.full((1, 3, SIZE, SIZE), 0.5)], ids=["another image", "one color"])
def test_an_unsure_motion_is_not_undone(edit):
    kept = keep_rest(blobs(), edit, MASK, colors="off")
    inside = (MASK > 0)[:, None].expand_as(edit)
    assert float(kept.likeness) < 0.6 and not kept.undone and torch.equal(kept.image[inside], edit[inside])


def test_a_linear_change_of_color_is_undone():
    """The optimal map between Gaussians is symmetric, so a symmetric change is undone exactly."""
    source, symmetric = blobs(), (TINT[0] + TINT[0].T) / 2
    edit = torch.einsum("ij,bjhw->bihw", symmetric, source) + TINT[1][:, None, None]
    assert_close(matched(edit, source, torch.ones(1, 1, SIZE, SIZE)), source, atol=0.02, rtol=0)
    nothing = torch.zeros(1, 1, SIZE, SIZE)
    assert torch.equal(matched(edit, source, nothing), edit)


def test_a_field_is_kept_where_known_and_smooth_elsewhere():
    ramp = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE)
    found = spread(torch.where(MASK[:, None] > 0, torch.full_like(ramp, 9.0), ramp), 1 - MASK[:, None])
    assert torch.equal(found[MASK[:, None] == 0], ramp[MASK[:, None] == 0])
    assert float((found - ramp).abs().max()) < 0.12


def test_at_the_edge_a_local_tint_leaves_no_seam():
    """A glow that no single color map undoes: the step at the mask's border shrinks."""
    source = blobs()
    glow = torch.linspace(-0.15, 0.15, SIZE)[:, None].expand(1, 3, SIZE, SIZE)

    def seam(colors) -> float:
        image = keep_rest(source, source + glow, MASK, align=False, colors=colors).image
        return float((image - source).abs()[..., 60, 50:120].mean())

    assert seam("at the edge") < 0.3 * seam("whole image")


def test_colors_that_the_rest_does_not_have_stay_as_they_are():
    """A thing on a white ground with a green one: nothing there says how blue changes."""
    generator, source = torch.Generator().manual_seed(2), torch.full((1, 3, SIZE, SIZE), 0.95)
    source[..., 20:50, 130:180] = torch.tensor([0.16, 0.62, 0.2])[:, None, None]
    edit = source.clone()
    edit[..., 60:130, 50:120] = torch.tensor([0.15, 0.35, 0.85])[:, None, None]
    noisy = (edit * 0.98 + 0.005 + 0.01 * torch.randn(edit.shape, generator=generator)).clamp(0, 1)
    for colors in COLORS:
        found = keep_rest(source, noisy, MASK, colors=colors).image[..., 80:110, 70:100]
        assert_close(found.mean((2, 3)), torch.tensor([[0.15, 0.35, 0.85]]), atol=0.03, rtol=0)


def test_a_mask_that_is_too_small_lends_no_color_of_the_thing():
    """The mask leaves a rim of the repainted square out: red before, blue after. The blue inside stays as the edit has it."""
    source, edit = blobs(), blobs()
    for image, color in ((source, (0.9, 0.1, 0.1)), (edit, (0.1, 0.2, 0.9))):
        image[..., 60:130, 50:120] = torch.tensor(color)[:, None, None]
    smaller = torch.zeros_like(MASK)
    smaller[:, 63:127, 53:117] = 1
    for colors in COLORS:
        found = keep_rest(source, edit, smaller, colors=colors).image[..., 80:110, 70:100]
        assert_close(found, edit[..., 80:110, 70:100], atol=0.03, rtol=0)


@pytest.mark.parametrize("source", [blobs(), leaves()], ids=["blobs", "leaves"])
def test_a_change_outside_the_mask_is_measured(source):
    """Half of a repainted square, moved too; not grain, lost detail, tint, another light, nor an edit that changed nothing."""
    generator, half = torch.Generator().manual_seed(3), MASK.clone()
    half[..., 85:] = 0

    def worn(image):
        """What a VAE and an editor make of all of an image."""
        soft = F.avg_pool2d(F.pad(image, (1,) * 4, mode="replicate"), 3, 1)
        light = torch.linspace(-0.02, 0.02, SIZE)[:, None]
        return tinted((image + soft) / 2 + 0.02 * torch.randn(image.shape, generator=generator) + light)

    edit = worn(repainted(source))
    assert abs(float(keep_rest(source, moved(edit, (1.01, 1.0), (2.0, -1.0))[0], half).outside) - 0.5) < 0.1
    assert abs(float(keep_rest(source, edit, half, align=False, colors="off").outside) - 0.5) < 0.1
    assert float(keep_rest(source, edit, MASK, 20).outside) < CUT / 3
    assert float(keep_rest(source, worn(source), MASK, align=False).outside) < CUT / 2


def test_a_feather_fades_inside_the_mask():
    kept = keep_rest(blobs(), blobs(5), MASK, 9)
    assert float(kept.mask[0, 95, 85]) == 1 and float(kept.mask[0, 60, 85]) < 0.1
    assert bool((kept.mask <= MASK).all())
