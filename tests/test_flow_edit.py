"""FlowEdit: from image to image by the difference of two prompts under the same noise."""

import pytest
import torch
from controlled_diffusion.guidance.diffedit import mixed
from controlled_diffusion.inversion.flow_edit import flow_edit, step_counts
from controlled_diffusion.inversion.noise import draw_like, noised
from torch.testing import assert_close

from checks import refused
from denoisers import FAMILIES, apart, derivative, draw, levels

STEPS = 10


def noising(family):
    return lambda sigma, noise, x0: noised(x0, noise, sigma, family == "flow")


def edit(family, source=None, target=None, x0=None, **counts):
    source = derivative(family, 1.5, 0.0) if source is None else source
    target = derivative(family, 3.0, 1.0) if target is None else target
    counts = dict(n_max=0.7, seed=3) | counts
    return flow_edit(source, target, draw() if x0 is None else x0, levels(family, STEPS), noising(family), **counts)


def by_hand(family, n_max, n_min, n_avg, seed=3):
    """The paper's algorithm, line by line, in its own state z_edit."""
    source, target, sigmas = derivative(family, 1.5, 0.0), derivative(family, 3.0, 1.0), levels(family, STEPS)
    generator, x0, z_edit = torch.Generator().manual_seed(seed), draw(), draw()

    def noisy(now):
        return (1 - now if family == "flow" else 1) * x0 + now * draw_like(x0, generator)

    for now, goal in zip(sigmas[STEPS - n_max : STEPS - n_min], sigmas[STEPS - n_max + 1 :]):
        total = 0
        for _ in range(n_avg):
            z_source = noisy(now)
            total = total + target(z_edit + z_source - x0, now) - source(z_source, now)
        z_edit = z_edit + (goal - now) * total / n_avg
    if not n_min:
        return z_edit
    x = z_edit + noisy(sigmas[STEPS - n_min]) - x0
    for now, goal in zip(sigmas[STEPS - n_min :], sigmas[STEPS - n_min + 1 :]):
        x = x + (goal - now) * target(x, now)
    return x


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_max, n_min, n_avg", [(10, 0, 1), (7, 0, 3), (6, 2, 1), (3, 3, 2)])
def test_it_is_the_papers_algorithm(family, n_max, n_min, n_avg):
    found = edit(family, n_max=n_max / STEPS, n_min=n_min / STEPS, n_avg=n_avg)
    assert_close(found, by_hand(family, n_max, n_min, n_avg), atol=1e-5, rtol=1e-5)
    assert apart(found, draw()) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_zeta_draws_the_clean_predictions_together_as_flowalign_does(family):
    """`z += ds (v_p - v_q) + zeta (D_q - D_p)` line by line, D = x - sigma v."""
    source, target, zeta = derivative(family, 1.5, 0.0), derivative(family, 3.0, 1.0), 0.05
    generator, x0, z, sigmas = torch.Generator().manual_seed(3), draw(), draw(), levels(family, STEPS)
    for now, goal in zip(sigmas, sigmas[1:]):
        q = (1 - now if family == "flow" else 1) * x0 + now * draw_like(x0, generator)
        p = z + q - x0
        v_q, v_p = source(q, now), target(p, now)
        z = z + (goal - now) * (v_p - v_q) + zeta * ((q - now * v_q) - (p - now * v_p))
    found = edit(family, n_max=1.0, zeta=zeta)
    assert_close(found, z, atol=1e-5, rtol=1e-5)
    assert apart(found, edit(family, n_max=1.0)) > 1e-2
    assert torch.equal(edit(family, n_max=1.0, zeta=0.0), edit(family, n_max=1.0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_max", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n_avg", [1, 3])
def test_the_same_prompt_and_cfg_give_the_image_back(family, n_max, n_avg):
    assert apart(edit(family, target=derivative(family, 1.5, 0.0), n_max=n_max, n_avg=n_avg), draw()) < 1e-12


def test_evaluations_and_steps_are_counted():
    source, target, seen = derivative("flow"), derivative("flow", 1.0, 1.0), []
    assert torch.equal(edit("flow", source, target, n_max=0), draw())
    assert source.calls == target.calls == 0
    edit("flow", source, target, n_max=0.8, n_min=0.3, n_avg=2, show=lambda x, denoised: seen.append(denoised.shape))
    assert (source.calls, target.calls) == (5, 5 + 3), "the noises of a step are one batch"
    assert seen == [(2, 4, 8, 8)] * 8


@pytest.mark.parametrize("family", FAMILIES)
def test_more_steps_change_more(family):
    changes = [apart(edit(family, n_max=n), draw()) for n in (0.2, 0.5, 1.0)]
    assert changes[0] < changes[1] < changes[2]


def test_averaging_noises_steadies_the_edit():
    def spread(n_avg):
        return float(torch.stack([edit("flow", n_avg=n_avg, seed=seed) for seed in range(6)]).std(0).mean())

    assert spread(8) < 0.6 * spread(1)


class Watch:
    """A derivative that keeps what it is asked."""

    denoised = draw()

    def __init__(self):
        self.inner, self.seen = derivative("flow"), []

    def __call__(self, x, at):
        self.seen.append((x, at))
        return self.inner(x, at)


def test_every_step_has_fresh_noise_and_both_prompts_share_it():
    source, target = Watch(), Watch()
    edit("flow", source, target, n_avg=2)
    for (a, _), (b, _) in zip(source.seen, target.seen):
        assert_close(a, b)  # equal prompts: the edit stays nothing, so both see the same
    noises = [(x - (1 - at) * draw()) / at for a, at in source.seen for x in a.split(2)]
    assert len(noises) == 14
    assert all(abs(float((n * m).mean())) < 0.3 for i, n in enumerate(noises) for m in noises[:i])


def test_seeds_differ_and_images_of_a_batch_are_edited_as_alone():
    assert torch.equal(edit("flow"), edit("flow"))
    assert not torch.allclose(edit("flow"), edit("flow", seed=4), atol=1e-3)
    assert_close(edit("flow")[1:], edit("flow", x0=draw()[1:]))


@pytest.mark.parametrize("n_min", [0.0, 0.3])
def test_off_the_mask_the_image_stays_bit_for_bit(n_min):
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 4:] = 1
    found = edit("flow", n_min=n_min, within=lambda inside, outside: mixed(inside, outside, mask))
    assert torch.equal(found[..., :4], draw()[..., :4])
    assert apart(found[..., 4:], draw()[..., 4:]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_min", [0.0, 0.3])
def test_a_soft_mask_takes_its_share_of_every_step(family, n_min):
    """`z += ds M (v_target - v_source)`; in the plain steps at the end the source's path is that of the noise."""
    source, target, sigmas = derivative(family, 1.5, 0.0), derivative(family, 3.0, 1.0), levels(family, STEPS)
    mask, generator, x0 = torch.linspace(0, 1, 8, dtype=torch.float64).expand(1, 1, 8, 8), torch.Generator().manual_seed(3), draw()
    z, plain = x0.clone(), STEPS - round(n_min * STEPS)
    for i, (now, goal) in enumerate(zip(sigmas, sigmas[1:])):
        if i <= plain:
            noise = draw_like(x0, generator)
        q = noising(family)(now, noise, x0)
        v_source = source(q, now) if i < plain else (q - noising(family)(goal, noise, x0)) / (now - goal)
        z = z + (goal - now) * mask * (target(z + q - x0, now) - v_source)
    within = dict(within=lambda inside, outside: mixed(inside, outside, mask))
    assert_close(edit(family, n_max=1.0, n_min=n_min, **within), z, atol=1e-6, rtol=1e-6)
    ones = dict(within=lambda inside, outside: mixed(inside, outside, torch.ones_like(mask)))
    assert torch.equal(edit(family, n_max=1.0, n_min=n_min, **ones), edit(family, n_max=1.0, n_min=n_min))


@pytest.mark.parametrize("steps, n_max, n_min, expected", [
    (50, 0.66, 0.0, (33, 0)), (28, 0.86, 0.0, (24, 0)), (20, 0.66, 0.1, (13, 2)), (20, 0.01, 0.01, (1, 1)), (20, 0.0, 0.0, (0, 0)),
])  # fmt: skip
def test_shares_mean_the_same_at_every_number_of_steps(steps, n_max, n_min, expected):
    """33 of 50 (SD3) and 24 of 28 (Flux) in the paper's code."""
    assert step_counts(steps, n_max, n_min) == expected


@pytest.mark.parametrize("counts, message", [
    (dict(n_max=33), "n_max is 33 and n_min 0; give shares of the steps, 0 <= n_min <= n_max <= 1"),
    (dict(n_max=0.3, n_min=0.4), "n_max is 0.3 and n_min 0.4"),
    (dict(n_min=-0.1), "n_min -0.1"),
    (dict(n_avg=0), "n_avg is 0; give 1"),
])  # fmt: skip
def test_impossible_shares_are_refused(counts, message):
    refused(message, edit, "flow", **counts)
