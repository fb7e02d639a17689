"""Prompt-to-Prompt on tiny random DiTs of every family that ComfyUI routes through its attention override."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from controlled_diffusion.attention import local_blend
from controlled_diffusion.attention.layers import Block
from controlled_diffusion.attention.local_blend import Blending
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.host.attention.dit import TokenCall, additive
from controlled_diffusion.nodes.host.attention.prompt_to_prompt_dit import map_blocks
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.prompt_to_prompt import P2PBlendMask

import explicit
from compare import assert_close
from host import editing, inversions, tiny_dits
from host.editing import OFF, Keys, control_of, differ, last_run, masks_of, with_blend, with_fewer_tokens
from host.sampling import with_options_seen

pytestmark = pytest.mark.usefixtures("inference_mode")
FAMILIES = tiny_dits.there(tiny_dits.DITS)
SOURCE, SWAP, LONGER = "red circle", "blue circle", "a very shiny blue circle on white"
ALL = editing.ALL | dict(self_layers="1/2")
CLOSE = dict(atol=1e-4, rtol=1e-4)
sample = partial(editing.sample, cfg=1.0, scheduler="simple", steps=3)


@pytest.fixture
def clip(text_model):
    return tiny_dits.Clip(text_model, "flux")


@pytest.fixture
def flux():
    return tiny_dits.dit("flux")


def pair(name, text_model):
    """(model, clip) of a family."""
    return tiny_dits.dit(name), tiny_dits.Clip(text_model, name)


def sampled(name, clip, targets=SWAP, **knobs):
    """(what the attentions of a family saw in one step of an edit, its model, tokens of its text)."""
    spy = Keys(tiny_dits.dit(name))
    patched, positive, negative, latent, _ = patch(spy.model, clip, targets, **knobs)
    sample(patched, positive, negative, latent, steps=1)
    return spy, patched, positive[0][0].shape[1]


def patch(model, clip, targets=SWAP, source=SOURCE, **knobs):
    return editing.patch(model, clip, targets, source, **knobs)


def drawn(model, clip, *args, unpatched=False, run=None, **knobs):
    patched, *rest = patch(model, clip, *args, **knobs)
    return sample(model if unpatched else patched, *rest, **(run or {}))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_edited(name, text_model):
    """Equal prompts: equal images. Empty windows: as without the patch. Else the target changes and the source does not."""
    model, clip = pair(name, text_model)
    same = drawn(model, clip, SOURCE, blend_words="circle", **ALL)
    assert torch.equal(same[0], same[1]) and same.isfinite().all()
    plain = drawn(model, clip, unpatched=True)
    assert torch.equal(drawn(model, clip, **OFF), plain)
    made = drawn(model, clip, **ALL)
    assert torch.equal(made[0], plain[0]) and differ(made[1], plain[1]) > 1e-7 and made.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_filled_text_draws_as_by_itself(name, text_model):
    """Families whose place of the image depends on the length of the text are near it; the others are exact."""
    model, clip = pair(name, text_model)
    patched, positive, negative, latent, _ = patch(model, clip, LONGER, **OFF)
    assert len({encoded(clip, t)[0][0].shape[1] for t in (SOURCE, LONGER)}) == 2
    made = sample(patched, positive, negative, latent, steps=1)
    one = {"samples": latent["samples"][:1], "batch_index": None}
    alone = [sample(model, encoded(clip, t), negative, one, steps=1) for t in (SOURCE, LONGER)]
    assert_close(made[1:], alone[1], **CLOSE)
    shifted = name in ("lumina2", "omnigen2", "boogu", "zimage")
    assert_close(made[:1], alone[0], **(dict(atol=0.3 * float(alone[0].std()), rtol=0.3) if shifted else CLOSE))


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.CLOSED))
def test_unsupported_families_are_refused_by_name(name, text_model):
    model, clip = pair(name, text_model)
    message = rf"{type(model.model).__name__}.*does not route its attention through ComfyUI's hook.*Use a UNet model.*Qwen-Image"
    with pytest.raises(ValueError, match=message):
        patch(model, clip)


def test_only_the_images_queries_and_keys_are_shared(clip):
    spy = Keys(tiny_dits.dit("flux"))
    patched, positive, negative, latent, _ = patch(spy.model, clip, self_end=0.4, self_layers="1-2")
    sample(patched, positive, negative, latent, steps=2)
    text = positive[0][0].shape[1]
    assert len(spy.seen) == 8
    for call, (q, k, _) in enumerate(spy.seen):
        exchanged = call in (1, 2)  # blocks 1 and 2 of 4, in the first of two steps
        for t in (q, k):
            assert torch.equal(t[0, :, text:], t[1, :, text:]) == exchanged
            assert not torch.equal(t[0, :, :text], t[1, :, :text])


@pytest.mark.parametrize("blend, acting", [("", 3), ("circle", 4)])
def test_outside_the_windows_nothing_is_overridden(flux, clip, blend, acting):
    (patched, *rest), seen = patch(flux, clip, self_end=0.3, **dict(blend_words=blend) if blend else {}), []
    sample(with_options_seen(patched, lambda options: seen.append("optimized_attention_override" in options)), *rest, steps=7)
    assert seen == [True] * acting + [False] * (7 - acting)


def test_changed_tokens_are_an_error_even_without_an_edit(flux, clip):
    patched, *rest = patch(flux, clip, **OFF)
    with pytest.raises(ValueError, match="No attention of Flux came through ComfyUI's hook with 16 tokens of the image"):
        sample(with_fewer_tokens(patched, 1), *rest)


@pytest.mark.parametrize("control", ["capture", "edit"])
def test_steps_that_a_cache_skips_are_no_error(flux, clip, control):
    cached, negative = EasyCacheNode.execute(flux, 3.0, 0.0, 1.0, False).args[0], encoded(clip, SOURCE)
    runs = []
    cached = with_options_seen(cached, runs.append)
    if control == "edit":
        made = drawn(cached, clip, run=dict(steps=6), **ALL)
    else:
        patched, positive = AttentionMapCapture.execute(cached, clip, SOURCE, "", "all", 0.5, 1.0, 1).args
        made = sample(patched, positive, negative, {"samples": tiny_dits.empty("flux"), "batch_index": None}, steps=6)
    assert made.isfinite().all() and len(runs) < 6


def test_another_override_is_kept_in_either_order(flux, clip):
    def louder(function, q, k, v, *args, **kwargs):
        return function(q, k, 1.5 * v, *args, **kwargs)

    before, behind = flux.clone(), patch(flux, clip, **ALL)
    before.model_options["transformer_options"]["optimized_attention_override"] = louder
    behind[0].model_options["transformer_options"]["optimized_attention_override"] = louder
    one = drawn(before, clip, **ALL)
    assert torch.equal(one, sample(*behind)) and differ(one, drawn(flux, clip, **ALL)) > 1e-3
    assert torch.equal(*drawn(before, clip, SOURCE, **ALL))


def test_a_weight_scales_the_attention_to_a_word(clip):
    spy, patched, text = sampled("flux", clip, self_end=0.0, word_weights="blue: 2, circle: 0")
    control = control_of(patched)
    blue, circle = (control.prompts.alignments[0].target.columns(w) for w in ([0], [1]))
    bias = torch.zeros(2, text + 16, device=spy.seen[0][0].device)
    bias[1, list(blue)], bias[1, list(circle)] = math.log(2), -math.inf
    assert len(spy.seen) == 4 and all(torch.equal(mask[:, 0, 0], bias) for _, _, mask in spy.seen)
    assert torch.equal(drawn(spy.model, clip, word_weights="blue: 1"), drawn(spy.model, clip))
    told = patch(spy.model, clip, word_weights="blue: 2")[4]
    assert told.startswith("Flux: the image's queries and keys are taken over") and "x 2 blue" in told


def test_a_weight_acts_in_the_chosen_blocks(clip):
    spy, *_ = sampled("flux", clip, self_end=0.0, word_weights="blue: 2", cross_layers="1-2")
    assert [mask is not None for *_, mask in spy.seen] == [False, True, True, False]


def test_a_weight_leaves_text_refiners_alone(text_model):
    spy, _, text = sampled("hunyuan_video", tiny_dits.Clip(text_model, "hunyuan_video"), word_weights="blue: 2")
    assert [mask is None for q, _, mask in spy.seen if q.shape[2] == text] == [True, True]
    assert [mask is None for q, _, mask in spy.seen if q.shape[2] > text] == [False] * 2


def test_a_words_window_holds_for_its_weight(flux, clip):
    always, early, never = (drawn(flux, clip, word_weights="blue: 3", word_windows=f"blue: 0-{e}")[1] for e in (1, 0.3, 0))
    assert differ(always, early) > 1e-5 and differ(early, never) > 1e-5 and torch.equal(never, drawn(flux, clip)[1])


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(self_start=0.3), "self_start is 0.3, but self_end is 0.2: .*Give self_start at most 0.2, or a larger self_end"),
        (dict(blend_words="circle", blend_start=0.6), "start_percent is 0.6, but end_percent is 0.5"),
        (dict(word_weights="blue: -1"), "A word has weight -1, but in the joint attention of Flux"),
        (dict(cross_layers="99"), r"cross_layers has '99', which names no block of this model"),
    ],
)
def test_bad_input_is_refused(flux, clip, knobs, message):
    with pytest.raises(ValueError, match=message):
        patch(flux, clip, **knobs)


@pytest.mark.parametrize("name", ["flux", "flux2", "hidream", "hunyuan_video", "wan"])
def test_blends_of_nothing_and_of_everything(name, text_model, monkeypatch):
    monkeypatch.setattr(local_blend, "FLAT", 0.0)  # the maps of random weights are flat
    model, clip = pair(name, text_model)
    knobs = dict(blend_words="circle", blend_start=0.0)
    nothing = drawn(model, clip, LONGER, blend_threshold=1.0, **knobs)
    everything = drawn(model, clip, LONGER, blend_threshold=0.0, **knobs)
    assert torch.equal(everything, drawn(model, clip, LONGER))
    assert differ(nothing[1], nothing[0]) < differ(everything[1], everything[0])
    shares = []
    for threshold in (0.1, 0.3, 0.6, 0.9):
        run = patch(model, clip, LONGER, blend_threshold=threshold, **knobs)
        sample(*run, steps=1)
        mask = masks_of(run[0])[0][1]
        assert mask.shape == (1, *tiny_dits.empty(name).shape[-2:])
        shares.append(float(mask.float().mean()))
    assert shares == sorted(shares, reverse=True) and any(0 < s < 1 for s in shares)


@pytest.mark.parametrize("name", ["flux", "flux2", "hidream", "zimage"])
def test_a_blend_uses_the_maps_of_its_words(name, text_model, monkeypatch):
    sums, end = [], Blending.end
    monkeypatch.setattr(Blending, "end", lambda self: sums.append(self.sums) or end(self))
    knobs = dict(blend_words="circle", blend_start=0.0, self_end=0.0)
    spy, patched, total = sampled(name, tiny_dits.Clip(text_model, name), LONGER, **knobs)
    control, blocks, filled = control_of(patched), last_run(patched).map_layers, 32 if name == "zimage" else total
    start, image = {"flux2": (512 - total, 512), "hidream": (16, 0)}.get(name, (0, filled))
    wanted = torch.zeros(2, 16, device=spy.seen[0][0].device)
    for number, (q, k, mask) in enumerate(spy.joint(16 + filled)):
        if number in blocks:
            p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + (0 if mask is None else mask)).softmax(-1).mean(1)[:, image : image + 16]
            for side, words in enumerate(control.blend.edited[0]):
                front = total - control.lengths[side] if name == "flux2" else 0
                wanted[side] += p[side][:, [start + front + c for c in words]].sum(-1)
    assert_close(sums[0][:, 0].flatten(1), wanted, atol=1e-5, rtol=1e-4)


def test_blends_of_joint_models_end_halfway_and_show_masks(flux, clip):
    patched, *rest = patch(flux, clip, blend_words="circle", blend_threshold=1.0, blend_start=0.0)
    sample(patched, *rest, steps=7)
    percents = [p for p, _ in masks_of(patched)]
    assert len(percents) == 4 and max(percents) < 0.5
    patched, *rest = patch(flux, clip)
    blended = with_blend(patched, words="circle", threshold=1.0, start_percent=0.0)
    assert control_of(blended).blend.blur == 1.0
    made = sample(blended, *rest)
    mask, table, _, told = P2PBlendMask.execute(blended, {"samples": made}, 1.0).args
    assert told.startswith("edit 1: 0 % of the image may differ. Warning: the edit equals the source.")
    assert mask.shape == (1, 64, 64) and table.shape[0] == 1 and differ(made, sample(patched, *rest)) > 1e-5


def test_blocks_for_masks():
    def blocks(module, total):
        return map_blocks(SimpleNamespace(module=module, places=[Block(i, total) for i in range(total)]))

    assert blocks("flux.model", 57) == {11, 12, 14, 17, 18} and blocks("flux.model", 9) == {2, 3, 4, 5, 6}
    assert blocks("qwen_image.model", 60) == {28, 29, 30, 31, 32} and blocks("wan.model", 2) == {0, 1}


def test_an_inversion_is_edited_and_its_source_row_kept(clip):
    model = tiny_dits.dit("flux")
    for weights in model.model.diffusion_model.final_layer.parameters():
        weights.data *= 0.05  # a random network is wild
    samples = torch.randn(1, *tiny_dits.empty("flux").shape[1:], generator=torch.Generator().manual_seed(3))
    inversion = inversions.invert("ddim", model, {"samples": samples}, encoded(clip, SOURCE), scheduler="simple")[0]
    patched, positive, negative, *_ = patch(model, clip, **ALL)
    prompts = dict(positive=positive, negative=negative)
    both, plain = (inversions.sample(m, inversion, branches="direct", **prompts) for m in (patched, model))
    assert_close(both[:1], samples, atol=1e-4, rtol=1e-4)
    assert differ(both[1], plain[1]) > 1e-6 and both.isfinite().all()


def test_cross_attention_of_a_dit_is_edited(text_model):
    """The network gets for the target's first cross-attention what its values make of probabilities mapped from the source's."""
    clip, seen = tiny_dits.Clip(text_model, "wan"), []
    spy = Keys(tiny_dits.dit("wan"))
    first = spy.model.get_model_object("diffusion_model").blocks[0].cross_attn
    watch = first.o.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    values = first.v.register_forward_hook(lambda module, given, out: seen.append(out))
    patched, positive, negative, latent, _ = patch(spy.model, clip, LONGER, self_end=0.0, cross_end=1.0)
    sample(patched, positive, negative, latent, steps=1)
    watch.remove(), values.remove()
    control = control_of(patched)
    q, k, mask = spy.seen[1]  # behind the block's self-attention
    p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1)
    edited = explicit.edited(control.edits[0], 0.0, p[0], p[1])
    assert_close(edited.sum(-1), torch.ones_like(edited[..., 0]))
    v, out = seen[0].unflatten(-1, (2, -1)).transpose(1, 2), seen[1]
    assert_close(out, torch.stack([p[0] @ v[0], edited @ v[1]]).transpose(1, 2).flatten(2), **CLOSE)
    hidden = control.lengths[0]
    assert not p[0, ..., hidden:].any() and (p[1, ..., hidden:] > 0).all()
    assert_close(drawn(spy.model, clip, LONGER, **ALL), drawn(tiny_dits.dit("wan"), clip, LONGER, **ALL), **CLOSE)


def test_a_swap_of_equal_length_takes_no_further_attention(text_model, monkeypatch):
    model, clip = pair("wan", text_model)
    assert encoded(clip, SOURCE)[0][0].shape == encoded(clip, SWAP)[0][0].shape
    asked, real = [], TokenCall.kernel
    monkeypatch.setattr(TokenCall, "kernel", lambda self, *a: asked.append(1) or real(self, *a))
    for knobs in ({}, dict(word_weights="blue: 2")):
        swapped = drawn(model, clip, **knobs, **ALL)
        assert not asked and differ(swapped[0], swapped[1]) > 1e-6
    drawn(model, clip, LONGER, **ALL)
    assert asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_are_added_in_the_models_precision(dtype):
    """As torch's attention takes no other mask."""
    mask = additive(torch.tensor([[True, False]]), torch.zeros(1, dtype=dtype))
    assert mask.dtype == dtype and mask.flatten().tolist() == [0.0, -math.inf]
