import pytest
import torch
from controlled_diffusion.training.dreambooth import Batches, Preservation, class_prompts, instance_prompts, ratio_of


def test_the_loss_adds_lambda_times_that_of_the_class():
    errors = torch.tensor([1.0, 3.0, 10.0, 20.0, 30.0, 40.0])
    assert float(Preservation(0.5).loss(errors, 2)) == 2 + 0.5 * 25
    assert float(Preservation(0.0).loss(errors, 2)) == float(Preservation(7.0).loss(errors[:2], 2)) == 2


def test_batches_hold_the_ratio_and_take_all_images_in_turn():
    batches = Batches(2, 3, 6, 8, ratio=2)
    made = [batches.indices(i) for i in range(6)]
    assert batches.total == 6 and all(len(own) == 2 and len(prior) == 4 for own, prior in made)
    assert sorted(p for own, _ in made[:3] for p in own) == list(range(6))
    assert sorted(p for _, prior in made[:2] for p in prior) == list(range(8))
    assert made[0][0] != sorted(p for own, _ in made[:3] for p in own)[:2] or made[1][0] != [2, 3]
    assert made == [batches.indices(i) for i in range(6)]


def test_without_class_images_a_batch_is_the_subject_alone():
    alone = Batches(3, 5, 4)
    assert alone.total == 3 and alone.indices(2)[1] == [] and alone.indices(2)[0] == Batches(3, 5, 4, 9).indices(2)[0]


def test_class_prompts_are_lines_without_the_new_word():
    assert class_prompts(" a dog \n\na large dog", "<x>") == ("a dog", "a large dog")
    with pytest.raises(ValueError, match="The class prompt 'a <x> dog' names <x>"):
        class_prompts("a dog\na <x> dog", "<x>")
    with pytest.raises(ValueError, match="class prompt is empty"):
        class_prompts("\n")


def test_a_caption_takes_the_place_of_the_instance_prompt():
    assert instance_prompts("a sks dog", ["", "sks in rain"], 2) == ("a sks dog", "sks in rain")
    with pytest.raises(ValueError, match="instance prompt is empty"):
        instance_prompts(" ", (), 1)


@pytest.mark.parametrize("bad", [dict(weight=-1.0), dict(weight=float("nan")), dict(ratio=0)])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match="give"):
        Preservation(**bad)
    with pytest.raises(ValueError, match="ratio '2:1'"):
        ratio_of("2:1")
