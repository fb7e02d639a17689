"""Null-text inversion on a wild model whose prompt is a vector: T7, torch only."""

from dataclasses import replace

import pytest
import torch
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.method import Derivative, replay
from controlled_diffusion.inversion.null_text import NullText, Predictor, Secant, StepTarget, rate, threshold
from controlled_diffusion.inversion.quality import edges_apart
from torch.testing import assert_close

from denoisers import FAMILIES, MODELS, apart, draw, levels, one, silent, vp

STEPS, CFG = 8, 6.0
SOURCE, EMPTY = (draw(2, 8, 12, seed=s).float() for s in (5, 6))
WAVES = draw(96, 4 * 8 * 8, seed=7).float() / 10


def field(null: torch.Tensor) -> torch.Tensor:
    """What a prompt (B, 8, 12) shifts in the network: another amount at every place."""
    return (null.flatten(1) @ WAVES).view(-1, 4, 8, 8)


class Split(Predictor):
    """A wild model taken apart; it counts the rows that it is asked for."""

    def __init__(self, family, source=SOURCE, cfg=CFG):
        self.model, self.source, self.cfg, self.rows, self.asked = MODELS[family], source, cfg, 0, []

    def predicted(self, x, sigma, prompt):
        self.rows += len(x)
        self.asked.append(len(x))
        return self.model(x, torch.full([len(x)], sigma), field(prompt))

    def conditional(self, x, sigma, rows):
        with torch.no_grad():
            return self.predicted(x, sigma, self.source[rows])

    def unconditional(self, x, sigma, null, rows):
        return self.predicted(x, sigma, null)

    def guided(self, x, sigma, conditional, unconditional, rows):
        return unconditional + self.cfg * (conditional - unconditional)


def scale_of(family):
    return one if family == "flow" else vp


def pivots(family, steps=STEPS, batch=2):
    model = MODELS[family]
    way = Derivative(lambda x, sigma: model(x, sigma, field(SOURCE[: len(x)])), scale_of(family))
    return NullText().encode(way, draw(batch, 4, 8, 8).float(), levels(family, steps), silent)


def optimized(family, method, trajectory=None, predictor=None, image_loss=None):
    trajectory = pivots(family) if trajectory is None else trajectory
    start = (SOURCE if method.start == "source" else EMPTY)[: len(trajectory.states[0][0])]
    predictor = Split(family, SOURCE[: len(start)]) if predictor is None else predictor
    return list(method.optimize(predictor, trajectory, start, scale_of(family), image_loss))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_inner_steps_it_is_ddim_with_plain_guidance(family):
    trajectory = pivots(family)
    found = optimized(family, NullText("empty", inner_steps=0), trajectory)
    split = Split(family)

    def guided(x, sigma):
        s, rows = float(sigma[0]), torch.arange(len(x))
        return split.guided(x, s, split.conditional(x, s, rows), split.unconditional(x, s, EMPTY, rows), rows)

    assert_close(found[-1].x, replay(DDIM(), Derivative(guided, scale_of(family)), trajectory))
    assert all(torch.equal(k.null, EMPTY) and not k.gradients.any() for k in found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [("source", "fast", 4), ("empty", "fast", 8), ("empty", "adam", 10), ("source", "adam", 10)])
