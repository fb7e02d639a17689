import pytest
import torch
from controlled_diffusion.training.augmentation import LARGE, SMALL, Augmentation, Variant, cropped, jittered, scaled
from torch.testing import assert_close

from checks import refused


def draw(seed):
    return torch.Generator().manual_seed(seed)


IMAGE = torch.rand(1, 96, 64, 3, generator=draw(0))


def test_a_scaled_image_says_so_and_counts_where_it_is():
    small, large, same = [], [], []
    for seed in range(60):
        made = scaled(Variant(torch.ones(1, 96, 64, 3), None), draw(seed))
        assert made.image.shape == (1, 96, 64, 3)
        ours = made.image[..., 0] > 0.9
        if made.mask is None:
            large.append(made)
            assert bool(ours.all()) and made.hint in LARGE
            continue
        share = float(ours.float().mean()) ** 0.5
        (small if share < 0.6 else same).append(made)
        assert made.hint in (SMALL if share < 0.59 else ("",) if share > 0.61 else (*SMALL, ""))
        assert bool(ours[made.mask > 0].all()) and 0 < float(made.mask.mean()) < float(ours.float().mean())
        assert_close(made.image[~ours], torch.full_like(made.image[~ours], 0.5))
    assert 8 < len(large) < 32 and len(small) > 8 and len(same) > 8
    assert {v.hint for v in small} >= set(SMALL) and {v.hint for v in large} == set(LARGE)


def test_a_mask_goes_with_its_image():
    mask, corner = torch.zeros(1, 96, 64), torch.zeros(1, 64, 64)
    mask[:, :, 32:], corner[:, :12, :12] = 1, 1
    painted = mask[..., None].expand(1, 96, 64, 3) * 0.5 + 0.5
    for seed in range(20):
        for made in (cropped(Variant(painted, mask), 0.4, draw(seed)), scaled(Variant(painted, mask), draw(seed))):
            assert bool((made.image[..., 0][made.mask > 0.99] > 0.98).all()) and bool(made.mask.any())
    for seed in range(60):  # a small subject in the corner, where a shrunk image has an edge that does not count, is never shrunk away
        assert bool(scaled(Variant(torch.ones(1, 64, 64, 3), corner), draw(seed)).mask.any())


def test_crops_are_at_most_as_narrow_as_asked_for():
    ramp = torch.linspace(0, 1, 64).expand(1, 96, 64)[..., None].expand(-1, -1, -1, 3)
    spans = [float(c.max() - c.min()) for c in (cropped(Variant(ramp, None), 0.5, draw(s)).image for s in range(40))]
    assert min(spans) > 0.45 and min(spans) < 0.7 and max(spans) > 0.9


def test_jitter_changes_colors_alone_and_a_little():
    far = [float((jittered(IMAGE * 0.5 + 0.25, 0.1, draw(s)) - IMAGE * 0.5 - 0.25).abs().max()) for s in range(10)]
    assert 0.005 < max(far) < 0.25
    assert_close(jittered(IMAGE, 0.0, draw(0)), IMAGE)


def test_a_variant_depends_on_seed_and_number_alone():
    made = Augmentation(2, 0.2, 0.1, 1.0)
    one, again, other = (made.variant(IMAGE, None, n, s) for n, s in ((3, 1), (3, 1), (4, 1)))
    assert torch.equal(one.image, again.image) and one.hint == again.hint and not torch.equal(one.image, other.image)


@pytest.mark.parametrize("knobs, message", [
    (dict(variants=3), "3 variants of each image, but crop, jitter and scale are all 0"),
    (dict(crop=0.95), "crop is 0.95"), (dict(scale=-1), "scale is -1"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(knobs, message):
    refused(message, Augmentation, **knobs)
