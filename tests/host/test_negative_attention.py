"""Negative Attention inside the real ComfyUI, on tiny random models."""

import math
from functools import partial
from types import SimpleNamespace

import comfy.model_base
import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Constant, Schedule
from controlled_diffusion.nodes.host.attention.dit import dit_of
from controlled_diffusion.nodes.host.attention.negative_attention import NegativeAttention as Control
from controlled_diffusion.nodes.host.attention.unet import cross_attentions
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.negative_attention import NegativeAttention
from controlled_diffusion.nodes.word_weights import WordWeights

from compare import assert_close
from host import editing, tiny, tiny_dits
from host.editing import differ, sample
from host.sampling import Count, cfg_guider, run
from host.tiny_editors import of_config

pytestmark = pytest.mark.usefixtures("inference_mode")
UNETS = ("eps", "v", "flow")
JOINT = ("flux", "flux2", "chroma", "sd3", "qwen", "zimage", "lumina2", "hunyuan_video", "hunyuan_image", "aura", "mage")
DITS = (*JOINT, "krea2", "cogvideo", "wan", "wan_i2v", "cosmos2", "ltxv", "kandinsky5")
FAMILIES = (*UNETS, *tiny_dits.there({name: tiny_dits.DITS[name] for name in DITS}))
REFUSED = tiny_dits.there({name: f for name, f in tiny_dits.ALL.items() if name not in DITS and name != "wan_vace"})
TEXT, OTHER, EMPTY = tiny.conditioning(1), tiny.conditioning(2), torch.zeros(1, 4, 8, 8)
LOOSE = dict(atol=1e-3, rtol=1e-3)
STRONG = dict(scale=5.0, tau=2.5, alpha=0.5, start_percent=0.0, end_percent=1.0)


def smooth(name: str = "eps"):
    return tiny.unet(name, output_scale=0.2)


def made(name: str):
    """(model, positive, negative, latent) of a family."""
    if name in UNETS:
        return smooth(name), tiny.conditioning(1), tiny.conditioning(2), torch.zeros(1, 4, 8, 8)
    tokens = 32 if name == "zimage" else 7  # which fills a text up to 32, a negative not
    return tiny_dits.dit(name), *(tiny_dits.text(name, seed, tokens) for seed in (1, 2)), tiny_dits.empty(name)


def patched(model, negative, conditioning=None, mask=None, schedule=None, **knobs):
    return NegativeAttention.execute(model, negative, **STRONG | knobs, mask=mask, schedule=schedule, conditioning=conditioning).args


def drawn(model, positive, negative, empty, cfg=1.0, **more):
    return sample(model, positive, negative, {"samples": empty}, cfg=cfg, **dict(steps=2) | more)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_texts_in_one_network_are_kept_apart(name):
    """The positive as its own negative changes nothing: the second text goes as it would alone. Nor does another one with no share."""
    model, positive, negative, empty = made(name)
    plain = drawn(model, positive, negative, empty)
    other = tiny.conditioning(2, 154) if name in UNETS else tiny_dits.text(name, 2, 11)
    for second, knobs in ((positive, {}), (other, dict(alpha=1e-9))):
        assert_close(drawn(patched(model, second, **knobs)[0], positive, negative, empty), plain, atol=2e-4, rtol=2e-4)
    assert differ(drawn(patched(model, other)[0], positive, negative, empty), plain) > 1e-5


def test_every_image_has_its_own_negative_and_mask():
    """Rows of the negative's text, and of the mask, are those of the batch."""
    model, seeds = smooth(), (3, 4)
    single = [tiny.conditioning(seed) for seed in seeds]
    rows = [[torch.cat([c[0][0] for c in single]), single[0][0][1]]]
    noise, masks = (torch.rand(2, *size, generator=torch.Generator().manual_seed(5)) for size in ((4, 8, 8), (8, 8)))

    def made(negative, mask, latent):
        given = (4, 3.0, "euler", "simple", TEXT, OTHER, torch.zeros_like(latent))
        return comfy.sample.sample(patched(model, negative, mask=mask)[0], latent, *given, disable_pbar=True, seed=1)

    both = made(rows, masks, noise)
    alone = [made(c, masks[i : i + 1], noise[i : i + 1]) for i, c in enumerate(single)]
    assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert differ(made(single[0], masks, noise), both) > 1e-4
    with pytest.raises(ValueError, match="The negative holds 2 texts but 3 images are sampled"):
        made(rows, None, torch.rand(3, 4, 8, 8))