def test_the_reconstruction_improves_and_no_loss_grows(family, settings):
    trajectory = pivots(family)
    start, optimizer, inner = settings
    method = NullText(start, optimizer, inner, learning_rate=0.05, early_stop=0.0)
    found, plain = optimized(family, method, trajectory), optimized(family, replace(method, inner_steps=0), trajectory)
    image = trajectory.states[-1][0]
    assert apart(found[-1].x, image) < apart(plain[-1].x, image) * (0.9 if start == "source" else 0.6)
    assert len(found) == STEPS and all(bool((k.loss <= k.first).all()) for k in found)
    assert all(bool((k.gradients == inner).all()) for k in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_papers_space(family):
    """In VP the state is x / sqrt(1 + sigma^2), and the paper's mean square is of that."""
    trajectory = pivots(family)
    first = optimized(family, NullText(inner_steps=0), trajectory)[0]
    shrink = scale_of(family)(trajectory.sigmas[1])
    assert_close(first.loss, (first.x * shrink - trajectory.states[1][0] * shrink).square().mean((1, 2, 3)))


def test_thresholds_and_rates_are_the_papers_at_any_step_count():
    assert [threshold(i, 50) for i in (0, 1, 49)] == pytest.approx([1e-5, 3e-5, 1e-5 + 49 * 2e-5])
    assert threshold(100, 200) == pytest.approx(threshold(25, 50))
    assert [rate(0.01, i, 50) for i in (0, 10, 49)] == pytest.approx([0.01 * (1 - i / 100) for i in (0, 10, 49)])
    assert all(rate(0.01, i, 300) > 0 for i in range(300))


def test_a_step_that_is_good_enough_takes_no_gradient():
    for start, evaluations in (("source", 1), ("empty", 2)):  # from the source one evaluation gives both predictions
        split = Split("eps")
        found = optimized("eps", NullText(start, early_stop=1e6), pivots("eps"), split)
        assert split.rows == 2 * evaluations * STEPS and not any(k.gradients.any() for k in found)


def test_images_stop_by_themselves_and_only_the_others_are_asked():
    trajectory, split = pivots("eps"), Split("eps")
    losses = torch.stack([k.first for k in optimized("eps", NullText(inner_steps=0), trajectory)])
    wanted = losses[0].mean() / threshold(0, STEPS)  # between the two of the first step
    optimized("eps", NullText(inner_steps=3, early_stop=float(wanted)), trajectory, split)
    assert split.asked[0] == 2 and split.asked[1] == 1


@pytest.mark.parametrize("settings", [("source", "fast"), ("empty", "fast"), ("empty", "adam")])
def test_a_batch_is_its_images(settings):
    method, trajectory = NullText(*settings, 3, early_stop=1.0), pivots("v")
    together = optimized("v", method, trajectory)
    for i in range(2):
        part = replace(trajectory, states=tuple((c[0][i : i + 1],) for c in trajectory.states))
        start = (SOURCE if settings[0] == "source" else EMPTY)[i : i + 1]
        alone = list(method.optimize(Split("v", SOURCE[i : i + 1]), part, start, vp))
        for a, b in zip(together, alone):
            assert_close(a.null[i : i + 1], b.null, atol=1e-4, rtol=1e-4)
            assert_close(a.x[i : i + 1], b.x, atol=1e-4, rtol=1e-4)
            assert a.gradients[i] == b.gradients[0]


def test_the_best_embedding_is_kept_where_steps_diverge():
    found = optimized("eps", NullText("empty", "adam", 6, learning_rate=30.0, early_stop=0.0))
    assert all(bool((k.loss <= k.first).all()) for k in found)


def test_smoothness_holds_the_embeddings_together():
    free, smooth, smoother = (optimized("eps", NullText("empty", "fast", 6, early_stop=0.0, smoothness=s)) for s in (0.0, 1.0, 10.0))
    moves = [sum(float((b.null - a.null).square().mean()) for a, b in zip(found, found[1:])) for found in (free, smooth)]
    assert moves[1] < moves[0] / 2
    assert torch.equal(smoother[0].null, free[0].null)  # the first step has nothing to be smooth to
    assert not torch.equal(smoother[1].null, free[1].null)


def test_the_image_loss_is_added_for_its_rows():
    wanted, seen = draw(2, 4, 8, 8, seed=9).float(), []

    def image_loss(denoised, rows):
        seen.append(rows.tolist())
        return 100 * (denoised - wanted[rows]).square().mean((1, 2, 3))

    with_it, without = (optimized("eps", NullText(early_stop=0.0), image_loss=loss) for loss in (image_loss, None))
    assert seen[0] == [0, 1]
    assert apart(with_it[0].denoised, wanted) < apart(without[0].denoised, wanted) * 0.999
    first = without[0].first + 100 * (optimized("eps", NullText(inner_steps=0))[0].denoised - wanted).square().mean((1, 2, 3))
    assert_close(with_it[0].first, first)


def test_secant_steps_solve_a_least_squares_problem():
    """In the eigenvectors of a small quadratic; a fixed rate would need hundreds of steps."""
    weights = torch.tensor([1.0, 3.0, 10.0])
    null, optimizer = torch.ones(2, 1, 3), Secant(torch.full((2, 1, 3), 9.0))
    for _ in range(25):
        loss = (weights * null.square()).sum((1, 2))
        null = optimizer(null, 2 * weights * null, loss, torch.arange(2))
    assert float(loss.max()) < 1e-8


def test_a_secant_step_goes_no_further_than_a_tenth_of_the_start():
    start, flat = torch.full((2, 1, 4), 5.0), torch.full((2, 1, 4), 1e-9)
    moved = Secant(start)(start, flat, torch.ones(2), torch.arange(2))
    assert_close((moved - start).flatten(1).norm(dim=1), torch.full((2,), 1.0))


def test_a_step_target_moves_as_a_ddim_step():
    x, denoised = draw(1, 4, 8, 8).float(), draw(1, 4, 8, 8, seed=1).float()
    target = StepTarget(x, x, 2.0, 1.0, 1.0, 0.0, None)
    assert_close(target.moved(denoised, torch.tensor([0])), x - (x - denoised) / 2)


def test_edges_are_compared_at_several_scales():
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert not edges_apart(a, a).any() and bool((edges_apart(a, b) > 0.1).all())
    assert_close(edges_apart(a + 0.3, a), torch.zeros(2), atol=1e-6, rtol=0)
    coarse = torch.zeros(1, 3, 32, 32)
    coarse[..., 16:] = 1
    assert float(edges_apart(coarse, torch.zeros_like(coarse))) > 0.05
    assert edges_apart(torch.rand(1, 3, 1, 2), torch.rand(1, 3, 1, 2)).shape == (1,)
