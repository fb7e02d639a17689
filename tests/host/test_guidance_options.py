"""Guidance beyond plain CFG: each option against ComfyUI's own nodes or its paper's formula, and neutral by default."""

import gc
import weakref
from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_apg import APG
from controlled_diffusion.guidance.directions import Shaping
from controlled_diffusion.guidance.image_guidance import ImageGradient
from controlled_diffusion.guidance.multi_cfg import Channel, GuidanceTerm, Rules
from controlled_diffusion.guidance.record import Record, distinct
from controlled_diffusion.guidance.schedules import CfgPlusPlus, NoiseScale, Schedule, Span
from controlled_diffusion.nodes.host.guidance.guidance_run import GuidanceStep
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper, record_of
from controlled_diffusion.nodes.multi_cfg import GuidanceChannel, GuidanceReport
from controlled_diffusion.nodes.schedules import GuidanceSchedule
from controlled_diffusion.nodes.sdedit import SDEditSampler
from nodes import common_ksampler

from compare import assert_close
from host.sampling import STEPS, Count, cfg_guider, half_mask, ksampler, run, sigmas_of
from host.tiny import conditioning
from host.tiny import unet as tiny_unet

EMPTY, CAT, DOG = (conditioning(i) for i in range(3))
CLOSE = dict(atol=2e-4, rtol=2e-4)
NEVER = Rules(interval=Schedule(start=0.999, end=0.9995))
pytestmark = pytest.mark.usefixtures("inference_mode")


def host_cfg(model, cfg: float, positive=CAT):
    return cfg_guider(model, positive, EMPTY, cfg)


def ours(model, cfg: float, **rules):
    return MultiCFG(model, EMPTY, [Channel(CAT, cfg)], Rules(**rules))


APG_KNOBS = dict(apg_eta=0.0), dict(apg_eta=0.5, apg_norm=5.0), dict(apg_eta=0.0, apg_momentum=-0.5, apg_norm=8.0)


@pytest.mark.parametrize("knobs", APG_KNOBS, ids=str)
def test_apg_is_the_hosts_node_at_one_scale_less(any_model, knobs):
    """ComfyUI's node adds its scale to a prediction that has weight 1 already; the paper's w is one more."""
    patched = APG.execute(any_model, knobs["apg_eta"], knobs.get("apg_norm", 0.0), knobs.get("apg_momentum", 0.0)).args[0]
    assert_close(run(ours(any_model, 4.0, shaping=Shaping(**knobs))), run(host_cfg(patched, 3.0)), **CLOSE)


def test_apg_is_neutral_by_default_only(eps_model):
    plain = run(host_cfg(eps_model, 4.0))
    assert torch.equal(run(ours(eps_model, 4.0, shaping=Shaping())), plain)
    assert not torch.allclose(run(ours(eps_model, 4.0, shaping=Shaping(apg_eta=0.0))), plain, atol=1e-2)


APG_SHAPING = Shaping(apg_eta=0.0, apg_momentum=-0.5, apg_norm=6.0)
SHAPINGS = pytest.mark.parametrize("shaping", [APG_SHAPING, Shaping(zero_star=True)], ids=["apg", "zero star"])


@SHAPINGS
def test_shaping_acts_on_primary_and_other_channels_alike(eps_model, shaping):
    """A mask of ones keeps a channel from being the primary."""
    cat, dog, everywhere = Channel(CAT, 4.0), Channel(DOG, 2.0), torch.ones(1, 8, 8)
    first = run(MultiCFG(eps_model, EMPTY, [cat, dog], Rules(shaping=shaping)))
    for order in ([dog, cat], [replace(cat, mask=everywhere), dog], [replace(dog, mask=everywhere), replace(cat, mask=everywhere)]):
        assert_close(run(MultiCFG(eps_model, EMPTY, order, Rules(shaping=shaping))), first, atol=1e-3, rtol=1e-3)


