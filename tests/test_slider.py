import torch
from controlled_diffusion.training.slider import prompt_sets, target

from checks import refused


def test_attributes_go_before_the_prompts_or_into_them():
    assert prompt_sets("person", "old person", "young person", ["man, ", " ", "woman,"]) == (
        ("man, person", "man, old person", "man, young person"),
        ("woman, person", "woman, old person", "woman, young person"),
    )
    assert prompt_sets("a {}", "a large {}", "a {} that is small", ["red star"]) == (("a red star", "a large red star", "a red star that is small"),)
    assert prompt_sets("", "old", "") == (("", "old", ""),)


def test_prompts_that_train_nothing_are_refused():
    refused("are both 'old'", prompt_sets, "a", "old", " old ")
    refused("'a {}' has a {}, but preserve is empty", prompt_sets, "a {}", "b", "c")


def test_the_target_moves_apart_at_both_strengths():
    neutral, positive, negative = torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([2.0])
    assert [float(target(neutral, positive, negative, s * 2.0)) for s in (1, -1, 0)] == [7, -5, 1]
