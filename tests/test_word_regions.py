"""Regions by words on maps and features with known answers."""

import torch
from controlled_diffusion.attention.word_regions import described, filled, likeness, regions

from compare import assert_close

SIZE = (6, 8)


def scene(noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(maps (1, 2, N), features (1, N, 4), masks (2, H, W)): two things on a ground; words look at a corner of their thing alone."""
    masks = torch.zeros(2, *SIZE)
    masks[0, 1:5, 1:3], masks[1, 1:5, 5:7] = 1, 1
    draw = torch.Generator().manual_seed(0)
    own = torch.stack([1 - masks.sum(0), *masks, torch.zeros(SIZE)]).flatten(1).T
    maps = 0.1 + 0.01 * torch.rand(2, *SIZE, generator=draw)
    maps[0, 1:3, 1:3], maps[1, 1:3, 5:7] = 1, 1
    return maps.flatten(1)[None], (own + noise * torch.rand(own.shape, generator=draw))[None], masks


def test_whole_things_are_found_from_their_anchors():
    maps, features, masks = scene(0.2)
    for scaled in (maps, maps * torch.tensor([1.0, 50.0])[:, None]):
        found = regions(likeness(scaled, features, 4 / 48, 0.5).unflatten(-1, SIZE), 2, SIZE)
        assert torch.equal(found[0], masks)


def test_things_that_look_alike_are_told_apart_by_attention():
    maps, features, masks = scene(0.2)
    features[..., 1] = features[..., 2] = features[..., 1:3].sum(-1)
    found = regions(likeness(maps + 0.1 * masks.flatten(1), features, 4 / 48, 0.5).unflatten(-1, SIZE), 2, SIZE)
    assert torch.equal(found[0], masks)


def test_competition_keeps_anchors_apart():
    """A word that looks at both things, at the other's even more, still gets its own."""
    maps, features, masks = scene()
    maps[0, 0] = maps[0, 0] + 1.2 * maps[0, 1]
    found = regions(likeness(maps, features, 4 / 48, 0.5).unflatten(-1, SIZE), 2, SIZE)
    assert torch.equal(found[0], masks)


def test_without_a_rest_the_phrases_divide_the_image():
    maps, features, _ = scene(0.5)
    found = likeness(maps, features, 0.1, 0.0).unflatten(-1, SIZE)
    assert found.shape[1] == 2
    assert_close(regions(found, 2, SIZE).sum(1), torch.ones(1, *SIZE))


def test_a_spread_widens_into_the_rest_to_the_nearest():
    found = torch.zeros(1, 3, 1, 9)
    found[0, 2], found[0, 0, 0, :2], found[0, 1, 0, 5:7] = 0.4, 1.0, 1.0
    for spread, first, second in (
        (0, [1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0, 0]),
        (1, [1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 0]),
        (2, [1, 1, 1, 0.5, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 1, 1, 1, 1, 1]),
    ):
        assert regions(found, 2, (1, 9), spread)[0, :, 0].tolist() == [first, second]


def test_a_place_counts_with_its_neighbors():
    found = torch.zeros(1, 2, 5, 5)
    found[0, 0], found[0, 1, 2, 2] = 0.5, 1.0
    assert regions(found, 2, (5, 5))[0, 0].all(), "one place among others of another phrase"


def test_a_phrase_that_no_place_attends_to_gets_nothing():
    maps, features, masks = scene(0.2)
    for rest in (0.0, 0.5):
        found = regions(likeness(torch.stack([maps[:, 0], torch.zeros_like(maps[:, 0]), maps[:, 1]], 1), features, 4 / 48, rest).unflatten(-1, SIZE), 3, SIZE)
        assert not found[:, 1].any() and all((found[0, n] * m).sum() == m.sum() for n, m in zip((0, 2), masks))
    assert not filled(found, torch.tensor([[True, False, True]]))[0][:, 1].any(), "the whole image is for phrases of its prompt alone"


def test_regions_of_a_video_have_its_frames():
    maps, features, masks = scene()
    found = likeness(maps, features, 4 / 48, 0.5).unflatten(-1, SIZE)[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.equal(regions(found, 2, (3, *SIZE))[0], masks[:, None].expand(-1, 3, -1, -1))
    assert regions(found, 2, (3, 12, 16)).shape == (1, 2, 3, 12, 16)


def test_an_empty_region_is_the_whole_image_and_said():
    masks = torch.zeros(2, 2, 4, 4)
    masks[:, 0, :2], masks[1, 1, 1:] = 1, 1
    whole, empty = filled(masks, torch.ones(2, 2, dtype=torch.bool))
    assert empty.tolist() == [[False, True], [False, False]] and bool((whole[0, 1] == 1).all()) and torch.equal(whole[1], masks[1])
    lines = described(("her", "him"), whole, empty)
    assert lines[0] == "image 1: her 50 %, him has no place: its region is the whole image"
    assert lines[1] == "image 2: her 50 %, him 75 %, regions overlap on 25 %"
