"""Prompt-to-Prompt inside the real ComfyUI, on tiny random models."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.sampler_helpers import prepare_mask
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from controlled_diffusion.attention.prompt_to_prompt import Rows
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.host.attention import hook
from controlled_diffusion.nodes.host.attention.hook import ControlRun
from controlled_diffusion.nodes.host.attention.prompt_to_prompt import batch_latent
from controlled_diffusion.nodes.host.attention.unet import blend_places, unet_places
from controlled_diffusion.nodes.host.conditionings import KEY, branches_of
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.host.noise_levels import noise_scale
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.host.run_history import RunHistory
from controlled_diffusion.nodes.prompt_to_prompt import P2PBlendMask
from node_helpers import conditioning_set_values
from torch.profiler import ProfilerActivity, profile

from compare import assert_close
from host import editing, inversions, tiny, tiny_dits, tiny_text
from host.editing import ALL, OFF, clip_with_word, control_of, differ, masks_of, sample, shrunk, with_blend
from host.sampling import cfg_guider, families, sigmas_of, watched, with_options_seen
from host.test_structure_channels import DEEP, control_net
from host.tiny_editors import instruct_pix2pix

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, SWAP, LONG = "a red circle", "a blue circle", "a red circle, " * 30
CLOSE = dict(atol=1e-3, rtol=1e-3)


def smooth(family: str, **config):
    return tiny.unet(family, output_scale=0.2, **config)


model = families(smooth)


@pytest.fixture
def eps():
    return smooth("eps")


@pytest.fixture(params=["UNet", "DiT"])
def editor(request, clip):
    """(model, clip) of each kind of network in turn."""
    return (smooth("eps"), clip) if request.param == "UNet" else (tiny_dits.dit("flux"), tiny_dits.Clip(tiny_text.clip("flux"), "flux"))


def patch(model, clip, targets=SWAP, source=SOURCE, **knobs):
    return editing.patch(model, clip, targets, source, **knobs)


def drawn(model, clip, *args, unpatched=False, run=None, **knobs) -> torch.Tensor:
    """The rows of one sampling; of the same conditioning without the patch where `unpatched`."""
    patched, *rest = patch(model, clip, *args, **knobs)
    return sample(model if unpatched else patched, *rest, **(run or {}))


STOCHASTIC = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun",
              "lcm", "ddpm", "er_sde", "seeds_2", "sa_solver"]  # fmt: skip
SAMPLERS = ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "uni_pc", "ddim", "res_multistep", "dpm_adaptive", *STOCHASTIC]


def test_equal_prompts_give_equal_images_and_no_window_none(model, clip):
    """Empty windows: independent sampling."""
    assert torch.equal(*drawn(model, clip, "A red Circle", **ALL))
    assert torch.equal(drawn(model, clip, **OFF), drawn(model, clip, unpatched=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_share_the_noise_of_a_single_image(eps, clip, sampler):
    """ComfyUI draws other noise for each row of a batch; a source and its target must share it: equal prompts give equal images."""
    made = drawn(eps, clip, SOURCE, run=dict(sampler=sampler))
    assert torch.equal(made[0], made[1]) and torch.isfinite(made).all()
    patched, positive, negative, latent, _ = patch(eps, clip, "a blue circle\na cat", **OFF)
    together = sample(patched, positive, negative, latent, sampler=sampler)
    for row in range(3):
        alone = {"samples": latent["samples"][:1], "batch_index": None}
        one = [[positive[0][0][row : row + 1], {"pooled_output": positive[0][1]["pooled_output"][row : row + 1]}]]
        if sampler != "dpm_adaptive":  # whose steps depend on the whole batch
            assert_close(together[row : row + 1], sample(eps, one, negative, alone, sampler=sampler), **CLOSE)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_the_target_changes_and_the_source_does_not(model, clip, sampler):
    plain = drawn(model, clip, unpatched=True, run=dict(sampler=sampler))
    for knobs in ({}, ALL, dict(alpha=0.5), dict(word_weights="blue: 3"), dict(targets="a very blue big circle")):
        made = drawn(model, clip, run=dict(sampler=sampler), **knobs)
        assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4, knobs


def first_predictions(model, positive, negative, latent, cfg=4.0) -> dict[int, list[torch.Tensor]]:
    """What the network gives in the first step for every part of positive (0) and negative (1)."""
    seen, counted = {}, model.clone()

    def keep(apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        for index, part in zip(args["cond_or_uncond"], out.chunk(len(args["cond_or_uncond"]))):
            seen.setdefault(index, []).append(part)
        return out

    counted.set_model_unet_function_wrapper(keep)
    sample(counted, positive, negative, latent, cfg=cfg, steps=1)
    return seen


def test_only_targets_of_the_positive_are_edited(model, clip):
    patched, positive, negative, latent, _ = patch(model, clip, **ALL)
    plain, made = (first_predictions(m, positive, negative, latent) for m in (model, patched))
    assert torch.equal(made[1][0], plain[1][0]) and torch.equal(made[0][0][0], plain[0][0][0])
    assert differ(made[0][0][1], plain[0][0][1]) > 1e-5


def test_a_copy_of_an_area_is_not_edited(eps, clip):
    """Where the positive has an area, the host gives the negative a copy of its entry, mark and uuid and all."""
    patched, positive, negative, latent, _ = patch(eps, clip, **ALL)
    area = host_nodes.ConditioningSetArea().append(positive, 64, 32, 0, 0, 1.0)[0]
    plain, made = (first_predictions(m, area, negative, latent) for m in (eps, patched))
    assert len(made[1]) == 2 and all(torch.equal(a, b) for a, b in zip(made[1], plain[1]))
    assert len(made[0]) == 1 and torch.equal(made[0][0][0], plain[0][0][0]) and differ(made[0][0][1], plain[0][0][1]) > 1e-6


def replacements(model, clip, blend=None, **knobs) -> list[tuple[float, dict]]:
    """(percent, replaced layers) of every call of the network, under a P2P Local Blend of its own where `blend` has its settings."""
    patched, *rest = patch(model, clip, **knobs)
    patched = with_blend(patched, **blend) if blend else patched
    seen, scale = [], noise_scale(model)

    def look(options):
        there = {slot: sorted(f) for slot, f in options.get("patches_replace", {}).items()}
        seen.append((scale.percent(float(options["sigmas"][0])), there))

    sample(with_options_seen(patched, look), *rest, steps=8)
    return seen


def test_outside_the_windows_nothing_is_replaced(model, clip):
    keys = {p.key: p.scale for p in unet_places(model)}
    seen = replacements(model, clip, cross_start=0.2, cross_end=0.6, self_end=0.4, cross_layers="middle, output", self_layers="1/2")
    assert len(seen) == 8
    for percent, there in seen:
        cross = sorted(k for k in keys if k[0] != "input") if 0.2 <= percent < 0.6 else []
        own = sorted(k for k, s in keys.items() if s >= 2) if percent < 0.4 else []
        assert there.get("attn2", []) == cross and there.get("attn1", []) == own


def test_a_blend_reads_each_step_once_until_it_is_finished(eps, clip):
    seen = replacements(eps, clip, dict(words="*", end_percent=0.5), **OFF)
    assert [bool(there.get("attn2")) for _, there in seen] == [percent < 0.5 for percent, _ in seen]
    seen = replacements(PerturbedAttentionGuidance.execute(eps, 3.0).args[0], clip, dict(words="*"), **OFF)
    assert [bool(there.get("attn2")) for _, there in seen] == [True, False] * 8


def test_windows_go_by_noise_not_by_calls(eps, clip):
    patched, *rest = patch(eps, clip, cross_end=0.5, self_end=0.0)
    for sampler in ("heun", "dpmpp_sde"):
        seen, scale = [], noise_scale(eps)
        look = lambda o, seen=seen: seen.append((float(o["sigmas"][0]), "attn2" in o.get("patches_replace", {})))  # noqa: E731
        sample(with_options_seen(patched, look), *rest, sampler=sampler)
        assert len(seen) > 4 and all(edited == (scale.percent(sigma) < 0.5) for sigma, edited in seen)


def image_prompt(strength=0.7):
    """An attention replacement such as an IP-Adapter's: the text's attention, by what was there before or the host, plus a term."""

    def attend(q, k, v, options):
        return optimized_attention(q, k, v, options["n_heads"]) + strength * q.mean(1, keepdim=True)

    return attend


def with_replacements(model):
    """Of each transformer alone, and of a whole block's."""
    patched = model.clone()
    for i, place in enumerate(unet_places(model)):
        patched.set_model_attn2_replace(image_prompt(), *(place.key[:2] if i % 2 else place.key))
    return patched