@pytest.mark.parametrize("tokens", [(7, 11), (7, 40), (33, 31), (31, 1)])
def test_texts_that_are_filled_up_are_kept_apart(tokens):
    """Z-Image fills texts and images up, and places the image behind the text."""
    model, (positive, other) = tiny_dits.dit("zimage"), (tiny_dits.text("zimage", n, count) for n, count in enumerate(tokens))
    for shape in ((1, 16, 8, 8), (1, 16, 16, 8)):
        given = positive, other, torch.zeros(shape)
        assert_close(drawn(patched(model, other, alpha=1e-9)[0], *given), drawn(model, *given), atol=2e-4, rtol=2e-4)


HUNYUAN_15 = dict(use_cond_type_embedding=True, vision_in_dim=16, byt5=True, in_channels=65, out_channels=32, vec_in_dim=None)
GLYPHS = {"conditioning_byt5small": torch.linspace(-1, 1, 3 * 1472).reshape(1, 3, 1472)}
SEEN = {"clip_vision_output": SimpleNamespace(last_hidden_state=torch.linspace(-1, 1, 5 * 16).reshape(1, 5, 16))}
MASK = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0]])}


@pytest.mark.parametrize(
    "name, model, changed, latent, extras",
    [
        ("HunyuanVideo", "HunyuanVideo", {}, (16, 2, 8, 8), MASK | {"ref_latent": torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 1, 8, 8)}),
        ("HunyuanImage21", "HunyuanImage21", dict(byt5=True), (64, 4, 4), GLYPHS),
        ("HunyuanVideo15", "HunyuanVideo15", HUNYUAN_15, (32, 2, 8, 8), GLYPHS | SEEN),
    ],
)
def test_hunyuan_models_may_see_other_tokens(name, model, changed, latent, extras):
    """Masks of the text, a reference frame, glyphs before or behind the text, and an image before it: all as without the negative."""
    network = (tiny_dits.HUNYUAN_IMAGE if len(latent) == 3 else tiny_dits.HUNYUAN_VIDEO) | changed
    model = of_config(type(name, (getattr(comfy.supported_models, name),), {"unet_extra_config": {}}), network, getattr(comfy.model_base, model), 0)
    positive, negative, empty = tiny_dits.text("hunyuan_video", 1), tiny_dits.text("hunyuan_video", 2, 11), torch.zeros(1, *latent)
    plain = drawn(model, positive, negative, empty)
    positive[0][1] |= extras
    seen, given = drawn(model, positive, negative, empty), (positive, negative, empty)
    assert differ(seen, plain) > 1e-6
    assert_close(drawn(patched(model, negative, alpha=1e-9)[0], *given), seen, atol=2e-4, rtol=2e-4)
    assert differ(drawn(patched(model, negative)[0], *given), seen) > 1e-5


@pytest.mark.parametrize(
    "extras, shape, message",
    [
        ({"reference_latents": [torch.zeros(1, 16, 8, 8)]}, (16, 8), "has reference latents, but where"),
        ({}, (16, 16), "as many tokens as the image, 64"),
    ],
)
def test_where_z_image_cannot_place_the_texts_it_is_refused(extras, shape, message):
    positive, negative = tiny_dits.text("zimage", 1), tiny_dits.text("zimage", 2)
    positive[0][1] |= extras
    with pytest.raises(ValueError, match=message):
        drawn(patched(tiny_dits.dit("zimage"), negative)[0], positive, negative, torch.zeros(1, 16, *shape))


def guided(positive, negative, scale=5.0, tau=2.5, alpha=0.5):
    """The published formula."""
    made = scale * positive - (scale - 1) * negative
    ratio = made.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    return alpha * made * (ratio.clamp_max(tau) / ratio) + (1 - alpha) * positive