@SHAPINGS
def test_outside_the_interval_shaping_rests(any_model, shaping):
    rules = replace(NEVER, shaping=shaping)
    for mask in (None, torch.ones(1, 8, 8)):
        assert_close(run(MultiCFG(any_model, EMPTY, [Channel(CAT, 4.0, mask=mask)], rules)), run(host_cfg(any_model, 1.0)), **CLOSE)


def test_apg_under_the_patch_is_apg_under_the_guider(eps_model):
    """Momentum does not pass from run to run."""
    rules, channels = Rules(shaping=APG_SHAPING), [Channel(CAT, 4.0), Channel(DOG, 2.0)]
    patched, guider = MultiCFGWrapper(channels[1:], rules).install(eps_model), MultiCFG(eps_model, EMPTY, channels, rules)
    made = run(guider)
    assert_close(ksampler(patched, CAT, EMPTY, 4.0), made, **CLOSE)
    assert torch.equal(run(guider), made)


@pytest.fixture
def steps(monkeypatch):
    """(sigma, what momentum remembers, the run) at the start of each prediction."""
    seen, begin = [], GuidanceStep.__init__

    def watched(step, run, conds, x, timestep):
        seen.append((float(timestep.max()), [t for group in run.groups for t in group.running.values()], weakref.ref(run)))
        begin(step, run, conds, x, timestep)

    monkeypatch.setattr(GuidanceStep, "__init__", watched)
    return seen


def test_momentum_holds_no_graph_and_ends_with_the_run(eps_model, steps):
    gradient = ImageGradient(lambda z: z.square().mean((1, 2, 3)), through_denoiser=True)
    channels, rules = [Channel(CAT, 4.0), Channel(None, 0.1, gradient=gradient)], Rules(shaping=Shaping(apg_momentum=-0.5))
    guider, patched = MultiCFG(eps_model, EMPTY, channels, rules), MultiCFGWrapper(channels[1:], rules).install(eps_model)
    run(guider), ksampler(patched, CAT, EMPTY, 4.0)
    kept = [t for _, remembered, _ in steps for t in remembered]
    assert kept and not any(t.requires_grad for t in kept)
    gc.collect()
    assert all(run() is None for *_, run in steps)


def test_momentum_is_forgotten_where_the_noise_rises(eps_model, steps):
    run(ours(eps_model, 4.0, shaping=Shaping(apg_eta=0.0, apg_momentum=-0.5), norm_cap=9.0), sigmas=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0]))
    assert [(sigma, bool(kept)) for sigma, kept, _ in steps] == [(1.0, False), (0.5, True), (2.0, False), (1.0, True)]


@pytest.mark.parametrize("shaping", [Shaping(), Shaping(apg_eta=0.0, apg_momentum=-0.5)], ids=["plain", "momentum"])
def test_a_channel_that_is_connected_twice_counts_twice(eps_model, shaping):
    for one in (Channel(CAT, 2.0), Channel(CAT, 2.0, negative=True)):
        twice, copied = (run(MultiCFG(eps_model, EMPTY, [one, other], Rules(shaping=shaping))) for other in (one, replace(one)))
        assert torch.equal(twice, copied) and not torch.allclose(twice, run(MultiCFG(eps_model, EMPTY, [one], Rules(shaping=shaping))))


def test_zero_star_is_the_papers_formula_on_velocities(any_model):
    """v = a v_u + w (v_c - a v_u) with a = <v_c, v_u> / |v_u|^2. ComfyUI's node scales the predicted image instead."""
    star = ours(any_model, 4.0, shaping=Shaping(zero_star=True))
    guiders = ours(any_model, 4.0, zero_init_percent=1.0), host_cfg(any_model, 1.0), host_cfg(any_model, 1.0, EMPTY), star
    start, *moved = (run(guider, sigmas=torch.tensor([0.6, 0.3])).double().flatten() for guider in guiders)
    conditioned, null, guided = (m - start for m in moved)
    fitted = (conditioned @ null) / (null @ null) * null
    assert_close(guided, fitted + 4.0 * (conditioned - fitted), atol=1e-4, rtol=1e-3)