def test_it_chains_with_other_replacements_in_either_order(model, clip):
    before, *rest = patch(with_replacements(model), clip, **ALL)
    patched = patch(model, clip, **ALL)
    one, other = sample(before, *rest), sample(with_replacements(patched[0]), *patched[1:])
    assert_close(one, other, atol=1e-5, rtol=1e-5)
    plain = sample(with_replacements(model), *rest)
    assert torch.equal(one[0], plain[0]) and differ(one[1], plain[1]) > 1e-4
    assert differ(one[1], drawn(model, clip, **ALL)[1]) > 1e-3
    same = drawn(with_replacements(model), clip, SOURCE, **ALL)
    assert torch.equal(same[0], same[1])


def test_on_another_replacement_the_edit_is_the_same(eps, clip):
    """A replacement that is ComfyUI's own attention changes nothing, though its output is only added to."""
    patched = eps.clone()
    for place in unet_places(eps):
        patched.set_model_attn2_replace(image_prompt(0.0), *place.key)
    knobs = dict(targets="a very blue big circle", **ALL)
    assert_close(drawn(patched, clip, **knobs), drawn(eps, clip, **knobs), **CLOSE)


def test_an_attention_override_is_kept(eps, clip):
    seen, patched = [], eps.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: seen.append(1) or f(*a, **k)
    assert torch.equal(drawn(patched, clip, SOURCE), drawn(eps, clip, SOURCE)) and seen


