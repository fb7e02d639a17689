"""Prompt-to-Prompt inside the real host, on tiny random models."""

from contextlib import nullcontext

import comfy.model_management
import comfy.sample
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.bdia import BDIAInverter
from controlled_diffusion.nodes.belm import BELMInverter
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.edict import EDICTInverter
from controlled_diffusion.nodes.edit_friendly import EditFriendlyInverter
from controlled_diffusion.nodes.host.attention.unet import blend_places, unet_places
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.host.prompts import HostTokenizer, as_rows, encoded, prompt_of
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.negative_prompt import NegativePromptInverter
from controlled_diffusion.nodes.null_text import NullTextInverter
from controlled_diffusion.nodes.prompt_to_prompt import P2PAttentionPatch, P2PBlendMask, P2PLocalBlend
from safetensors.torch import save_file

from compare import assert_close
from host import tiny, tiny_dits, tiny_text
from host.sampling import sigmas_of
from host.test_structure_channels import DEEP, control_net
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, SWAP, LONG = "a red circle", "a blue circle", "a red circle, " * 30
OFF = dict(cross_end=0.0, self_end=0.0)
ALL = dict(cross_end=1.0, self_end=1.0, self_layers="all")
CLOSE = dict(atol=1e-3, rtol=1e-3)
DEFAULTS = defaults(P2PAttentionPatch) | dict(width=64, height=64)


@pytest.fixture(params=["eps", "v", "flow"])
def model(request):
    return smooth(request.param)


@pytest.fixture
def eps():
    return smooth("eps")


def smooth(family: str, **config):
    return tiny.unet(family, output_scale=0.2, **config)


def patch(model, clip, targets=SWAP, source=SOURCE, **knobs):
    """(model, positive, negative, latent, alignment)."""
    return P2PAttentionPatch.execute(model, clip, **{**DEFAULTS, **knobs, "source": source, "targets": targets}).args


def sample(model, positive, negative, latent, *_, cfg=4.0, sampler="euler", seed=7, steps=4, **more):
    noise = comfy.sample.prepare_noise(latent["samples"], seed, latent["batch_index"])
    settings = (steps, cfg, sampler, "normal", positive, negative, latent["samples"])
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=seed, **more)


def drawn(model, clip, *args, unpatched=False, run=None, **knobs) -> torch.Tensor:
    """The rows of one sampling; of the same conditioning without the patch where `unpatched`."""
    patched, *rest = patch(model, clip, *args, **knobs)
    return sample(model if unpatched else patched, *rest, **(run or {}))


def differ(a, b) -> float:
    return float((a - b).abs().max())


STOCHASTIC = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun",
              "lcm", "ddpm", "er_sde", "seeds_2", "sa_solver"]  # fmt: skip
SAMPLERS = ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "uni_pc", "ddim", "res_multistep", "dpm_adaptive", *STOCHASTIC]


def test_equal_prompts_give_the_same_image_bit_for_bit(model, clip):
    made = drawn(model, clip, "A red Circle", **ALL)
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_prompts_give_the_same_image_with_every_sampler(eps, clip, sampler):
    made = drawn(eps, clip, SOURCE, run=dict(sampler=sampler))
    assert torch.equal(made[0], made[1]) and torch.isfinite(made).all()


