import pytest
from controlled_diffusion.training.learning import SAMPLES, LossChange, batches


@pytest.mark.parametrize(("steps", "samples", "count"), [(1000, 4, SAMPLES // 4), (1000, 1, SAMPLES), (1000, 5, 7), (50, 1, 5), (9, 4, 0)])
def test_the_comparison_costs_a_tenth_of_the_steps_at_most(steps, samples, count):
    assert batches(steps, samples) == count


CHANGES = {  # losses after, of 1, 2, 3 before
    "halved": ((0.5, 1.0, 1.5), "Loss: 2 before, 1 after training (-50.0%)"),
    "a little, each": ((0.98, 1.96, 2.94), "The loss hardly fell: 2 before, 1.96 after training (-2.0%)"),
    "a lot, of one alone": ((1.0, 2.0, 2.4), "The loss did not fall: 2 before, 1.8 after training (-10.0%)"),
    "unchanged": ((1.0, 2.0, 3.0), "The loss did not fall: 2 before, 2 after training"),
    "risen": ((2.0, 4.0, 6.0), "The loss did not fall: 2 before, 4 after training (+100.0%)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_loss_that_hardly_fell_brings_advice(name):
    after, told = CHANGES[name]
    text = LossChange((1.0, 2.0, 3.0), after).report("train more.")
    assert text.startswith(told) and text.endswith("samples." if told.startswith("Loss") else "If images do not show what you trained: train more.")


def test_one_batch_is_judged_by_its_loss_alone():
    assert not LossChange((2.0,), (1.0,)).is_chance and LossChange((1.0,), (1.0,)).is_chance