def test_what_an_override_adds_stays_on_edited_rows(eps, clip):
    """As a replacement's does that adds the same."""

    def louder(function, q, k, *args, **kwargs):
        out = function(q, k, *args, **kwargs)
        return out if k.shape[1] == q.shape[1] else out + 0.7 * q.mean(1, keepdim=True)

    patched, knobs = eps.clone(), dict(targets="a very blue big circle", cross_end=1.0, self_end=0.0)
    patched.model_options["transformer_options"]["optimized_attention_override"] = louder
    made = drawn(patched, clip, **knobs)
    assert_close(made, drawn(with_replacements(eps), clip, **knobs), **CLOSE)
    assert differ(made[1], drawn(eps, clip, **knobs)[1]) > 1e-3


def with_lora(model):
    patched = model.clone()
    weights = model.model.state_dict()
    names = [n for n in weights if n.endswith(("attn2.to_k.weight", "attn1.to_q.weight"))]
    draw = torch.Generator().manual_seed(3)
    patched.add_patches({n: ("diff", (0.3 * torch.randn(weights[n].shape, generator=draw),)) for n in names}, 1.0)
    return patched


def test_it_goes_with_lora_before_or_after(eps, clip):
    patched = patch(eps, clip, **ALL)
    one, other = drawn(with_lora(eps), clip, **ALL), sample(with_lora(patched[0]), *patched[1:])
    assert_close(one, other, **CLOSE)
    assert differ(one[1], drawn(eps, clip, **ALL)[1]) > 1e-3
    assert torch.equal(*drawn(with_lora(eps), clip, SOURCE, **ALL))


def test_it_goes_with_controlnet(clip):
    model = smooth("eps", **DEEP)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def controlled(target):
        patched, positive, negative, *rest = patch(model, clip, target, **ALL)
        positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control_net(), hint, 0.5, 0.0, 1.0)
        return sample(patched, positive, negative, *rest), sample(model, positive, negative, *rest)

    same, _ = controlled(SOURCE)
    assert torch.equal(same[0], same[1])
    made, plain = controlled(SWAP)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4
    assert differ(made[0], drawn(model, clip, **ALL)[0]) > 1e-3


def run_guider(guider, latent):
    noise, sampler = comfy.sample.prepare_noise(latent["samples"], 7, latent["batch_index"]), comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latent["samples"], sampler, sigmas_of(guider.model_patcher), disable_pbar=True, seed=7)


def test_it_goes_with_guidance_channels(model, clip):
    def guided(target, patched=True):
        edited, positive, negative, latent, _ = patch(model, clip, target, **ALL)
        channels = [Channel(encoded(clip, "a cat"), 2.0), Channel(positive, 3.0, name="p2p")]
        return run_guider(MultiCFG(edited if patched else model, negative, channels), latent)

    assert torch.equal(*guided(SOURCE))
    made, plain = guided(SWAP), guided(SWAP, patched=False)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4


def test_a_guider_equals_ksampler(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip)
    assert torch.equal(run_guider(cfg_guider(patched, positive, negative, 4.0), latent), sample(patched, positive, negative, latent))


def test_long_prompts_leave_the_source_unchanged(eps, clip):
    """The host repeats the shorter conditioning to the length of the longer: maps are then split over copies."""
    source = drawn(eps, clip, SOURCE)[0]
    for knobs in (dict(targets=SOURCE, negative=LONG), dict(targets=LONG), dict(targets=LONG, negative=LONG * 2)):
        made = drawn(eps, clip, **knobs)
        reference = source if "negative" not in knobs else drawn(eps, clip, unpatched=True, **knobs)[0]
        assert_close(made[0], reference, **CLOSE)
    assert torch.equal(*drawn(eps, clip, SOURCE, negative=LONG, **ALL))
    assert torch.equal(*drawn(eps, clip, LONG, source=LONG, **ALL))


WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}  # which a GPU has to finish for


@pytest.mark.parametrize("knobs", [{}, dict(targets="a very blue big circle", word_weights="circle: 2", blend_words="*")])
def test_no_layer_waits_for_a_gpu(eps, clip, knobs):
    """Also where the host repeats the text."""

    def waits(layers):
        run = patch(eps, clip, negative=LONG, cross_layers=layers, **knobs)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            sample(*run)
        return sum(event.name() in WAITS for event in seen.profiler.kineto_results.events())

    assert waits("all") == waits("middle") > 0


def test_a_long_negative_leaves_the_edit_unchanged(eps, clip):
    """At cfg 1 the negative is not evaluated; here it is, in one batch with the positive."""
    knobs = dict(targets="a very blue big circle", word_weights="circle: 2", **ALL)
    patched, positive, negative, latent, _ = patch(eps, clip, **knobs)
    long = encoded(clip, LONG)
    short, wide = (first_predictions(patched, positive, n, latent)[0][0] for n in (negative, long))
    assert_close(short, wide, **CLOSE)