def test_with_empty_windows_it_is_independent_sampling_bit_for_bit(model, clip):
    assert torch.equal(drawn(model, clip, **OFF), drawn(model, clip, unpatched=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_row_gets_the_noise_of_an_image_by_itself(eps, clip, sampler):
    """The host draws other noise for each row of a batch; a source and its target must share it."""
    patched, positive, negative, latent, _ = patch(eps, clip, "a blue circle\na cat", **OFF)
    together = sample(patched, positive, negative, latent, sampler=sampler)
    for row in range(3):
        alone = {"samples": latent["samples"][:1], "batch_index": None}
        one = [[positive[0][0][row : row + 1], {"pooled_output": positive[0][1]["pooled_output"][row : row + 1]}]]
        if sampler != "dpm_adaptive":  # whose steps depend on the whole batch
            assert_close(together[row : row + 1], sample(eps, one, negative, alone, sampler=sampler), **CLOSE)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_the_source_never_changes_and_the_target_does(model, clip, sampler):
    plain = drawn(model, clip, unpatched=True, run=dict(sampler=sampler))
    for knobs in ({}, ALL, dict(alpha=0.5), dict(word_weights="blue: 3"), dict(targets="a very blue big circle")):
        made = drawn(model, clip, run=dict(sampler=sampler), **knobs)
        assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4, knobs


@pytest.mark.parametrize("knobs", [{}, dict(blend_words="*", blend_threshold=0.9)])
def test_several_images_and_targets_are_the_same_one_by_one(eps, clip, knobs):
    targets = ["a blue circle", "a red cat", "a very red circle"]
    made = drawn(eps, clip, "\n".join(targets), batch_size=2, **knobs).unflatten(0, (4, 2))
    for i, target in enumerate(targets):
        alone = drawn(eps, clip, target, batch_size=2, **knobs).unflatten(0, (2, 2))
        assert_close(made[0], alone[0], **CLOSE)
        assert_close(made[1 + i], alone[1], **CLOSE)
    assert differ(made[0, 0], made[0, 1]) > 0.1


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


def test_only_the_positives_targets_are_edited(model, clip):
    patched, positive, negative, latent, _ = patch(model, clip, **ALL)
    plain, made = (first_predictions(m, positive, negative, latent) for m in (model, patched))
    assert torch.equal(made[1][0], plain[1][0]) and torch.equal(made[0][0][0], plain[0][0][0])
    assert differ(made[0][0][1], plain[0][0][1]) > 1e-5


def test_positive_and_negative_in_two_calls_give_the_same(model, clip, monkeypatch):
    whole = drawn(model, clip, batch_size=2)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    calls = []
    patched, *rest = patch(model, clip, batch_size=2)
    patched.set_model_unet_function_wrapper(lambda f, a: calls.append(a["cond_or_uncond"]) or f(a["input"], a["timestep"], **a["c"]))
    parts = sample(patched, *rest)
    assert [0] in calls and [1] in calls and [0, 1] not in calls
    assert_close(parts, whole, **CLOSE)


def test_the_rows_of_a_copy_for_an_area_of_the_positive_are_left_alone(eps, clip):
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
    seen, scale = [], comfy_scale(model)

    def spy(executor, *args, **kwargs):
        options = args[5]
        there = {slot: sorted(f) for slot, f in options.get("patches_replace", {}).items()}
        seen.append((scale.percent(float(options["sigmas"][0])), there))
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", spy)
    sample(patched, *rest, steps=8)
    return seen


def comfy_scale(model):
    from controlled_diffusion.nodes.host.noise_levels import noise_scale

    return noise_scale(model)


def test_layers_and_steps_outside_the_windows_have_no_replacement_at_all(model, clip):
    keys = {p.key: p.scale for p in unet_places(model)}
    seen = replacements(model, clip, cross_start=0.2, cross_end=0.6, self_end=0.4, cross_layers="middle, output", self_layers="1/2")
    assert len(seen) == 8
    for percent, there in seen:
        cross = sorted(k for k in keys if k[0] != "input") if 0.2 <= percent < 0.6 else []
        assert there.get("attn2", []) == cross and there.get("attn1", []) == (
            sorted(k for k, s in keys.items() if s >= 2) if percent < 0.4 else []
        )


def test_a_blend_that_is_over_asks_for_no_layer(eps, clip):
    seen = replacements(eps, clip, dict(words="*", end_percent=0.5), **OFF)
    assert [bool(there.get("attn2")) for _, there in seen] == [percent < 0.5 for percent, _ in seen]


def test_a_blend_reads_a_moment_once_whatever_other_nodes_evaluate(eps, clip):
    seen = replacements(PerturbedAttentionGuidance.execute(eps, 3.0).args[0], clip, dict(words="*"), **OFF)
    assert [bool(there.get("attn2")) for _, there in seen] == [True, False] * 8


def test_windows_go_by_noise_and_not_by_calls_of_the_network(eps, clip):
    patched, *rest = patch(eps, clip, cross_end=0.5, self_end=0.0)
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append((float(args[5]["sigmas"][0]), "attn2" in args[5].get("patches_replace", {})))
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", spy)
    for sampler in ("heun", "dpmpp_sde"):
        seen.clear()
        sample(patched, *rest, sampler=sampler)
        scale = comfy_scale(eps)
        assert len(seen) > 4 and all(edited == (scale.percent(sigma) < 0.5) for sigma, edited in seen)


def image_prompt(strength=0.7):
    """An attention replacement such as an IP-Adapter's: the text's attention, by what was there before or the host, plus a term."""

    def attend(q, k, v, options):
        from comfy.ldm.modules.attention import optimized_attention

        return optimized_attention(q, k, v, options["n_heads"]) + strength * q.mean(1, keepdim=True)

    return attend


def with_replacements(model):
    patched = model.clone()
    for place in unet_places(model)[::2]:
        patched.set_model_attn2_replace(image_prompt(), *place.key)
    for place in unet_places(model)[1::2]:
        patched.set_model_attn2_replace(image_prompt(), *place.key[:2])  # a whole block's
    return patched


def test_it_works_on_top_of_other_nodes_attention_in_either_order(model, clip):
    before, *rest = patch(with_replacements(model), clip, **ALL)
    patched = patch(model, clip, **ALL)
    one, other = sample(before, *rest), sample(with_replacements(patched[0]), *patched[1:])
    assert_close(one, other, atol=1e-5, rtol=1e-5)
    plain = sample(with_replacements(model), *rest)
    assert torch.equal(one[0], plain[0]) and differ(one[1], plain[1]) > 1e-4
    assert differ(one[1], drawn(model, clip, **ALL)[1]) > 1e-3
    same = drawn(with_replacements(model), clip, SOURCE, **ALL)
    assert torch.equal(same[0], same[1])


def test_with_another_nodes_attention_the_text_is_edited_as_without(eps, clip):
    """A replacement that is the host's own attention changes nothing, though its output is only added to."""
    patched = eps.clone()
    for place in unet_places(eps):
        patched.set_model_attn2_replace(image_prompt(0.0), *place.key)
    knobs = dict(targets="a very blue big circle", **ALL)
    assert_close(drawn(patched, clip, **knobs), drawn(eps, clip, **knobs), **CLOSE)


def test_an_attention_override_of_another_node_is_kept(eps, clip):
    seen, patched = [], eps.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: seen.append(1) or f(*a, **k)
    assert torch.equal(drawn(patched, clip, SOURCE), drawn(eps, clip, SOURCE)) and seen


def with_lora(model):
    patched = model.clone()
    weights = model.model.state_dict()
    names = [n for n in weights if n.endswith(("attn2.to_k.weight", "attn1.to_q.weight"))]
    draw = torch.Generator().manual_seed(3)
    patched.add_patches({n: ("diff", (0.3 * torch.randn(weights[n].shape, generator=draw),)) for n in names}, 1.0)
    return patched


def test_it_goes_with_changed_weights_before_or_after_it(eps, clip):
    patched = patch(eps, clip, **ALL)
    one, other = drawn(with_lora(eps), clip, **ALL), sample(with_lora(patched[0]), *patched[1:])
    assert_close(one, other, **CLOSE)
    assert differ(one[1], drawn(eps, clip, **ALL)[1]) > 1e-3
    assert torch.equal(*drawn(with_lora(eps), clip, SOURCE, **ALL))


def test_it_goes_with_a_controlnet_on_its_positive(clip):
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


def test_it_goes_with_several_guidance_channels(model, clip):
    def guided(target, patched=True):
        edited, positive, negative, latent, _ = patch(model, clip, target, **ALL)
        guider = MultiCFG(
            edited if patched else model, negative, [Channel(encoded(clip, "a cat"), 2.0), Channel(positive, 3.0, name="p2p")]
        )
        noise = comfy.sample.prepare_noise(latent["samples"], 7, latent["batch_index"])
        return guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas_of(model), disable_pbar=True, seed=7)

    assert torch.equal(*guided(SOURCE))
    made, plain = guided(SWAP), guided(SWAP, patched=False)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4


def test_a_guider_gives_what_ksampler_gives(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    noise = comfy.sample.prepare_noise(latent["samples"], 7, latent["batch_index"])
    made = guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas_of(eps), disable_pbar=True, seed=7)
    assert torch.equal(made, sample(patched, positive, negative, latent))


def test_a_second_patch_on_one_model_is_refused(eps, clip):
    first, *_ = patch(eps, clip, **ALL)
    with pytest.raises(ValueError, match="already comes from a P2P Attention Patch"):
        patch(first, clip, SOURCE, **ALL)


def test_runs_do_not_influence_each_other_and_the_model_is_unchanged(eps, clip):
    before = drawn(eps, clip, unpatched=True)
    patched, *rest = patch(eps, clip, blend_words="circle", word_weights="blue: 2")
    one, two = sample(patched, *rest), sample(patched, *rest)
    assert torch.equal(one, two) and torch.equal(before, drawn(eps, clip, unpatched=True))
    assert "controlled_diffusion.attention" not in eps.model_options["transformer_options"]




def test_a_long_negative_or_target_leaves_the_source_as_it_is(eps, clip):
    """The host repeats the shorter conditioning to the length of the longer: maps are then split over copies."""
    source = drawn(eps, clip, SOURCE)[0]
    for knobs in (dict(targets=SOURCE, negative=LONG), dict(targets=LONG), dict(targets=LONG, negative=LONG * 2)):
        made = drawn(eps, clip, **knobs)
        reference = source if "negative" not in knobs else drawn(eps, clip, unpatched=True, **knobs)[0]
        assert_close(made[0], reference, **CLOSE)
    assert torch.equal(*drawn(eps, clip, SOURCE, negative=LONG, **ALL))
    assert torch.equal(*drawn(eps, clip, LONG, source=LONG, **ALL))


def test_a_long_negative_does_not_change_the_edit(eps, clip):
    """At cfg 1 the negative is not evaluated; here it is, in one batch with the positive."""
    knobs = dict(targets="a very blue big circle", word_weights="circle: 2", **ALL)
    patched, positive, negative, latent, _ = patch(eps, clip, **knobs)
    long = encoded(clip, LONG)
    short, wide = (first_predictions(patched, positive, n, latent)[0][0] for n in (negative, long))
    assert_close(short, wide, **CLOSE)


def test_words_of_the_real_tokenizer_have_their_columns(clip):
    found = prompt_of(clip, "Don't stop... a (siamese:1.3) cat \\(x\\) ninetyninepercent")
    tokenizer = HostTokenizer(clip, "l")
    flat = [entry for chunk in tokenizer.chunks(found.text) for entry in chunk]
    assert [w.text for w in found.words] == ["Don't", "stop", "...", "a", "siamese", "cat", "(", "x", ")", "ninetyninepercent"]
    assert [len(w.columns) for w in found.words] == [2, 1, 1, 1, 1, 1, 1, 1, 1, 4]
    assert [c for w in found.words for c in w.columns] == [i for i, (_, is_text) in enumerate(flat) if is_text]
    assert found.length == encoded(clip, found.text)[0][0].shape[1] == 77


def test_prompts_of_several_chunks_have_their_columns(clip):
    found = prompt_of(clip, LONG)
    assert found.length == encoded(clip, LONG)[0][0].shape[1] == 154 and len(found.words) == 4 * 30
    assert found.words[-2].columns == (121,) and len(found.heads) == 2


def with_a_learnt_word(tmp_path, vectors: int = 3):
    save_file({"clip_l": torch.randn(vectors, tiny.CONTEXT, generator=torch.Generator().manual_seed(0))}, tmp_path / "thing.safetensors")
    clip = tiny.clip(dtype=torch.float32, embedding_directory=str(tmp_path))
    clip.tokenizer.clip_l.embedding_size = tiny.CONTEXT
    return clip


def test_a_learnt_word_has_the_columns_of_its_vectors(tmp_path):
    found = prompt_of(with_a_learnt_word(tmp_path), "a red embedding:thing, on white")
    assert [(w.text, len(w.columns)) for w in found.words][2:4] == [("embedding:thing", 3), (",", 1)]
    assert found.find("white")[0] == (5,) and found.words[5].columns == (8,)


class Tokens:
    """The part of a CLIP that turns text into tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, text, return_word_ids=False):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


def test_both_encoders_of_sdxl_see_the_same_words():
    from comfy.sdxl_clip import SDXLTokenizer

    found = prompt_of(Tokens(SDXLTokenizer()), "a (siamese:1.2) cat")
    assert [w.text for w in found.words] == ["a", "siamese", "cat"] and found.length == 77
    assert found == prompt_of(tiny.clip(), "a (siamese:1.2) cat")


def test_a_learnt_word_is_swapped_weighed_and_masked_like_any_other(eps, tmp_path):
    clip, learnt = with_a_learnt_word(tmp_path), "a embedding:thing circle"
    text = patch(eps, clip, learnt)[4]
    assert "red -> embedding:thing (3 tokens): takes over its map" in text
    plain = drawn(eps, clip, learnt, unpatched=True)
    made = drawn(eps, clip, learnt, word_weights="embedding:thing: 2", blend_words="embedding:thing", **ALL)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-4
    assert torch.equal(*drawn(eps, clip, learnt, source=learnt, **ALL))


def test_sdxl_is_edited_by_the_columns_that_both_its_encoders_share():
    model, clip = tiny_text.denoiser("sdxl"), tiny_text.clip("sdxl")
    assert torch.equal(*drawn(model, clip, SOURCE, **ALL))
    made, plain = (drawn(model, clip, unpatched=unpatched, **ALL) for unpatched in (False, True))
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-5


def test_a_word_of_unlike_lengths_in_the_encoders_is_refused_with_its_tokens(tmp_path):
    widths = {"clip_l": 2, "clip_g": 3}
    clip = tiny_text.clip("sdxl", embedding_directory=str(tmp_path))
    for name, vectors in widths.items():
        part = getattr(clip.tokenizer, name)
        part.embedding_size = 24
        widths[name] = torch.zeros(vectors, 24)
    save_file(widths, tmp_path / "thing.safetensors")
    with pytest.raises(ValueError, match=r"different tokens of 'a embedding:thing'.*embedding:thing \(.\).*equally many vectors"):
        prompt_of(clip, "a embedding:thing")


def test_rows_of_several_conditionings_bring_their_pooled_texts(clip):
    one, two = encoded(clip, SOURCE), encoded(clip, LONG)
    (rows, values), times = as_rows([one, two], 2)[0][0], as_rows([one, two], 2)[1]
    assert rows.shape == (4, 154, tiny.CONTEXT) and times == [2, 1]
    assert torch.equal(rows[0], one[0][0][0].repeat(2, 1)) and torch.equal(rows[3], two[0][0][0])
    assert torch.equal(values["pooled_output"][[0, 2]], torch.cat([one[0][1]["pooled_output"], two[0][1]["pooled_output"]]))


def test_the_alignment_is_given_in_words(eps, clip):
    text = patch(eps, clip, "a very blue circle", word_weights="circle: 2")[4]
    assert "very blue: a share of the map of red, times 1.5" in text and "x 2 circle" in text


def test_every_line_of_weights_makes_an_image_of_one_target(eps, clip):
    made = drawn(eps, clip, "", word_weights="red: 1\nred: 3, circle:0.5\nred: 3, circle:0.5")
    assert torch.equal(made[0], made[1]) and differ(made[2], made[0]) > 1e-4 and torch.equal(made[2], made[3])


def test_a_word_may_keep_its_map_longer_or_shorter(eps, clip):
    usual, early, off = (drawn(eps, clip, word_windows=w)[1] for w in ("", "blue: 0-0.3", "blue: 0-0"))
    assert differ(usual, early) > 1e-5 and differ(early, off) > 1e-5


def test_alpha_goes_from_none_to_all(eps, clip):
    none, half, whole = (drawn(eps, clip, alpha=a, **ALL)[1] for a in (0.0, 0.5, 1.0))
    assert torch.equal(none, drawn(eps, clip, unpatched=True)[1])
    assert differ(none, half) > 1e-4 and differ(half, whole) > 1e-4
    assert_close(drawn(eps, clip, alpha=1 - 1e-6, **ALL)[1], whole, **CLOSE)




def test_a_blend_that_lets_nothing_through_is_the_source_and_one_that_lets_all_through_is_no_blend(model, clip):
    nothing = drawn(model, clip, blend_words="circle", blend_threshold=1.0, blend_start=0.0)
    assert_close(nothing[1], nothing[0], atol=1e-5, rtol=1e-5)
    everything = drawn(model, clip, blend_words="circle", blend_threshold=0.0, blend_start=0.0)
    assert torch.equal(everything, drawn(model, clip))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "lms", "uni_pc"])
def test_off_the_mask_the_edit_ends_as_the_source(eps, clip, sampler):
    patched, *rest = patch(eps, clip, blend_words="blue", blend_threshold=0.85)
    made = sample(patched, *rest, sampler=sampler, steps=6)
    run = patched.model_options["transformer_options"]["controlled_diffusion.attention"][-1].runs[0]
    masks = [m[0] for _, m in run.blending.masks]
    kept = ~torch.stack(masks).any(0)
    assert kept.any() and not kept.all()
    assert_close(made[1][:, kept], made[0][:, kept], atol=1e-4 if sampler != "uni_pc" else 5e-3, rtol=1e-4)  # that one stops before 0
    assert differ(made[1][:, masks[-1]], made[0][:, masks[-1]]) > 1e-3


def test_words_of_either_prompt_name_a_place_in_both_and_a_star_all_that_changes(eps, clip):
    named = [drawn(eps, clip, blend_words=w, blend_threshold=0.8) for w in ("red", "blue", "*")]
    assert torch.equal(named[0], named[1]) and torch.equal(named[0], named[2])
    assert differ(named[0], drawn(eps, clip, blend_words="circle", blend_threshold=0.8)) > 1e-4
    protected = drawn(eps, clip, protect_words="circle", blend_threshold=0.8)
    assert differ(protected, drawn(eps, clip)) > 1e-4


def test_a_star_of_words_that_are_only_weighed_is_just_these(eps, clip):
    given = dict(targets="", source="a red circle and a blue star", operation="reweight only", word_weights="blue: 2")
    edited = [
        patch(eps, clip, blend_words=words, **given)[0]
        .model_options["transformer_options"]["controlled_diffusion.attention"][0]
        .blend.edited
        for words in ("*", "blue")
    ]
    assert edited[0] == edited[1]


def test_masks_come_from_a_quarter_of_the_side_or_the_coarsest_fine_enough(eps):
    class Some:
        def __init__(self, scale):
            self.scale = scale

    def scales(sides, size):
        return {p.scale for p in blend_places([Some(s) for s in sides], size)}

    assert scales([1, 2, 4, 8], (64, 64)) == {4} and scales([2, 4], (128, 128)) == {4}
    assert scales([1, 2], (16, 16)) == {1} and scales([1, 2], (64, 64)) == {2} and scales([2], (8, 8)) == {2}
    assert {p.scale for p in unet_places(eps)} == {1, 2}


def with_blend(model, **knobs):
    return P2PLocalBlend.execute(model, **defaults(P2PLocalBlend) | knobs).args[0]


def test_a_blend_of_its_own_does_what_the_patchs_does(eps, clip):
    plain, *rest = patch(eps, clip)
    knobs = dict(blend_words="circle", protect_words="a", blend_threshold=0.8, blend_start=0.3)
    own = sample(with_blend(plain, words="circle", protect_words="a", threshold=0.8, start_percent=0.3), *rest)
    assert torch.equal(own, drawn(eps, clip, **knobs)) and differ(own, drawn(eps, clip)) > 1e-3
    other, *rest = patch(eps, clip, blend_words="blue", blend_threshold=0.5)
    assert torch.equal(sample(with_blend(other, words="circle", protect_words="a", threshold=0.8, start_percent=0.3), *rest), own)
    assert torch.equal(sample(with_blend(other, words=""), *rest), drawn(eps, clip))


def test_a_blend_that_ends_early_lets_everything_differ_again(eps, clip):
    patched, *rest = patch(eps, clip)
    whole, early = (sample(with_blend(patched, threshold=0.9, end_percent=e), *rest, steps=8) for e in (1.0, 0.5))
    assert differ(whole, early) > 1e-3 and torch.equal(whole[0], early[0])


def test_a_blend_needs_the_patch(eps):
    with pytest.raises(ValueError, match=r"ModelPatcher.* does not come from a P2P Attention Patch"):
        with_blend(eps)


def masks_of(patched) -> list:
    return patched.model_options["transformer_options"]["controlled_diffusion.attention"][0].runs[0].blending.masks


def test_a_blend_does_not_look_at_a_positive_in_an_area(eps, clip):
    patched, positive, *rest = patch(eps, clip, blend_words="*", blend_threshold=0.8)
    part = host_nodes.ConditioningSetArea().append(positive, 32, 32, 0, 0, 1.0)[0]
    sample(patched, [*positive, *part], *rest)
    assert masks_of(patched)[0][1].shape == (1, 8, 8)
    made = sample(patched, part, *rest)
    with pytest.raises(ValueError, match=r"did not act in any step of the run.*acts in an area alone"):
        P2PBlendMask.execute(patched, {"samples": made}, 1.0)


def shrunk(model):
    """With the host's Deep Shrink, which halves the image of some layers in the first half of the sampling."""
    return PatchModelAddDownscale.execute(model, 1, 2.0, 0.0, 0.5, False, "bicubic", "bicubic").args[0]


def test_a_blend_goes_with_an_image_that_is_shrunk_for_some_steps(eps, clip):
    patched, *rest = patch(shrunk(eps), clip, blend_words="*", blend_threshold=0.8)
    sample(patched, *rest)
    assert len(masks_of(patched)) == 3


def test_a_star_where_nothing_changes_lets_everything_through(eps, clip):
    assert torch.equal(*drawn(eps, clip, SOURCE, blend_words="*", **ALL))


def test_the_masks_of_a_run_are_read_from_its_model_or_guider(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip, "a blue circle\na cat", blend_words="*", blend_threshold=0.8, batch_size=2)
    samples = {"samples": sample(patched, positive, negative, latent, steps=6)}
    run = patched.model_options["transformer_options"]["controlled_diffusion.attention"][0].runs[0]
    mask, table, passed = P2PBlendMask.execute(with_lora(patched), samples, 1.0).args
    assert passed is samples and mask.shape == (4, 64, 64)
    assert torch.equal(mask[:, ::8, ::8], run.blending.masks[-1][1].float()) and 0 < mask.mean() < 1
    early, *_ = P2PBlendMask.execute(comfy.samplers.CFGGuider(patched), samples, run.blending.masks[0][0]).args
    assert torch.equal(early[:, 4::8, 7::8], run.blending.masks[0][1].float())
    image = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    over = P2PBlendMask.execute(patched, samples, 1.0, image).args[1]
    assert over.shape == table.shape and differ(over, table) > 0.1
    assert torch.equal(over, P2PBlendMask.execute(patched, samples, 1.0, image[2:]).args[1])
    videos = torch.rand(18, 64, 64, 3, generator=torch.Generator().manual_seed(1)).index_copy(0, torch.arange(1, 18, 3), image)
    assert torch.equal(over, P2PBlendMask.execute(patched, samples, 1.0, videos).args[1])  # three frames each


@pytest.mark.parametrize(
    "knobs, message",
    [
        (None, "There is no finished run to look at"),
        ({}, "The run had no local blend"),
        (dict(blend_words="*", blend_start=1.0), "did not act in any step"),
    ],
)
def test_masks_that_are_not_there_are_told(eps, clip, knobs, message):
    patched, *rest = patch(eps, clip, **knobs or {})
    if knobs is not None:
        sample(patched, *rest)
    with pytest.raises(ValueError, match=message):
        P2PBlendMask.execute(patched, {}, 1.0)


def test_images_that_do_not_fit_the_masks_are_refused(eps, clip):
    patched, *rest = patch(eps, clip, "a blue circle\na cat", blend_words="*")
    sample(patched, *rest)
    for count in (1, 5):
        with pytest.raises(ValueError, match=f"'image' has {count} images for 2 edits and 1 of the source"):
            P2PBlendMask.execute(patched, {}, 1.0, torch.zeros(count, 64, 64, 3))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_is_over_or_was_stopped_holds_no_conditionings(eps, clip, stopped):
    patched, positive, *rest = patch(eps, clip, blend_words="*")
    patched, positive = AttentionMapCapture.execute(patched, clip, f"{SOURCE}\n{SWAP}", "", "all", 0.0, 1.0, 1, positive).args

    def stop(step, x0, x, steps):
        if stopped and step == 2:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException) if stopped else nullcontext():
        sample(patched, positive, *rest, callback=stop)
    edited, captured = (c.runs[0] for c in patched.model_options["transformer_options"]["controlled_diffusion.attention"])
    assert not any(run.conds or run.parts.marked for run in (edited, captured))
    assert edited.blending.masks and not edited.moments and edited.blending.sums is None and captured.sums.total




