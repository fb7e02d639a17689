"""InstructPix2Pix's training in torch alone: the wider convolution, what is trained, dropout, and which pairs are kept."""

import re
from collections import Counter

import pytest
import torch
from controlled_diffusion.training import channel_dropout
from controlled_diffusion.training import instruct_pix2pix as ip2p
from controlled_diffusion.training.instruct_pix2pix import FIRST, PromptPair, added_weights, draws, prompt_pairs
from torch.testing import assert_close

from checks import draw, refused

SHAPES = {
    FIRST: torch.Size([8, 8, 3, 3]),
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": torch.Size([8, 8]),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight": torch.Size([8, 8]),
    "input_blocks.1.0.in_layers.2.weight": torch.Size([8, 8, 3, 3]),
    "out.0.weight": torch.Size([8]),
    "out.2.weight": torch.Size([3, 8, 3, 3]),
}
LOW_RANK = {"attention": 2, "every layer": 4, "all weights": 0}


def test_a_widened_convolution_ignores_the_new_channels():
    weight, x = draw(6, 4, 3, 3), draw(2, 8, 5, 5, seed=1)
    same = torch.nn.functional.conv2d(x, ip2p.widened(weight, 8), padding=1)
    assert_close(same, torch.nn.functional.conv2d(x[:, :4], weight, padding=1))
    assert torch.equal(ip2p.widened(weight, 4), weight)
    refused("takes 4 channels already", ip2p.widened, weight, 3)


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
    module, weight = ip2p.LowRank(torch.Size([6, 4, 3, 3]), 2, 4.0, torch.Generator().manual_seed(0)), draw(6, 4, 3, 3)
    module.up.data = draw(6, 2)
    assert_close(module(weight), weight + 2 * (module.up @ module.down).view(6, 4, 3, 3))
    refused(r"rank is 7.*1 to 6", ip2p.LowRank, torch.Size([6, 36]), 7, 1.0, torch.Generator())
    refused("choose one of attention", added_weights, SHAPES, "nothing", 4, 4.0, 0)


def test_every_layer_gets_the_rank_that_it_can_have():
    made = added_weights(SHAPES, "every layer", 6, 3.0, seed=3)
    ranks = {k: min(6, s[0]) for k, s in SHAPES.items() if len(s) > 1 and k != FIRST}
    assert {k: len(m.down) for k, m in made.items() if k != FIRST} == ranks
    assert all(m.scale == 0.5 for k, m in made.items() if k != FIRST)
    refused(r"rank is 9, .* from 1 to 8", added_weights, SHAPES, "every layer", 9, 4.0, 0)


def shares(dropout, log_snr=0.0, count=4000):
    """How often (image, instruction) are shown, by case."""
    kept = dropout.keep(torch.full((count,), log_snr), channel_dropout.draws(7, 0, count, 2))
    return {case: number / count for case, number in Counter(map(tuple, kept.tolist())).items()}


def test_joint_dropout_rates():
    for level in (-30.0, 30.0):
        found = shares(ip2p.dropout_of("jointly", 0.05), level)
        assert all(0.04 < found[case] < 0.06 for case in ((False, True), (False, False), (True, False)))
    assert shares(ip2p.dropout_of("jointly", 0.0)) == {(True, True): 1.0}
    told = r"at low noise are given \(0, -1\).*Choose 'independently'"
    refused(told, ip2p.dropout_of, "jointly", 0.05, clean_image=0.0)
    refused(r"channel_dropout is .never.*choose one of jointly, independently", ip2p.dropout_of, "never", 0.05)


def test_independent_dropout_rates():
    """At clean levels they are those given, or the same."""
    expected = {(False, False): 0.09, (False, True): 0.21, (True, False): 0.21, (True, True): 0.49}
    dropout = ip2p.dropout_of("independently", 0.09, clean_image=1.0)
    for found in (shares(ip2p.dropout_of("independently", 0.09)), shares(dropout, -30.0)):
        assert found == pytest.approx(expected, abs=0.03)
    assert shares(dropout, 30.0) == pytest.approx({(False, True): 0.7, (False, False): 0.3}, abs=0.03)


def test_candidates_depend_on_the_pair_alone_and_fill_the_ranges():
    pair = PromptPair("a", "b", "c")
    made = draws(5, pair, 200)
    assert made == draws(5, pair, 200) and made[:3] == draws(5, pair, 3) and made != draws(6, pair, 200)
    assert made != draws(5, PromptPair("a", "b", "d"), 200)
    shares, cfgs = [d.share for d in made], [d.cfg for d in made]
    assert 0.1 <= min(shares) < 0.15 and 0.85 < max(shares) <= 0.9 and 7.5 <= min(cfgs) < 8 and 14.5 < max(cfgs) <= 15
    assert len({d.seed for d in made}) == 200
    refused(r"share runs from 0.9 to 0.1", draws, 5, pair, 1, share=(0.9, 0.1))


def test_the_direction_is_the_cosine_of_both_changes():
    east, north = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    found = ip2p.likeness(east.expand(3, 3) * 2, torch.stack([north, east, torch.tensor([0, 0, 1.0])]), east, north * 5)
    assert_close(found.images, torch.tensor([0.0, 1.0, 0.0]))
    assert_close(found.direction, torch.tensor([1.0, 0.0, 0.5]))
    assert_close(found.captions, torch.tensor([1.0, 0.0, 0.0]))


def test_the_filter_keeps_the_best_directions():
    cosines = [0.9, 0.6, 0.8, 0.8, 0.9], [0.3, 0.9, 0.5, 0.1, 0.4], [0.3, 0.3, 0.3, 0.3, 0.1]
    found, strict = ip2p.Likeness(*map(torch.tensor, cosines)), ip2p.Filter()
    assert strict.best(found, 4) == [2, 0] and strict.best(found, 1) == [2] and ip2p.Filter(captions=0.0).best(found, 4) == [2, 4, 0]


def test_without_clip_something_has_to_change_but_not_everything():
    before, after = torch.zeros(2, 4, 10, 10, 3)
    after[1, :3], after[2, :9], after[3, :1] = 0.5, 0.5, 0.5
    plain = ip2p.PlainFilter()
    assert_close(plain.changed(before, after), torch.tensor([0.0, 0.3, 0.9, 0.1]))
    assert plain.best(plain.changed(before, after), 4) == [3, 1] and plain.best(plain.changed(before, after + 0.05), 1) == [3]


def test_prompt_pairs_are_read_line_by_line_with_words_to_choose():
    text = """
    # what can be where
    thing = cat, dog
    बिल्ली = dog, cow
    a {thing} => a {बिल्ली} | turn the {thing} into a {बिल्ली}
    a house => a house in the snow | make it snow
    a house => a house in the snow | make it snow
    """
    animals = [PromptPair(f"a {a}", f"a {b}", f"turn the {a} into a {b}") for a, b in (("cat", "dog"), ("cat", "cow"), ("dog", "cow"))]
    assert prompt_pairs(text) == [*animals, PromptPair("a house", "a house in the snow", "make it snow")]


@pytest.mark.parametrize("text, told", [
    ("", "There is no prompt pair"), ("a => b", "Line 1 is no prompt pair: 'a => b'"), ("\na | b", "Line 2 is no prompt pair"),
    ("a => | b", "Line 1 is no prompt pair"), ("a {x} => b | c", "Line 1 names {x}"),
])  # fmt: skip
def test_a_line_that_is_none_is_named(text, told):
    refused(re.escape(told), prompt_pairs, text)