def test_an_embedding_is_a_word_like_any_other(eps, tmp_path):
    clip, learned = clip_with_word(tmp_path), "a embedding:thing circle"
    text = patch(eps, clip, learned)[4]
    assert "red -> embedding:thing (3 tokens): takes over its map" in text
    plain = drawn(eps, clip, learned, unpatched=True)
    made = drawn(eps, clip, learned, word_weights="embedding:thing: 2", blend_words="embedding:thing", **ALL)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4
    assert torch.equal(*drawn(eps, clip, learned, source=learned, **ALL))


def test_sdxl_is_edited_in_shared_columns():
    model, clip = tiny_text.denoiser("sdxl"), tiny_text.clip("sdxl")
    assert torch.equal(*drawn(model, clip, SOURCE, **ALL))
    made, plain = (drawn(model, clip, unpatched=unpatched, **ALL) for unpatched in (False, True))
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-5


def test_every_line_of_weights_makes_an_image(eps, clip):
    made = drawn(eps, clip, "", word_weights="red: 1\nred: 3, circle:0.5\nred: 3, circle:0.5")
    assert torch.equal(made[0], made[1]) and differ(made[2], made[0]) > 1e-4 and torch.equal(made[2], made[3])


def test_a_word_has_its_own_weight_and_window(eps, clip):
    text = patch(eps, clip, "a very blue circle", word_weights="circle: 2")[4]
    assert "very blue: a share of the map of red, times 1.5" in text and "x 2 circle" in text
    usual, early, off = (drawn(eps, clip, word_windows=w)[1] for w in ("", "blue: 0-0.3", "blue: 0-0"))
    assert differ(usual, early) > 1e-5 and differ(early, off) > 1e-5


def test_blends_of_nothing_and_of_everything(model, clip):
    nothing = drawn(model, clip, blend_words="circle", blend_threshold=1.0, blend_start=0.0)
    assert_close(nothing[1], nothing[0], atol=1e-5, rtol=1e-5)
    everything = drawn(model, clip, blend_words="circle", blend_threshold=0.0, blend_start=0.0)
    assert torch.equal(everything, drawn(model, clip))


def test_blend_words_of_either_prompt_and_a_star(eps, clip):
    named = [drawn(eps, clip, blend_words=w, blend_threshold=0.8) for w in ("red", "blue", "*")]
    assert torch.equal(named[0], named[1]) and differ(named[0], named[2]) > 1e-4
    assert torch.equal(named[2], drawn(eps, clip, blend_words="blue circle", blend_threshold=0.8))
    protected = drawn(eps, clip, protect_words="circle", blend_threshold=0.8)
    assert differ(protected, drawn(eps, clip)) > 1e-4


def test_layers_for_masks(eps):
    def scales(sides, size):
        return {p.scale for p in blend_places([SimpleNamespace(scale=s) for s in sides], size)}

    assert scales([1, 2, 4, 8], (64, 64)) == {4} and scales([2, 4], (128, 128)) == {4}
    assert scales([1, 2], (16, 16)) == {1} and scales([1, 2], (64, 64)) == {2} and scales([2], (8, 8)) == {2}
    assert {p.scale for p in unet_places(eps)} == {1, 2}


def test_the_last_local_blend_counts(eps, clip):
    """And one without words is none."""
    plain, *rest = patch(eps, clip)
    node = dict(words="circle", protect_words="a", threshold=0.8, start_percent=0.3)
    own = sample(with_blend(plain, **node), *rest)
    assert differ(own, drawn(eps, clip)) > 1e-3
    other, *rest = patch(eps, clip, blend_words="blue", blend_threshold=0.5)
    assert torch.equal(sample(with_blend(other, **node), *rest), own)
    assert torch.equal(sample(with_blend(other, words=""), *rest), drawn(eps, clip))


def test_a_blend_may_end_early_and_goes_with_deep_shrink(eps, clip):
    """A star where nothing changes blends nothing."""
    patched, *rest = patch(eps, clip)
    whole, early = (sample(with_blend(patched, threshold=0.9, end_percent=e), *rest, steps=8) for e in (1.0, 0.5))
    assert differ(whole, early) > 1e-3 and torch.equal(whole[0], early[0])
    patched, *rest = patch(shrunk(eps), clip, blend_words="*", blend_threshold=0.8)
    sample(patched, *rest)
    assert len(masks_of(patched)) == 3
    assert torch.equal(*drawn(eps, clip, SOURCE, blend_words="*", **ALL))


def test_second_patches_and_blends_without_one_are_refused(eps, clip):
    with pytest.raises(ValueError, match="already comes from a P2P Attention Patch"):
        patch(patch(eps, clip, **ALL)[0], clip, SOURCE, **ALL)
    with pytest.raises(ValueError, match=r"ModelPatcher.* does not come from P2P Attention Patch"):
        with_blend(eps)


