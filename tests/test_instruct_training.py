"""InstructPix2Pix's training in torch alone: the wider convolution, what is trained, dropout, and which pairs are kept."""

import re
from collections import Counter

import pytest
import torch
from controlled_diffusion.training import channel_dropout
from controlled_diffusion.training import instruct_pix2pix as ip2p
from controlled_diffusion.training.instruct_pix2pix import (
    FIRST,
    Filter,
    Likeness,
    PlainFilter,
    PromptPair,
    added_weights,
    draws,
    prompt_pairs,
)
from torch.testing import assert_close

SHAPES = {
    FIRST: torch.Size([8, 8, 3, 3]),
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": torch.Size([8, 8]),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight": torch.Size([8, 8]),
    "input_blocks.1.0.in_layers.2.weight": torch.Size([8, 8, 3, 3]),
    "out.0.weight": torch.Size([8]),
    "out.2.weight": torch.Size([3, 8, 3, 3]),
}
LOW_RANK = {"attention": 2, "every layer": 4, "all weights": 0}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_widened_convolution_ignores_the_new_channels():
    weight, x = draw(6, 4, 3, 3), draw(2, 8, 5, 5, seed=1)
    same = torch.nn.functional.conv2d(x, ip2p.widened(weight, 8), padding=1)
    assert_close(same, torch.nn.functional.conv2d(x[:, :4], weight, padding=1))
    assert torch.equal(ip2p.widened(weight, 4), weight)
    with pytest.raises(ValueError, match="takes 4 channels already"):
        ip2p.widened(weight, 3)


@pytest.mark.parametrize("what", ip2p.WHAT)
def test_new_weights_change_nothing_and_follow_the_seed(what):
    made, again = (added_weights(SHAPES, what, 4, 4.0, seed=3) for _ in range(2))
    assert sum(isinstance(m, ip2p.LowRank) for m in made.values()) == LOW_RANK[what] and isinstance(made[FIRST], ip2p.Whole)
    assert (set(made) == set(SHAPES)) == (what == "all weights")
    for name, module in made.items():
        weight = draw(*SHAPES[name]).half()
        assert torch.equal(module(weight), weight) and module(weight).dtype == torch.float16
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), again[name].parameters()))


def test_a_low_rank_difference_is_the_product_times_its_scale():
    module = ip2p.LowRank(torch.Size([6, 4, 3, 3]), 2, 4.0, torch.Generator().manual_seed(0))
    module.up.data = draw(6, 2)
    weight = draw(6, 4, 3, 3)
    assert_close(module(weight), weight + 2 * (module.up @ module.down).view(6, 4, 3, 3))
    with pytest.raises(ValueError, match=r"rank is 7.*1 to 6"):
        ip2p.LowRank(torch.Size([6, 36]), 7, 1.0, torch.Generator())
    with pytest.raises(ValueError, match="choose one of attention"):
        added_weights(SHAPES, "nothing", 4, 4.0, 0)


def test_every_layer_gets_the_rank_that_it_can_have():
    made = added_weights(SHAPES, "every layer", 6, 3.0, seed=3)
    assert {k: len(m.down) for k, m in made.items() if k != FIRST} == {
        k: min(6, s[0]) for k, s in SHAPES.items() if len(s) > 1 and k != FIRST
    }
    assert all(m.scale == 0.5 for k, m in made.items() if k != FIRST)
    with pytest.raises(ValueError, match=r"rank is 9, .* from 1 to 8"):
        added_weights(SHAPES, "every layer", 9, 4.0, 0)


def shares(dropout, log_snr=0.0, count=4000):
    """How often (image, instruction) are shown, by case."""
    kept = dropout.keep(torch.full((count,), log_snr), channel_dropout.draws(7, 0, count, 2))
    return {case: number / count for case, number in Counter(map(tuple, kept.tolist())).items()}


def test_joint_dropout_rates():
    for level in (-30.0, 30.0):
        found = shares(ip2p.dropout_of("jointly", 0.05), level)
        assert all(0.04 < found[case] < 0.06 for case in ((False, True), (False, False), (True, False)))
    assert shares(ip2p.dropout_of("jointly", 0.0)) == {(True, True): 1.0}


def test_independent_dropout_rates():
    found, rate = shares(ip2p.dropout_of("independently", 0.09)), 0.3
    expected = {(False, False): rate**2, (False, True): rate * (1 - rate), (True, False): rate * (1 - rate), (True, True): (1 - rate) ** 2}
    assert found == pytest.approx(expected, abs=0.03)


