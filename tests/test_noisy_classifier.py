import pytest
import torch
from controlled_diffusion.guidance.classifier import NoisyClassifier
from controlled_diffusion.training.loop import Loop
from controlled_diffusion.training.noisy_classifier import (
    accuracy,
    batch_loss,
    begin_at_shares,
    classification_loss,
    held_out,
    initialize,
    shares_as_logits,
    targets_of,
)
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
    rows = accuracy(network, latents, targets, kind, shares_as_logits(targets, kind), 5)
    assert [level for level, _ in rows] == [-6.0, -3.0, 0.0, 3.0, 6.0]
    assert rows[-1][1] > 0.97 and rows[0][1] < rows[-1][1]


def test_rare_labels_weigh_as_much_as_others():
    """Where nothing is told apart; and there the loss has its minimum, so that the logits are those of p(label)."""
    targets = (torch.arange(1000)[:, None] < torch.tensor([5, 50, 500, 950])).float()
    known = shares_as_logits(targets, "independent")
    assert_close(known.sigmoid(), targets.mean(0), atol=1e-3, rtol=0.0)
    logits = known.repeat(1000, 1).requires_grad_(True)
    classification_loss(logits, targets, "independent", known).backward()
    present, absent = (logits.grad * targets).sum(0), (logits.grad * (1 - targets)).sum(0)
    assert_close(present, torch.full((4,), -1 / 16), rtol=0.1, atol=0.0)
    assert_close(present + absent, torch.zeros(4), rtol=0.0, atol=0.01)


@pytest.mark.parametrize("kind", ["independent", "exclusive"])
def test_a_classifier_begins_at_the_shares_of_its_labels(kind):
    targets = torch.eye(4)[torch.arange(40) % 10 // 3]
    network = begin_at_shares(initialize(NoisyClassifier(4, 4, widths=(8, 16)), 0), targets, kind)
    torch.nn.init.zeros_(network.head[-1].weight)
    logits = network(torch.randn(2, 4, 6, 6), torch.zeros(2))
    share = logits.sigmoid() if kind == "independent" else logits.softmax(1)
    assert_close(share[0], torch.tensor([0.3, 0.3, 0.3, 0.1]), atol=0.01, rtol=0.0)
    never = begin_at_shares(network, torch.zeros(40, 4), kind)(torch.randn(2, 4, 6, 6), torch.zeros(2))
    assert never.isfinite().all()


def test_labels_that_few_images_have_are_learned():
    draw = torch.Generator().manual_seed(0)
    has = (torch.rand(600, 24, generator=draw) < 0.04).float()
    looks, noise = (torch.randn(count, 4, 6, 6, generator=draw) for count in (24, 600))
    latents = (noise + torch.einsum("nl,lchw->nchw", has, looks)) / 1.4
    network = begin_at_shares(initialize(NoisyClassifier(4, 24, widths=(8, 16)), 0), has, "independent")
    loop = Loop(dict(network.named_parameters()), steps=100, learning_rate=5e-3, warmup=5, average=0.0)
    list(loop.run(lambda index: batch_loss(network, latents, has, index, batch=64)))
    with torch.no_grad():
        said = torch.nn.functional.logsigmoid(network(latents, torch.full((600,), 6.0)))
    known = torch.nn.functional.logsigmoid(shares_as_logits(has, "independent"))
    assert float(((said - known) * has).sum() / has.sum()) > 2.0


class Says(torch.nn.Module):
    """A classifier that always says the same."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, x, log_snr):
        return self.logits.expand(len(x), -1)


def accuracy_of(network, targets, kind="independent"):
    """Of ten empty latents, at the noisiest level."""
    rows = accuracy(network, torch.zeros(10, 4, 2, 2), targets, kind, shares_as_logits(targets, kind), 2)
    return rows[0][1] if rows else None


def test_saying_the_same_of_everything_is_chance():
    rare = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 9)
    for kind, expected in (("independent", 0.5), ("exclusive", 0.9)):
        assert_close(accuracy_of(Says(-1.0, 1.0), rare, kind), expected)
    never, one = Says(*[-9.0] * 50), torch.eye(5)[torch.arange(10) % 5]  # labels that some images lack count
    assert_close(accuracy_of(never, torch.nn.functional.pad(one, (0, 45))), 0.5)
    assert accuracy_of(never, torch.zeros(10, 50)) is None


def test_a_rare_label_is_said_where_it_is_likelier_than_on_average():
    class Sees(torch.nn.Module):
        """A third where the label is, one in a hundred where not: never likelier than not."""

        def __init__(self, has):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.where(has > 0.5, 1 / 3, 0.01).logit())

        def forward(self, x, log_snr):
            return self.logits

    has = torch.eye(10)[:, :1]
    assert_close(accuracy_of(Sees(has), has), 1.0)


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
