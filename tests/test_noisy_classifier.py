import pytest
import torch
from controlled_diffusion.guidance.classifier import NoisyClassifier
from controlled_diffusion.training.loop import Loop
from controlled_diffusion.training.noisy_classifier import accuracy, batch_loss, held_out, initialize, targets_of
from torch.testing import assert_close

from checks import refused


def data(count=200):
    """Latents whose class is the sign of their mean: easy when clean, hidden in noise."""
    draw = torch.Generator().manual_seed(0)
    positive = torch.arange(count) % 2
    latents = torch.randn(count, 4, 6, 6, generator=draw) * 0.5 + (2.0 * positive - 1)[:, None, None, None]
    return latents, torch.stack([positive, 1 - positive], 1).float()


@pytest.mark.parametrize("kind", ["independent", "exclusive"])
def test_it_learns_labels_and_knows_less_in_noise(kind):
    latents, targets = data()
    network = initialize(NoisyClassifier(4, 2, widths=(8, 16)), 0)
    loop = Loop(dict(network.named_parameters()), steps=60, learning_rate=3e-3, warmup=5, average=0.0)
    list(loop.run(lambda index: batch_loss(network, latents, targets, index, kind=kind, batch=32)))
    rows = accuracy(network, latents, targets, kind, 5)
    assert [level for level, _ in rows] == [-6.0, -3.0, 0.0, 3.0, 6.0]
    assert rows[-1][1] > 0.97 and rows[0][1] < rows[-1][1]


class Says(torch.nn.Module):
    """A classifier that always says the same."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, x, log_snr):
        return self.logits.expand(len(x), -1)


def test_saying_the_same_of_everything_is_chance():
    latents, rare = torch.zeros(10, 4, 2, 2), torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 9)
    for kind, expected in (("independent", 0.5), ("exclusive", 0.9)):
        assert_close(accuracy(Says(-1.0, 1.0), latents, rare, kind, 2)[0][1], expected)
    never, one = Says(*[-1.0] * 50), torch.eye(5)[torch.arange(10) % 5]  # labels that some images lack count
    assert_close(accuracy(never, latents, torch.nn.functional.pad(one, (0, 45)), "independent", 2)[0][1], 0.5)
    assert accuracy(never, latents, torch.zeros(10, 50), "independent") == []


def test_labels_are_read_between_commas():
    labels, targets = targets_of(["red, big", "blue", " big,red,red "], "independent")
    assert labels == ("red", "big", "blue")
    assert_close(targets, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("given, kind, message", [
    (["a", "b, c"], "exclusive", r"Image 2 has 2 labels \(b, c\)"),
    (["a", ""], "exclusive", r"Image 2 has 0 labels \(none\)"),
    (["a", "a"], "exclusive", "nothing to tell apart: the labels are a"),
    (["", ""], "independent", "nothing to tell apart: the labels are none"),
    (["a, b", "a"], "independent", "Every image has the label 'a'"),
    (["a:b", "c"], "independent", "holds a colon"),
])  # fmt: skip
def test_labels_that_teach_nothing_are_refused(given, kind, message):
    refused(message, targets_of, given, kind)


def test_images_are_held_out_at_random_and_never_learned_from():
    own, judged = held_out(50, 0.2, seed=1)
    assert len(judged) == 10 and sorted([*own.tolist(), *judged.tolist()]) == list(range(50))
    assert judged.tolist() != held_out(50, 0.2, seed=2)[1].tolist() and torch.equal(judged, held_out(50, 0.2, seed=1)[1])
    both = held_out(5, 0.0, seed=1)
    assert torch.equal(*both) and len(both[0]) == 5
    refused(r"share of 1\.0 of the images", held_out, 5, 1.0, 0)
    refused(r"share of 0\.9 of 4 images holds all of them out", held_out, 4, 0.9, 0)
