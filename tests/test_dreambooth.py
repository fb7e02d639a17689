import torch
from controlled_diffusion.training.dreambooth import Batches, Preservation, class_prompts, instance_prompts, ratio_of

from checks import refused


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
    assert made[0][0] != [0, 1] or made[1][0] != [2, 3]
    assert made == [batches.indices(i) for i in range(6)]
    alone = Batches(3, 5, 4)  # without class images
    assert alone.total == 3 and alone.indices(2)[1] == [] and alone.indices(2)[0] == Batches(3, 5, 4, 9).indices(2)[0]


def test_prompts_are_lines_and_captions_take_their_place():
    assert class_prompts(" a dog \n\na large dog", "<x>") == ("a dog", "a large dog")
    refused("The class prompt 'a <x> dog' names '<x>'", class_prompts, "a dog\na <x> dog", "<x>")
    refused("class prompt is empty", class_prompts, "\n")
    assert instance_prompts("a sks dog", ["", "sks in rain"], 2) == ("a sks dog", "sks in rain")
    refused("instance prompt is empty", instance_prompts, " ", (), 1)


def test_what_makes_no_sense_is_refused():
    for bad in (dict(weight=-1.0), dict(weight=float("nan")), dict(ratio=0)):
        refused("give", Preservation, **bad)
    refused("ratio is '2:1'", ratio_of, "2:1")