def inverted(model, clip, name="ddim", images=1, **settings):
    samples = 5 * torch.randn(images, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return inversions.invert(name, model, {"samples": samples}, encoded(clip, SOURCE), **settings)[0], samples


@pytest.mark.parametrize("images", [1, 2])
def test_an_inversion_is_edited_and_its_source_row_kept(clip, images):
    model = tiny.unet("eps", output_scale=0.05)
    inversion, samples = inverted(model, clip, images=images)
    patched, positive, negative, *_ = patch(model, clip, "a blue circle\na red circle", images=images, **ALL)
    given = dict(cfg=4.0, positive=positive, negative=negative)
    both, plain = (inversions.sample(m, inversion, branches="direct", **given) for m in (patched, model))
    assert both.shape[0] == 3 * images
    assert_close(both[:images], samples, atol=1e-5, rtol=1e-5)
    edits = slice(images, 2 * images)
    assert differ(both[edits], plain[edits]) > 1e-3
    free = inversions.sample(patched, inversion, branches="source and edit", **given)
    assert torch.equal(free[2 * images :], free[:images])


EXACT = dict(cfg=3.0, precision="highest")
SETTINGS = {"ddim": dict(fixed_point_iterations=20), "edict": EXACT, "bdia": EXACT, "o-belm": EXACT, "edit-friendly": dict(cfg=3.0, skip=0.2),
            "null-text": dict(cfg=3.0), "negative-prompt": {}}  # fmt: skip


@pytest.mark.parametrize("inverter", SETTINGS)
def test_every_inversion_is_edited(clip, inverter):
    model, cfg = tiny.unet("eps", output_scale=0.05), 1.0 if inverter == "ddim" else 3.0
    negative = {} if inverter in ("ddim", "negative-prompt") else dict(negative=encoded(clip, ""))
    inversion, samples = inverted(model, clip, inverter, scheduler="karras", **negative, **SETTINGS[inverter])

    def replayed(target, patched=True, branches="source and edit"):
        edited, positive, *_ = patch(model, clip, target, **ALL)
        return inversions.sample(edited if patched else model, inversion, cfg, branches, positive=positive)

    exact = inverter not in ("null-text", "negative-prompt")
    for branches in ("source and edit", "direct"):
        made, plain = (replayed(SWAP, patched, branches) for patched in (True, False))
        assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-3 and differ(made[1], made[0]) > 1e-3
        if exact or branches == "direct":
            assert_close(made[:1], samples, atol=1e-3, rtol=1e-3)
    assert torch.equal(*replayed(SOURCE))


def test_a_replay_needs_a_source_row_for_every_image(clip):
    model = tiny.unet("eps", output_scale=0.05)
    inversion, _ = inverted(model, clip, images=2)
    patched, positive, negative, *_ = patch(model, clip)
    for branches in ("edit", "source and edit", "direct"):
        with pytest.raises(ValueError, match=r"this inversion at the input 'latent'|with an inversion, connect that to its input 'latent'"):
            inversions.sample(patched, inversion, 4.0, branches, positive=positive, negative=negative)
    single, _ = inverted(model, clip)
    with pytest.raises(ValueError, match=r"positive has 2 rows, but 1 image was inverted; give 1\. Rows of P2P.*branches 'direct'"):
        inversions.sample(patched, single, 4.0, "edit", positive=positive, negative=negative)


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(word_weights="dog: 2"), r"'dog' is in none of the prompts; the words of 'a blue circle' are: a, blue, circle"),
        (dict(word_windows="dog: 0-1"), "'dog' is in none of the prompts"),
        (dict(blend_words="dog"), "'dog' is in none of the prompts; the words of 'a red circle'.*'a blue circle'"),
        (dict(protect_words="dog"), "'dog' is in none of the prompts"),
        (dict(word_weights="blue"), "'blue' names no value"),
        (dict(targets="a\nb", word_weights="a:1\na:2\na:3"), "3 lines for 2 targets"),
        (dict(cross_layers="bottom"), "cross_layers has 'bottom', which names no layer of this model.*input1"),
        (dict(self_layers="1/8"), "self_layers has '1/8'"),
        (dict(cross_start=0.9, cross_end=0.5), "cross_start is 0.9, but cross_end is 0.5: .*Give cross_start at most 0.5"),
        (dict(self_start=0.9, self_end=0.5), "self_start is 0.9, but self_end is 0.5"),
        (dict(alpha=2.0), "alpha is 2"),
        (dict(latent={"samples": torch.zeros(1, 4, 64)}), "'latent' is a latent of 1 x 4 x 64, but that of images or a video is needed"),
    ],
)
def test_bad_input_is_refused(eps, clip, knobs, message):
    with pytest.raises(ValueError, match=message):
        patch(eps, clip, **knobs)


def test_missing_wires_are_named(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip)
    with pytest.raises(ValueError, match="none of the conditionings that are sampled is the 'positive' of that node"):
        sample(patched, encoded(clip, SWAP), negative, latent)
    with pytest.raises(ValueError, match=r"1 images are sampled, but P2P Attention Patch made 2 rows: 1 of the source"):
        sample(patched, positive, negative, {"samples": latent["samples"][:1], "batch_index": None})
    with pytest.raises(ValueError, match="start from different noise"):
        sample(patched, positive, negative, {**latent, "batch_index": None})