def inverted(model, clip, source=SOURCE, images=1, steps=6):
    samples = 5 * torch.randn(images, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return DDIMInverter.execute(model, encoded(clip, source), {"samples": samples}, steps, "normal", 0.0).args[0], samples


@pytest.mark.parametrize("images", [1, 2])
def test_an_inversion_is_edited_while_its_source_row_stays_the_image(clip, images):
    model = tiny.unet("eps", output_scale=0.05)
    inversion, samples = inverted(model, clip, images=images)
    patched, positive, negative, *_ = patch(model, clip, "a blue circle\na red circle", batch_size=images, **ALL)
    both = InversionSampler.execute(patched, inversion, 4.0, "direct", positive, negative).args[0]["samples"]
    plain = InversionSampler.execute(model, inversion, 4.0, "direct", positive, negative).args[0]["samples"]
    assert both.shape[0] == 3 * images
    assert_close(both[:images], samples, atol=1e-5, rtol=1e-5)
    edits = slice(images, 2 * images)
    assert differ(both[edits], plain[edits]) > 1e-3
    free = InversionSampler.execute(patched, inversion, 4.0, "source and edit", positive, negative).args[0]["samples"]
    assert torch.equal(free[2 * images :], free[:images])


EXACT = dict(cfg=3.0, precision="highest")
INVERTERS = {
    DDIMInverter: dict(fixed_point_iterations=20),
    EDICTInverter: EXACT,
    BDIAInverter: EXACT,
    BELMInverter: EXACT,
    EditFriendlyInverter: dict(cfg=3.0, skip=1),
    NullTextInverter: dict(cfg=3.0),
    NegativePromptInverter: {},
}


@pytest.mark.parametrize("inverter", INVERTERS)
def test_every_inversion_gives_the_image_and_its_edit(clip, inverter):
    model, cfg = tiny.unet("eps", output_scale=0.05), 1.0 if inverter is DDIMInverter else 3.0
    samples = 5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    given = dict(model=model, source=encoded(clip, SOURCE), image={"samples": samples}, steps=6, scheduler="karras")
    given |= {} if inverter in (DDIMInverter, NegativePromptInverter) else dict(negative=encoded(clip, ""))
    inversion = inverter.execute(**defaults(inverter) | given | INVERTERS[inverter]).args[0]

    def replayed(target, patched=True, branches="source and edit"):
        edited, positive, *_ = patch(model, clip, target, **ALL)
        return InversionSampler.execute(edited if patched else model, inversion, cfg, branches, positive).args[0]["samples"]

    exact = inverter not in (NullTextInverter, NegativePromptInverter)
    for branches in ("source and edit", "direct"):
        made, plain = (replayed(SWAP, patched, branches) for patched in (True, False))
        assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-3 and differ(made[1], made[0]) > 1e-3
        if exact or branches == "direct":
            assert_close(made[:1], samples, atol=1e-3, rtol=1e-3)
    assert torch.equal(*replayed(SOURCE))


def test_a_replay_needs_a_row_of_the_source_for_every_image(clip):
    model = tiny.unet("eps", output_scale=0.05)
    inversion, _ = inverted(model, clip, images=2)
    patched, positive, negative, *_ = patch(model, clip)
    for branches in ("edit", "source and edit", "direct"):
        with pytest.raises(ValueError, match=r"with an inversion.* as many images in batch_size as were inverted"):
            InversionSampler.execute(patched, inversion, 4.0, branches, positive, negative)
    single, _ = inverted(model, clip)
    with pytest.raises(ValueError, match=r"positive has 2 rows, but 1 image was inverted; give 1\. Rows of P2P.*branches 'direct'"):
        InversionSampler.execute(patched, single, 4.0, "edit", positive, negative)




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
def test_bad_input_is_refused_with_what_to_do(eps, clip, knobs, message):
    with pytest.raises(ValueError, match=message):
        patch(eps, clip, **knobs)


def test_wires_that_are_missing_are_named(eps, clip):
    patched, positive, negative, latent, _ = patch(eps, clip)
    with pytest.raises(ValueError, match="none of the conditionings that are sampled is the 'positive' of that node"):
        sample(patched, encoded(clip, SWAP), negative, latent)
    with pytest.raises(ValueError, match=r"1 images are sampled, but P2P Attention Patch made 2 rows: 1 of the source"):
        sample(patched, positive, negative, {"samples": latent["samples"][:1], "batch_index": None})
    with pytest.raises(ValueError, match="start from different noise"):
        sample(patched, positive, negative, {**latent, "batch_index": None})


def test_a_network_of_another_kind_is_refused_by_name(clip):
    with pytest.raises(ValueError, match=r"PixArt.* does not route its attention through ComfyUI's hook"):
        patch(tiny_dits.dit("pixart"), clip)
