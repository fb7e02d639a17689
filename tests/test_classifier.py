"""Classifier guidance against exact answers, and what the classifier file promises."""

import pytest
import torch
from controlled_diffusion.guidance import classifier as guidance
from controlled_diffusion.guidance.classifier import ClassifierGradient, LabeledClassifier, NoisyClassifier, unit_variance
from controlled_diffusion.guidance.latent_space import LatentSpace
from controlled_diffusion.guidance.schedules import NoiseScale
from torch.testing import assert_close

from checks import draw, refused

VP = NoiseScale(tuple(14.6 * (0.03 / 14.6) ** (i / 100) for i in range(101)))
FLOW = NoiseScale(tuple(1 - 0.999 * i / 100 for i in range(101)), True)
LABELS, SPACE = ("red", "blue", "circle"), LatentSpace("SD15", (0.0,) * 4 + (0.18,) * 4)


def gaussian(x, sigma, flow, y, spread=0.3):
    """Data N(0, 1) seen through x, and a label y = N(x0, spread^2): (E[x0 | x], E[x0 | x, y], log p(y | x))."""
    a = 1 - sigma if flow else 1.0
    variance = 1 / (1 + a**2 / sigma**2)
    mean = variance * a * x / sigma**2
    both = 1 / (1 / variance + 1 / spread**2)
    posterior = both * (mean / variance + y / spread**2)
    return mean, posterior, lambda x: -((y - variance * a * x / sigma**2) ** 2) / (2 * (variance + spread**2))


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.9])
def test_guidance_gives_the_exact_gaussian_posterior(flow, sigma):
    x = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, posterior, log_p = gaussian(x, sigma, flow, y=0.7)
    gradient = guidance.gradient_of(lambda part: log_p(part).flatten(), x)
    assert_close(mean + guidance.towards(gradient, sigma, flow), posterior, rtol=1e-12, atol=1e-12)


def test_flow_stays_finite_at_pure_noise_and_exact_up_to_there():
    one = torch.ones(1, dtype=torch.float64)
    assert [float(guidance.towards(one, s, True)) for s in (1.0, 0.985)] == pytest.approx([1 / 0.01, 0.985**2 / 0.015])


def test_a_gradient_in_parts_is_the_whole_gradient():
    x, sizes = draw(5, 3, seed=2), []
    assert_close(guidance.gradient_of(lambda part: sizes.append(len(part)) or part.square().sum(1), x, batch=2), 2 * x)
    assert sizes == [2, 2, 1]


def test_the_classifier_knows_the_noise_level(classifier):
    clean, noisy = (classifier.network(draw(1, 4, 8, 8, seed=3), torch.tensor([level])) for level in (5.0, -5.0))
    assert not torch.allclose(clean, noisy, atol=1e-4)


@pytest.mark.parametrize("flow", [False, True])
def test_data_of_unit_variance_keeps_it(flow):
    x = (0.3 if flow else 1) * draw(200_000, seed=1) + 0.7 * draw(200_000, seed=2)
    assert float(unit_variance(x, 0.7, flow).std()) == pytest.approx(1, abs=0.01)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return LabeledClassifier(NoisyClassifier(4, len(LABELS), widths=(8, 16)).eval(), LABELS, SPACE)


def test_labels_are_read_by_name_with_weights(classifier):
    assert classifier.choices("red, circle:0.5\nblue:-2") == {0: 1.0, 2: 0.5, 1: -2.0}


def test_wrong_labels_and_kinds_are_refused(classifier):
    for text, words in (("green", "red, blue, circle"), ("", "Name one or more"), ("red:x", "'red:x'"), ("red:0", "other than 0")):
        refused(words, classifier.choices, text)
    refused("independent, exclusive", LabeledClassifier, classifier.network, LABELS, "SD15", "both")


def test_independent_labels_are_logistic_exclusive_softmax(classifier):
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    p = logits.sigmoid()
    assert_close(classifier.log_probability(logits, {0: 1.0, 2: -0.5}), p[:, 0].log() + 0.5 * (1 - p[:, 2]).log())
    exclusive, p = LabeledClassifier(classifier.network, LABELS, SPACE, "exclusive"), logits.softmax(1)
    assert_close(exclusive.log_probability(logits, {0: 2.0, 2: -1.0}), 2 * p[:, 0].log() + (1 - p[:, 2]).log())


@pytest.mark.parametrize("scale", [VP, FLOW], ids=["eps", "flow"])
def test_the_gradient_raises_the_probability_at_any_batch_size(classifier, scale):
    x = draw(5, 4, 8, 8, seed=2)
    sigma = 0.6
    whole = ClassifierGradient(classifier, {0: 1.0})(x, sigma, x, scale)
    parts = ClassifierGradient(classifier, {0: 1.0}, batch=2)(x, sigma, x, scale)
    assert_close(whole, parts)

    def log_p(x):
        log_snr = torch.full((5,), scale.log_snr(sigma))
        return classifier.log_probability(classifier.network(unit_variance(x, sigma, scale.flow), log_snr), {0: 1.0})

    assert (log_p(x + 0.05 * whole / whole.std()) > log_p(x)).all()
    size = sigma**2 / (1 - sigma) if scale.flow else sigma**2
    step = 1e-2 * whole / whole.square().sum((1, 2, 3), keepdim=True).sqrt()
    rise = (log_p(x + step) - log_p(x - step)) / 2
    assert_close(rise, 1e-2 * whole.square().sum((1, 2, 3)).sqrt() / size, rtol=0.02, atol=1e-6)


def test_a_video_is_scored_by_the_mean_over_its_frames(classifier):
    still, gradient = draw(1, 4, 1, 8, 8, seed=3).repeat(1, 1, 3, 1, 1), ClassifierGradient(classifier, {0: 1.0})
    assert_close(gradient(still, 0.5, still, VP).sum(2), gradient(still[:, :, 0], 0.5, still, VP))


def test_the_gradient_is_taken_within_inference_mode_too(classifier):
    x, gradient = draw(2, 4, 8, 8, seed=4), ClassifierGradient(classifier, {1: 1.0})
    outside = gradient(x, 0.5, x, VP)
    with torch.inference_mode():
        assert_close(gradient(x.clone(), 0.5, x, VP), outside)