def check_rows_are_independent(editor, targets: list[str], **given):
    made = drawn(*editor, "\n".join(targets), images=2, **given).unflatten(0, (1 + len(targets), 2))
    for i, target in enumerate(targets):
        alone = drawn(*editor, target, images=2, **given).unflatten(0, (2, 2))
        assert_close(made[0], alone[0], **CLOSE)
        assert_close(made[1 + i], alone[1], **CLOSE)
    assert differ(made[0, 0], made[0, 1]) > 0.1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_images_and_targets_are_independent(editor, sampler):
    check_rows_are_independent(editor, [SWAP, "a red square"], run=dict(sampler=sampler, cfg=3.0, steps=3))


def test_images_and_targets_of_a_blend_are_independent(eps, clip):
    check_rows_are_independent((eps, clip), [SWAP, "a red cat", "a very red circle"], blend_words="*", blend_threshold=0.9)


def test_split_calls_give_the_same(editor, monkeypatch):
    (model, clip), calls = editor, []
    patched, positive, negative, *rest = patch(model, clip, images=2, **ALL)
    if isinstance(clip, tiny_dits.Clip):
        negative = tiny_dits.text("flux", 3, positive[0][0].shape[1])  # of the same length, so that one call is possible
    patched = watched(patched, lambda args: calls.append(args["cond_or_uncond"]))
    whole = sample(patched, positive, negative, *rest)
    assert any(len(c) == 2 for c in calls)
    calls.clear()
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    parts = sample(patched, positive, negative, *rest)
    assert [0] in calls and [1] in calls and all(len(c) == 1 for c in calls)
    assert_close(parts, whole, **CLOSE)


def test_alpha_goes_from_none_to_all(editor):
    none, half, whole = (drawn(*editor, alpha=a, **ALL)[1] for a in (0.0, 0.5, 1.0))
    assert torch.equal(none, drawn(*editor, unpatched=True)[1])
    assert differ(none, half) > 1e-4 and differ(half, whole) > 1e-4
    assert_close(drawn(*editor, alpha=1 - 1e-6, **ALL)[1], whole, **CLOSE)


def test_runs_are_independent_and_the_model_unchanged(editor):
    before = drawn(*editor, unpatched=True)
    patched, *rest = patch(*editor, blend_words="circle", word_weights="blue: 2")
    assert torch.equal(sample(patched, *rest), sample(patched, *rest)) and torch.equal(before, drawn(*editor, unpatched=True))
    assert KEY not in editor[0].model_options["transformer_options"]
    patched, positive, negative, *_ = patch(*editor, f"{SWAP}\na cat", images=2)
    assert branches_of(positive) == 3 and branches_of(negative) == 1 and control_of(patched).rows == Rows(2, 2)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "lms", "uni_pc"])
def test_off_the_mask_the_edit_is_the_source(eps, clip, sampler):
    patched, *rest = patch(eps, clip, blend_words="blue", blend_threshold=0.85)
    made = sample(patched, *rest, sampler=sampler, steps=6)
    masks = [m[0] for _, m in masks_of(patched)]
    kept = ~torch.stack(masks).any(0)
    assert kept.any() and not kept.all()
    assert_close(made[1][:, kept], made[0][:, kept], atol=1e-4 if sampler != "uni_pc" else 5e-3, rtol=1e-4)  # that one stops before 0
    assert differ(made[1][:, masks[-1]], made[0][:, masks[-1]]) > 1e-3


def test_a_star_means_weighted_words_where_no_word_changes(eps, clip):
    given = dict(targets="", source="a red circle and a blue star", operation="reweight only", word_weights="blue: 2")
    star, named = (control_of(patch(eps, clip, blend_words=words, **given)[0]).blend for words in ("*", "blue star"))
    assert star.edited == named.edited


def test_a_blend_ignores_a_positive_in_an_area(editor):
    patched, positive, *rest = patch(*editor, blend_words="circle", blend_start=0.0)
    part = host_nodes.ConditioningSetArea().append(positive, 32, 32, 0, 0, 1.0)[0]
    masks = []
    for given in (positive, [*positive, *part], part):
        made = sample(patched, given, *rest)
        masks.append(masks_of(patched))
    assert torch.equal(masks[0][0][1], masks[1][0][1]) and not masks[2]
    with pytest.raises(ValueError, match=r"did not act in any step of the run.*acts in an area alone"):
        P2PBlendMask.execute(patched, {"samples": made}, 1.0)