def test_zero_init_leaves_the_latent_and_evaluates_nothing(flow_model):
    counted = Count(flow_model)
    run(ours(counted.model, 4.0, zero_init_percent=0.3))
    still = sum(float(s) > float(flow_model.get_model_object("model_sampling").percent_to_sigma(0.3)) for s in sigmas_of(flow_model)[:-1])
    assert still and counted.rows == 2 * (STEPS - still)
    early = (ours(flow_model, 4.0, zero_init_percent=0.3), ours(flow_model, 1.0, zero_init_percent=1.0))
    assert_close(*(run(guider, sigmas=torch.tensor([1.0, 0.99])) for guider in early))


RULES = dict(), dict(shaping=Shaping(apg_eta=0.0, apg_momentum=-0.5)), dict(conflict="project"), dict(rescale=0.7)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_outside_the_interval_the_unconditional_is_not_evaluated(any_model, rules):
    counted, interval = Count(any_model), Schedule(start=0.3, end=0.6)
    model_sampling = any_model.get_model_object("model_sampling")
    low, high = (float(model_sampling.percent_to_sigma(p)) for p in (0.6, 0.3))
    inside = sum(low <= float(s) <= high for s in sigmas_of(any_model, 10)[:-1])
    run(ours(counted.model, 4.0, interval=interval, **rules), sigmas=sigmas_of(any_model, 10))
    assert torch.equal(run(ours(any_model, 4.0, interval=Schedule())), run(host_cfg(any_model, 4.0))), "the whole interval is plain CFG"
    assert 0 < inside < 10 and counted.rows == 10 + inside


@pytest.mark.parametrize("rules", [dict(), dict(shaping=Shaping(apg_eta=0.0)), dict(rescale=0.7)], ids=str)
def test_an_interval_that_holds_no_step_is_the_conditional_model(any_model, rules):
    assert torch.equal(run(ours(any_model, 4.0, interval=NEVER.interval, **rules)), run(host_cfg(any_model, 1.0)))


class Ones:
    """A gradient term that is seen wherever it acts."""

    through_denoiser, latent_format = False, None

    def __call__(self, x, sigma, denoised, scale):
        return torch.ones_like(denoised)


RESTING = dict(negative=True), dict(interval=Schedule(start=0.9991, end=0.9993)), dict(gradient=Ones())


@pytest.mark.parametrize("further", RESTING, ids=["negative", "off", "gradient"])
def test_outside_the_interval_other_channels_rest(eps_model, further):
    """But a channel with an interval of its own keeps it."""
    channel = Channel(None if "gradient" in further else DOG, 3.0, **further)
    assert torch.equal(run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 4.0), channel], NEVER)), run(host_cfg(eps_model, 1.0)))
    counted = Count(eps_model)
    run(MultiCFG(counted.model, EMPTY, [Channel(CAT, 4.0), Channel(DOG, 3.0, interval=Schedule(end=0.5))], NEVER))
    assert STEPS < counted.rows < 3 * STEPS


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_cfg_plus_plus_as_a_schedule_is_the_hosts_sampler(family):
    """It needs the sigmas of the run."""
    model = tiny_unet(family, output_scale=0.05)
    sigmas = sigmas_of(model, 6)
    schedule = GuidanceSchedule.execute({"shape": "cfg++", "sigmas": sigmas}, 0.0, 1.0).args[0]
    guider = MultiCFG(model, EMPTY, [Channel(CAT, 0.6, schedule=schedule)])
    assert_close(run(guider, sigmas=sigmas), run(host_cfg(model, 0.6), sampler="euler_cfg_pp", sigmas=sigmas), **CLOSE)
    with pytest.raises(ValueError, match="needs the sigmas of the run"):
        GuidanceSchedule.execute({"shape": "cfg++"}, 0.0, 1.0)
    assert CfgPlusPlus((4.0, 1.0, 0.0))(2.0, Span(NoiseScale((10.0, 1.0, 0.1)))) == pytest.approx(2.0)


