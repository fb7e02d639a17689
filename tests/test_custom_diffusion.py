from functools import partial

import pytest
import torch
from controlled_diffusion.training.custom_diffusion import REGULAR, directions, merged, own_rows, without_start
from torch.testing import assert_close

from checks import draw, refused

numbers = partial(draw, dtype=torch.float64)


def test_the_ordinary_sentences_are_many_and_differ():
    assert len(set(REGULAR)) == len(REGULAR) > 300


@pytest.mark.parametrize("sentences", [200, 5])  # more than the width of 24, and fewer
def test_merged_concepts_have_their_own_values_exactly(sentences):
    weight, concepts, values = numbers(16, 24), numbers(6, 24, seed=1), numbers(6, 16, seed=2)
    ways = directions(concepts, numbers(sentences, 24, seed=3))
    assert_close(merged(weight, concepts, values, ways) @ concepts.T, values.T, rtol=0, atol=1e-9)
    assert_close(merged(weight, concepts, concepts @ weight.T, ways), weight)  # concepts that ask for nothing new


def test_rows_that_concepts_share_are_left_out():
    a, b, both = numbers(2, 8), numbers(3, 8, seed=1), numbers(1, 8, seed=2)
    one, two = own_rows([torch.cat([both, a, a[:1]]), torch.cat([both, b])])
    assert torch.equal(one, a) and torch.equal(two, b)
    refused("says nothing that the others do not", own_rows, [both, torch.cat([both, b])])


def test_the_first_token_teaches_nothing():
    k = numbers(2, 5, 3).requires_grad_()
    assert torch.equal(without_start(k), k)
    without_start(k).square().sum().backward()
    assert k.grad[:, 0].abs().max() == 0 and k.grad[:, 1:].abs().min() > 0


def test_of_all_such_weights_it_moves_ordinary_sentences_least():
    weight, concepts, values, regular = numbers(16, 24), numbers(6, 24, seed=1), numbers(6, 16, seed=2), numbers(200, 24, seed=3)
    made, off = merged(weight, concepts, values, directions(concepts, regular)), numbers(16, 24, seed=4)
    off = off - off @ concepts.T @ torch.linalg.pinv(concepts.T)  # changes nothing for the concepts
    assert off.abs().max() > 0.1

    def moved(w):
        return float(((w - weight) @ regular.T).square().sum())

    assert all(moved(made) < moved(made + step * off) for step in (-0.1, -0.01, 0.01, 0.1))