def test_masks_are_read_from_model_or_guider(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip, f"{SWAP}\na cat", blend_words="*", blend_threshold=0.8, images=2)
    samples = {"samples": sample(patched, positive, negative, latent, steps=6)}
    masks = masks_of(patched)
    mask, table, passed, told = P2PBlendMask.execute(with_lora(patched), samples, 1.0).args
    lines = [f"edit {i + 1}: {100 * float(m.float().mean()):.0f} % of the image may differ" for i, m in enumerate(masks[-1][1])]
    assert all(a.startswith(b) for a, b in zip(told.splitlines(), lines, strict=True))
    assert passed is samples and mask.shape == (4, 64, 64)
    assert torch.equal(mask[:, ::8, ::8], masks[-1][1].float()) and 0 < mask.mean() < 1
    early, *_ = P2PBlendMask.execute(comfy.samplers.CFGGuider(patched), samples, masks[0][0]).args
    assert torch.equal(early[:, 4::8, 7::8], masks[0][1].float())
    image = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    over = P2PBlendMask.execute(patched, samples, 1.0, image).args[1]
    assert over.shape == table.shape and differ(over, table) > 0.1
    assert torch.equal(over, P2PBlendMask.execute(patched, samples, 1.0, image[2:]).args[1])
    videos = torch.rand(18, 64, 64, 3, generator=torch.Generator().manual_seed(1)).index_copy(0, torch.arange(1, 18, 3), image)
    assert torch.equal(over, P2PBlendMask.execute(patched, samples, 1.0, videos).args[1])  # three frames each
    for count in (1, 5):
        with pytest.raises(ValueError, match=f"'image' has {count} images for 4 edits and 2 of the source"):
            P2PBlendMask.execute(patched, samples, 1.0, torch.zeros(count, 64, 64, 3))


@pytest.mark.parametrize("threshold, warning", [(0.0, "keeps almost nothing"), (1.0, "the edit equals the source"), (0.8, None)])
def test_a_blend_of_all_or_nothing_is_told(eps, clip, threshold, warning, caplog, monkeypatch):
    """In the log and on the node that samples, since few graphs have P2P Blend Mask."""
    told = []
    monkeypatch.setattr(hook, "keep", lambda *lines: told.extend(lines))
    patched, *rest = patch(eps, clip, f"{SWAP}\na red circle", blend_words="circle", blend_threshold=threshold)
    with caplog.at_level("WARNING"):
        sample(patched, *rest)
    logged = [r.message for r in caplog.records if r.levelname == "WARNING" and "P2P Attention Patch" in r.message]
    wanted = [f"edit {i}" for i in (1, 2)] if warning else []
    assert len(logged) == len(wanted) and all(edit in line and warning in line for edit, line in zip(wanted, logged))
    assert told == logged


@pytest.mark.parametrize("knobs, message", [({}, "no local blend"), (dict(blend_words="*", blend_start=1.0), "did not act in any step")])
def test_missing_masks_are_errors(eps, clip, knobs, message):
    patched, *rest = patch(eps, clip, **knobs)
    with pytest.raises(ValueError, match="nothing to show for this latent: the model has not sampled yet"):
        P2PBlendMask.execute(patched, rest[2], 1.0)
    made = {"samples": sample(patched, *rest)}
    with pytest.raises(ValueError, match=message):
        P2PBlendMask.execute(patched, made, 1.0)
    with pytest.raises(ValueError, match=r"made other latents in its last 1 run\(s\), not this one"):
        P2PBlendMask.execute(patched, {"samples": made["samples"] + 1}, 1.0)


def test_masks_are_those_of_the_latents_own_run(eps, clip):
    """A later run on the same model leaves them; the parts of one sampling are shown together; the denoised output counts too."""
    patched, positive, negative, latent, _ = patch(eps, clip, blend_words="*", blend_threshold=0.8)
    given = (patched, "enable", 7, 8, 4.0, "euler", "normal", positive, negative)
    first = host_nodes.KSamplerAdvanced().sample(*given, latent, 0, 4, "enable")[0]
    second = host_nodes.KSamplerAdvanced().sample(patched, "disable", *given[2:], first, 4, 8, "disable")[0]
    shown = {name: P2PBlendMask.execute(patched, made, 1.0).args for name, made in (("first", first), ("both", second))}
    sample(patched, positive, negative, latent, seed=8)
    for name, made in (("first", first), ("both", second)):
        assert all(torch.equal(a, b) for a, b in zip(P2PBlendMask.execute(patched, made, 1.0).args[:2], shown[name]))
    assert shown["both"][1].shape[2] > shown["first"][1].shape[2]  # more times of the sampling
    assert not torch.equal(shown["both"][0], shown["first"][0])
    guider, sampler = cfg_guider(patched, positive, negative, 1.0), comfy.samplers.sampler_object("euler")
    out, denoised = SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, sampler, sigmas_of(eps)[:-1], latent).args
    assert differ(out["samples"], denoised["samples"]) > 1e-3
    assert torch.equal(*(P2PBlendMask.execute(guider, made, 1.0).args[0] for made in (out, denoised)))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_blend_goes_on_in_a_further_part(eps, clip, sampler):
    """Two parts are one pass, whatever else was sampled between them; the first part is left as it was."""
    patched, positive, negative, latent, _ = patch(eps, clip, blend_words="blue", blend_threshold=0.85, blend_start=0.0)
    given = (7, 8, 4.0, sampler, "normal", positive, negative)
    whole = host_nodes.KSamplerAdvanced().sample(patched, "enable", *given, latent, 0, 8, "disable")[0]["samples"]
    first = host_nodes.KSamplerAdvanced().sample(patched, "enable", *given, latent, 0, 4, "enable")[0]
    seen = P2PBlendMask.execute(patched, first, 1.0).args[0]
    sample(patched, positive, negative, latent, seed=8)
    second = host_nodes.KSamplerAdvanced().sample(patched, "disable", *given, first, 4, 8, "disable")[0]["samples"]
    alone = patched.clone()
    alone.model_options["transformer_options"][KEY] = (replace(control_of(patched), history=RunHistory()),)
    forgotten = host_nodes.KSamplerAdvanced().sample(alone, "disable", *given, first, 4, 8, "disable")[0]["samples"]
    assert_close(second, whole, atol=1e-4, rtol=1e-4)
    assert differ(forgotten, whole) > 1e-3, "the masks of the first part do not matter"
    assert torch.equal(P2PBlendMask.execute(patched, first, 1.0).args[0], seen)