@pytest.mark.parametrize("name", UNETS)
def test_each_layer_of_a_unet_is_the_published_formula(name):
    """The oracle makes the negative's keys and values with the layers' own projections."""
    model, positive, negative, empty = made(name)
    oracle = model.clone()
    for place, layer in cross_attentions(model.get_model_object("diffusion_model")).items():

        def replaced(q, k, v, options, layer=layer):
            text = negative[0][0].to(q).expand(len(q), -1, -1)
            give = partial(optimized_attention, heads=options["n_heads"])
            return guided(give(q, k, v), give(q, layer.to_k(text), layer.to_v(text)))

        oracle.set_model_attn2_replace(replaced, place.block, place.number, place.index)
    own = drawn(patched(model, negative)[0], positive, negative, empty)
    assert_close(own, drawn(oracle, positive, negative, empty), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", tiny_dits.there({n: tiny_dits.DITS[n] for n in (*JOINT, "wan")}))
def test_a_dit_is_the_published_second_stream(name):
    """As the published code: positive and negative are two rows, and the image's part of both is the guided one."""
    model, positive, negative, empty = made(name)
    text, extras = negative[0]
    rows = [[torch.cat([positive[0][0], text]), {**extras, "pooled_output": positive[0][1]["pooled_output"]}]]
    dit, tokens = dit_of(model), positive[0][0].shape[1]

    def attend(function, q, k, v, *args, **kwargs):
        out, axis = function(q, k, v, *args, **kwargs), 2 if kwargs.get("skip_reshape") else 1
        image = dit.filled(math.prod(dit.grid(empty.shape)))
        if k.shape[axis] == tokens if dit.cross else k.shape[axis] > image:
            start = out.shape[1] - image
            out[:, start:] = guided(out[:1, start:], out[1:, start:])
        return out

    oracle = model.clone()
    oracle.model_options["transformer_options"]["optimized_attention_override"] = attend
    noise = comfy.sample.prepare_noise(empty, 7)

    def sampled(model, given, images):
        settings = (2, 1.0, "euler", "simple", given, given, torch.cat([empty] * images))
        return comfy.sample.sample(model, torch.cat([noise] * images), *settings, disable_pbar=True, seed=7)

    positive[0][1]["pooled_output"] = rows[0][1]["pooled_output"]
    assert_close(sampled(patched(model, negative)[0], positive, 1), sampled(oracle, rows, 2)[:1], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["eps", "flux", "wan"])
def test_no_second_pass_of_the_network(name):
    model, positive, negative, empty = made(name)
    for cfg, rows in ((1.0, 3), (4.0, 6)):
        count = Count(patched(model, negative)[0])
        drawn(count.model, positive, negative, empty, cfg, steps=3)
        assert (count.calls, count.rows) == (3, rows)


@pytest.mark.parametrize("name", ["eps", "flux", "wan"])
def test_off_is_bit_for_bit_the_plain_model(name):
    model, positive, negative, empty = made(name)
    plain = drawn(model, positive, negative, empty)
    assert patched(model, negative, scale=1.0)[0] is model and patched(model, negative, alpha=0.0)[0] is model
    never = patched(model, negative, schedule=Schedule(Constant(0.0)))[0]
    late = patched(model, negative, start_percent=0.9)[0]
    assert torch.equal(drawn(never, positive, negative, empty), plain)
    assert torch.equal(drawn(late, positive, negative, empty, steps=1), drawn(model, positive, negative, empty, steps=1))
    assert differ(drawn(late, positive, negative, empty, steps=12), drawn(model, positive, negative, empty, steps=12)) > 1e-7


@pytest.mark.parametrize("name", ["eps", "sd3", "wan", "hunyuan_video"])
def test_a_mask_says_where(name):
    """Of a video in every frame."""
    model, positive, negative, empty = made(name)
    nowhere, half, everywhere = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64), torch.ones(1, 64, 64)
    half[..., :32] = 1
    plain, whole, left = (drawn(m, positive, negative, empty) for m in (model, *(patched(model, negative, mask=m)[0] for m in (None, half))))
    for mask, same in ((nowhere, plain), (everywhere, whole)):
        assert_close(drawn(patched(model, negative, mask=mask)[0], positive, negative, empty), same, atol=2e-4, rtol=2e-4)
    assert differ(left, plain) > 1e-5 and differ(left, whole) > 1e-5


def test_a_mask_does_not_act_on_a_reference_frame():
    """Which comes before the video's own: what the first block gives differs where the mask is, on the left of both frames."""
    (model, positive, negative, empty), given = made("hunyuan_video"), []
    positive[0][1]["ref_latent"] = torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 1, 8, 8)
    mask, spy = torch.zeros(1, 64, 64), model.clone()
    mask[..., :32] = 1
    spy.set_model_patch_replace(lambda args, extra: given.append(extra["original_block"](args)) or given[-1], "dit", "double_block", 0)
    for each in (spy, patched(spy, negative, mask=mask)[0]):
        drawn(each, positive, negative, empty, steps=1)
    reference, *frames = ((given[1]["img"] - given[0]["img"]).abs().amax(-1)[0] > 1e-5).reshape(3, 4, 4)
    assert not reference.any() and all(frame[:, :2].all() and not frame[:, 3].any() for frame in frames)


def test_a_mask_for_each_image(eps_model):
    empty, masks = torch.zeros(2, 4, 8, 8), torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    given = TEXT, OTHER, empty
    own, plain, whole = (drawn(m, *given) for m in (patched(eps_model, OTHER, mask=masks)[0], eps_model, patched(eps_model, OTHER)[0]))
    assert_close(own, torch.cat([plain[:1], whole[1:]]), atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="The mask holds 2 images but 3 are sampled"):
        drawn(patched(eps_model, OTHER, mask=masks)[0], TEXT, OTHER, torch.zeros(3, 4, 8, 8))