def channels():
    return [Channel(CAT, 4.0, name="cat"), Channel(DOG, 2.0, negative=True, name="dog")]


def with_dog(model):
    return MultiCFGWrapper([Channel(DOG, 2.0, name="dog")]).install(model)


def sampled(guider, **settings) -> dict:
    return {"samples": run(guider, **settings)}


def test_report_tells_weights_norms_cosines_evaluations(eps_model):
    counted = Count(eps_model)
    guider = MultiCFG(counted.model, EMPTY, channels())
    record = record_of(guider, sampled(guider))
    assert record.evaluations == counted.rows == 3 * STEPS and len(record.entries) == STEPS
    assert [w for _, w in record.weight("cat")] == [4.0] * STEPS and [w for _, w in record.weight("dog")] == [-2.0] * STEPS
    first = dict(sigmas=torch.cat([sigmas_of(eps_model)[:1], torch.zeros(1)]))
    cond, other, base = (run(host_cfg(eps_model, 1.0, c), **first) for c in (CAT, DOG, EMPTY))
    terms = [4.0 * (cond - base), -2.0 * (other - base)]
    scale = eps_model.model.latent_format.scale_factor
    for name, term in zip(("cat", "dog"), terms):
        assert record.norm(name)[0][1] == pytest.approx(float(term.square().mean().sqrt()) * scale, rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(terms[0].flatten(), terms[1].flatten(), 0)
    assert record.cosine("cat", "dog")[0][1] == pytest.approx(float(cosine), abs=1e-3)


def test_the_most_opposed_pair_is_named():
    record, delta = Record(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    record.note([GuidanceTerm(sign * delta, name=name) for name, sign in (("a", 1), ("b", -1), ("c", 1))], 4)
    assert "most opposed: a and b, mean cosine -1.000" in record.text() or "most opposed: b and c, mean cosine -1.000" in record.text()


def test_channels_of_one_name_stay_apart(eps_model):
    early = Channel(DOG, 5.0, name="positive", interval=Schedule(end=0.5))
    guider = MultiCFG(eps_model, EMPTY, [Channel(CAT, 4.0, name="positive"), early, Channel(CAT, 1.0, null=DOG, name="positive")])
    record = record_of(guider, sampled(guider))
    weights = {name: {w for _, w in record.weight(name)} for name in record.names}
    assert weights == {"positive": {4.0}, "positive 2": {5.0}, "positive 3": {1.0}}
    assert 0 < len(record.weight("positive 2")) < STEPS
    assert distinct(["a 3", "a", "a"]) == ["a 3", "a", "a 4"]


def test_patches_in_a_row_and_the_guider_report_together(eps_model):
    """Their evaluations are counted once, whoever asks for them; a channel of a patch has no name of another's."""
    dog, sky = Channel(DOG, 2.0, name="dog"), Channel(conditioning(3), -1.0, name="sky")
    counted = Count(eps_model)
    twice = MultiCFGWrapper([sky]).install(MultiCFGWrapper([dog]).install(counted.model))
    record = record_of(twice, {"samples": ksampler(twice, CAT, EMPTY, 4.0)})
    assert record.evaluations == counted.rows == 4 * STEPS and record.names == ["positive", "sky", "dog"]
    assert len(record.cosine("positive", "sky")) == len(record.cosine("sky", "dog")) == STEPS
    guider = MultiCFG(twice, EMPTY, [Channel(CAT, 4.0, name="dog")])
    latent = sampled(guider)
    for source in (guider, twice):
        assert record_of(source, latent).names == ["dog", "sky", "dog 2"] and record_of(source, latent).evaluations == 4 * STEPS
    assert counted.rows == 8 * STEPS and GuidanceReport.execute(guider, latent).args[0].shape[-1] == 3


def test_evaluations_where_another_node_answers(eps_model):
    counted = Count(eps_model)
    counted.model.set_model_sampler_calc_cond_batch_function(lambda args: [torch.zeros_like(args["input"]) for _ in args["conds"]])
    guider = MultiCFG(counted.model, EMPTY, channels())
    assert record_of(guider, sampled(guider)).evaluations == counted.rows


def test_report_belongs_to_the_connected_latent(eps_model):
    """Also after another run of the same guider and the same patched model, at another number of steps."""
    patched = with_dog(eps_model)
    guider = MultiCFG(patched, EMPTY, [Channel(CAT, 4.0, name="cat")])
    latents = {steps: sampled(guider, sigmas=sigmas_of(eps_model, steps)) for steps in (STEPS, 2)}
    made = {"samples": ksampler(patched, CAT, EMPTY, 4.0, seed=1)}
    image, passed, text = GuidanceReport.execute(patched, made).args
    assert passed is made and image.shape[-1] == 3 and "dog: weight 2," in text and f"{3 * STEPS} evaluations" in text
    for source in (guider, patched):
        assert {n: len(record_of(source, latent).entries) for n, latent in latents.items()} == {STEPS: STEPS, 2: 2}


def test_report_of_the_denoised_output(eps_model):
    guider = MultiCFG(eps_model, EMPTY, channels())
    given = nodes_custom_sampler.Noise_RandomNoise(7), guider, comfy.samplers.sampler_object("euler"), sigmas_of(eps_model)[:3]
    for latent in nodes_custom_sampler.SamplerCustomAdvanced.execute(*given, {"samples": torch.zeros(1, 4, 8, 8)}).args:
        assert len(record_of(guider, latent).entries) == 2


def test_report_of_a_sampling_in_two_parts(eps_model):
    patched = with_dog(eps_model)
    settings = patched, 7, STEPS, 4.0, "euler", "normal", CAT, EMPTY
    first = common_ksampler(*settings, {"samples": torch.zeros(1, 4, 8, 8)}, last_step=1)[0]
    second = common_ksampler(*settings, first, disable_noise=True, start_step=1)[0]
    again = common_ksampler(*settings, first, denoise=0.5)[0]  # with noise: a sampling of its own
    assert [len(record_of(patched, latent).entries) for latent in (first, second, again)] == [1, STEPS, STEPS]


def test_report_of_a_masked_edit(eps_model):
    """SDEdit Sampler puts the guide back, bit for bit, where the mask is 0."""
    patched = with_dog(eps_model)
    guide = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), "noise_mask": half_mask()}
    settings = dict(strength=0.5, strength_unit="percent", process="VP", steps=2, scheduler="normal", repeats=1)
    edited = SDEditSampler.execute(patched, CAT, EMPTY, guide, **settings, seed=1, cfg=3.0, sampler_name="euler").args[0]
    assert len(record_of(patched, edited).entries) == 2


def test_report_of_an_unknown_latent_says_what_to_connect(eps_model):
    guider = MultiCFG(eps_model, EMPTY, channels())
    for source in (guider, eps_model, host_cfg(eps_model, 2.0)):
        with pytest.raises(ValueError, match=r"nothing to show .* has not sampled yet\. Connect the guider of Multi CFG Guider"):
            GuidanceReport.execute(source, {"samples": torch.zeros(1, 4, 8, 8)})
    latent = sampled(guider)
    with pytest.raises(ValueError, match=r"made other latents in its last 1 run\(s\), not this one\. Connect the guider"):
        GuidanceReport.execute(guider, {"samples": latent["samples"] * 1.5})


def test_a_negative_channel_starts_below_a_positive():
    """At the positive's weight and above, images burn; see the measures."""
    (role,) = (i for i in GuidanceChannel.GET_SCHEMA().inputs if i.id == "role")
    weights = {option.key: option.inputs[0].default for option in role.options}
    assert 0 < weights["negative"] <= weights["positive"] - 1
    for key, weight in weights.items():
        (made,) = GuidanceChannel.execute(conditioning=None, role={"role": key, "weight": weight}).args[0]
        assert made.negative == (key == "negative") and made.weight == weight and made.name == key