def test_rates_at_clean_levels_are_those_given_or_the_same():
    dropout = ip2p.dropout_of("independently", 0.09, clean_image=1.0)
    noisy, clean = shares(dropout, -30.0), shares(dropout, 30.0)
    assert noisy[False, False] == pytest.approx(0.09, abs=0.03) and noisy[True, True] == pytest.approx(0.49, abs=0.03)
    assert clean == pytest.approx({(False, True): 0.7, (False, False): 0.3}, abs=0.03)
    with pytest.raises(ValueError, match=r"at low noise are given \(0, -1\).*Choose 'independently'"):
        ip2p.dropout_of("jointly", 0.05, clean_image=0.0)
    with pytest.raises(ValueError, match=r"Unknown channel_dropout .never.*choose one of jointly, independently"):
        ip2p.dropout_of("never", 0.05)


def test_candidates_depend_on_the_pair_alone_and_fill_the_ranges():
    pair = PromptPair("a", "b", "c")
    made = draws(5, pair, 200)
    assert made == draws(5, pair, 200) and made[:3] == draws(5, pair, 3) and made != draws(6, pair, 200)
    assert made != draws(5, PromptPair("a", "b", "d"), 200)
    shares, cfgs = [d.share for d in made], [d.cfg for d in made]
    assert 0.1 <= min(shares) < 0.15 and 0.85 < max(shares) <= 0.9 and 7.5 <= min(cfgs) < 8 and 14.5 < max(cfgs) <= 15
    assert len({d.seed for d in made}) == 200
    with pytest.raises(ValueError, match=r"share runs from 0.9 to 0.1"):
        draws(5, pair, 1, share=(0.9, 0.1))


def test_the_direction_is_the_cosine_of_both_changes():
    east, north = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    found = ip2p.likeness(east.expand(3, 3) * 2, torch.stack([north, east, torch.tensor([0, 0, 1.0])]), east, north * 5)
    assert_close(found.images, torch.tensor([0.0, 1.0, 0.0]))
    assert_close(found.direction, torch.tensor([1.0, 0.0, 0.5]))
    assert_close(found.captions, torch.tensor([1.0, 0.0, 0.0]))


def test_the_filter_keeps_the_best_directions():
    found = Likeness(
        torch.tensor([0.9, 0.6, 0.8, 0.8, 0.9]), torch.tensor([0.3, 0.9, 0.5, 0.1, 0.4]), torch.tensor([0.3, 0.3, 0.3, 0.3, 0.1])
    )
    assert Filter().best(found, 4) == [2, 0] and Filter().best(found, 1) == [2] and Filter(captions=0.0).best(found, 4) == [2, 4, 0]


def test_without_clip_something_has_to_change_but_not_everything():
    before = torch.zeros(4, 10, 10, 3)
    after = before.clone()
    after[1, :3], after[2, :9], after[3, :1] = 0.5, 0.5, 0.5
    plain = PlainFilter()
    assert_close(plain.changed(before, after), torch.tensor([0.0, 0.3, 0.9, 0.1]))
    assert plain.best(plain.changed(before, after), 4) == [3, 1] and plain.best(plain.changed(before, after + 0.05), 1) == [3]


def test_prompt_pairs_are_read_line_by_line_with_words_to_choose():
    text = """
    # what can be where
    thing = cat, dog
    other = dog, cow
    a {thing} => a {other} | turn the {thing} into a {other}
    a house => a house in the snow | make it snow
    a house => a house in the snow | make it snow
    """
    assert prompt_pairs(text) == [
        PromptPair("a cat", "a dog", "turn the cat into a dog"),
        PromptPair("a cat", "a cow", "turn the cat into a cow"),
        PromptPair("a dog", "a cow", "turn the dog into a cow"),
        PromptPair("a house", "a house in the snow", "make it snow"),
    ]


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "There is no prompt pair"),
        ("a => b", "Line 1 is no prompt pair: 'a => b'"),
        ("\na | b", "Line 2 is no prompt pair"),
        ("a => | b", "Line 1 is no prompt pair"),
        ("a {x} => b | c", "Line 1 names {x}"),
    ],
)
def test_a_line_that_is_none_is_named(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        prompt_pairs(text)