def test_only_a_schedule_is_asked_for_the_noise_level(eps_model):
    """Which a GPU waits for; see test_overhead."""
    halved = Schedule(end=0.5)
    for knobs, schedules in (({}, ()), (dict(end_percent=0.5), (halved,)), (dict(schedule=halved), (halved,))):
        assert editing.control_of(patched(eps_model, OTHER, **knobs)[0], Control).schedules == schedules


def test_only_positives_are_guided(eps_model):
    """Or only the conditioning that is connected; at one step the result is the denoised mixture."""
    model, given = smooth(), dict(steps=1)
    whole, (only, marked) = patched(model, OTHER)[0], patched(model, OTHER, TEXT)
    guided_text, plain_other = drawn(whole, TEXT, OTHER, EMPTY, **given), drawn(model, OTHER, TEXT, EMPTY, **given)
    assert_close(drawn(whole, TEXT, OTHER, EMPTY, 3.0, **given), 3 * guided_text - 2 * plain_other, atol=1e-3, rtol=1e-3)
    assert_close(drawn(only, OTHER, marked, EMPTY, 3.0, **given), 3 * plain_other - 2 * guided_text, atol=1e-3, rtol=1e-3)


def test_it_works_with_multi_cfg_and_word_weights(clip):
    model = smooth()
    weighed, text, _ = WordWeights.execute(model, clip, "a red circle", "red: 3", 0.0, 1.0, "all").args
    both, alone = patched(weighed, OTHER)[0], patched(model, OTHER)[0]
    after, given, _ = WordWeights.execute(alone, clip, "a red circle", "red: 3", 0.0, 1.0, "all").args
    assert torch.equal(drawn(both, text, OTHER, EMPTY), drawn(after, given, OTHER, EMPTY))
    assert differ(drawn(both, text, OTHER, EMPTY), drawn(alone, encoded(clip, "a red circle"), OTHER, EMPTY)) > 1e-5
    guider = MultiCFG(both, OTHER, [Channel(text, 3.0)])
    assert_close(run(guider), run(cfg_guider(both, text, OTHER, 3.0)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["eps", "flux", "wan"])
def test_it_works_with_prompt_to_prompt(name, clip, text_model):
    """All of a source's attention taken over: equal prompts give equal images; the source is as without the target."""
    model, _, negative, _ = made(name)
    clip = clip if name == "eps" else tiny_dits.Clip(text_model, name)
    for before in (True, False):
        if before:
            p2p = editing.patch(patched(model, negative)[0], clip, "a red circle", "a red circle", **editing.ALL)
        else:
            p2p = editing.patch(model, clip, "a red circle", "a red circle", **editing.ALL)
            p2p = patched(p2p[0], negative)[0], *p2p[1:]
        images = sample(*p2p, cfg=1.0, steps=2)
        assert torch.equal(images[0], images[1])
        assert_close(images[:1], drawn(patched(model, negative)[0], encoded(clip, "a red circle"), negative, p2p[3]["samples"][:1]), **LOOSE)


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_mix_texts_are_refused_by_name(name):
    with pytest.raises(ValueError, match=type(tiny_dits.dit(name).model).__name__):
        patched(tiny_dits.dit(name), tiny_dits.text(name, 2))


@pytest.mark.parametrize(
    "negative, message",
    [
        ([], "The negative has 0 parts"),
        (tiny.conditioning(1) + tiny.conditioning(2), "The negative has 2 parts"),
        ([[tiny.conditioning(1)[0][0], {"area": (8, 8, 0, 0)}]], "The negative has area, but only its text counts"),
        ([[torch.zeros(1, 77, 5), {}]], "The negative has text features of width 5"),
    ],
)
def test_bad_negatives_are_refused(eps_model, negative, message):
    with pytest.raises(ValueError, match=message):
        patched(eps_model, negative)


def test_two_of_them_are_refused(eps_model):
    with pytest.raises(ValueError, match="already comes from Negative Attention"):
        patched(patched(eps_model, OTHER)[0], OTHER)


def test_the_model_is_unchanged_and_runs_do_not_meet(eps_model):
    node, plain = patched(eps_model, OTHER)[0], drawn(eps_model, TEXT, OTHER, EMPTY)
    first = drawn(node, TEXT, OTHER, EMPTY)
    assert torch.equal(drawn(eps_model, TEXT, OTHER, EMPTY), plain) and torch.equal(drawn(node, TEXT, OTHER, EMPTY), first)