def test_masks_of_an_inversions_replay_are_shown(clip):
    model = tiny.unet("eps", output_scale=0.05)
    inversion, _ = inverted(model, clip)
    patched, positive, negative, *_ = patch(model, clip, blend_words="*", **ALL)
    made = inversions.sample(patched, inversion, 4.0, "direct", positive=positive, negative=negative)
    assert P2PBlendMask.execute(patched, {"samples": made}, 1.0).args[0].shape == (1, 64, 64)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_finished_or_stopped_run_lets_go_of_conditionings(eps, clip, stopped, monkeypatch):
    patched, positive, *rest = patch(eps, clip, blend_words="*")
    patched, positive = AttentionMapCapture.execute(patched, clip, f"{SOURCE}\n{SWAP}", "", "all", 0.0, 1.0, 1, positive).args
    runs, end = [], ControlRun.end
    monkeypatch.setattr(ControlRun, "end", lambda self: runs.append(self) or end(self))

    def stop(step, x0, x, steps):
        if stopped and step == 2:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException) if stopped else nullcontext():
        sample(patched, positive, *rest, callback=stop)
    edited, captured = runs
    assert not any(run.conds or run.parts.marked for run in runs)
    assert edited.blending.masks and not edited.cache.known and captured.sums.total


def test_an_inversion_brings_prompt_and_images(clip):
    """Of an inverter that got a text; a conditioning's text is not known."""
    model = tiny.unet("eps", output_scale=0.05)
    clean = {"samples": 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))}
    given = dict(model=model, image=clean, steps=3, scheduler="karras", end_percent=0.0)
    known, unknown = (DDIMInverter.execute(source=s, clip=clip, **given).args for s in (f" {SOURCE}", encoded(clip, SOURCE)))
    assert known[0].text == SOURCE and torch.equal(known[0].trajectory.states[0][0], unknown[0].trajectory.states[0][0])
    typed, found = (editing.patch(model, clip, SWAP, source, latent=start, **ALL) for source, start in ((SOURCE, unknown[0]), ("", known[0])))
    assert typed[4] == found[4] and found[4].startswith(f"{SOURCE}  ->  {SWAP}") and control_of(found[0]).rows == Rows(2, 1)
    assert torch.equal(found[3]["samples"], known[1]["samples"].repeat(2, 1, 1, 1))
    made = [inversions.sample(p[0], known[0], 4.0, "direct", positive=p[1], negative=p[2]) for p in (typed, found)]
    assert torch.equal(*made) and differ(made[0][2:], made[0][:2]) > 1e-3
    with pytest.raises(ValueError, match="source is empty, and the inversion does not know its prompt"):
        editing.patch(model, clip, SWAP, "", latent=unknown[0])
    with pytest.raises(ValueError, match="source is a text, which the text encoder has to read"):
        DDIMInverter.execute(source=SOURCE, **given)


@pytest.mark.parametrize(
    "samples, mask",
    [
        ((1, 4, 8, 8), (2, 64, 64)),
        ((3, 4, 8, 8), (2, 1, 64, 64)),
        ((2, 4, 8, 8), (64, 64)),
        ((1, 16, 3, 8, 8), (3, 64, 64)),
        ((2, 16, 3, 8, 8), (2, 1, 3, 8, 8)),
    ],
    ids=["more masks than images", "fewer", "one", "frames", "videos"],
)
def test_every_branch_has_the_noise_mask_of_the_source(samples, mask):
    given = {"samples": torch.zeros(samples), "noise_mask": torch.rand(mask, generator=torch.Generator().manual_seed(0))}
    model = tiny.unet("eps", **tiny.ONE_LEVEL) if len(samples) == 4 else tiny_dits.dit("wan")
    own, found = (prepare_mask(x["noise_mask"], x["samples"].shape, "cpu") for x in (given, batch_latent(model, given, 3)[0]))
    assert_close(found, torch.cat([own] * 3))


def test_every_branch_is_shown_all_images_in_their_order(clip):
    """Beside the noise, as models for inpainting and instructions take them."""
    seen, images = [], torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = watched(instruct_pix2pix(), lambda args: seen.append(args["c"]["c_concat"]))
    patched, *conditionings, latent, _ = patch(model, clip, images=2)
    shown = [conditioning_set_values(c, {"concat_latent_image": images}) for c in conditionings]
    sample(patched, *shown, latent, steps=1)
    assert_close(torch.cat(seen), torch.cat([images] * 4))
    assert all(torch.equal(c[0][1]["concat_latent_image"], images) for c in shown)
