"""Attention maps inside the real ComfyUI, on tiny random UNets and DiTs."""

from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from controlled_diffusion.attention.layers import Block, chosen
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.diffedit import DiffEditMask
from controlled_diffusion.nodes.host.attention.attention_maps import Capture
from controlled_diffusion.nodes.host.attention.dit import Dit, Layout, dit_of
from controlled_diffusion.nodes.host.attention.hook import Control, ControlRun, install, network_of
from controlled_diffusion.nodes.host.attention.unet import unet_places
from controlled_diffusion.nodes.host.conditionings import KEY, marked
from controlled_diffusion.nodes.host.prompts import as_rows, encoded, prompt_of

from compare import assert_close
from host import editing, inversions, tiny, tiny_dits, tiny_text
from host.editing import ALL, OFF, Keys, Probabilities, last_run, shrunk, view, with_fewer_tokens
from host.sampling import cfg_guider, sigmas_of, with_options_seen
from node_schema import with_settings

pytestmark = pytest.mark.usefixtures("inference_mode")
PROMPT, LONG = "a red circle, a blue star", "a red circle, " * 30


@pytest.fixture
def eps():
    return tiny.unet("eps", output_scale=0.2)


def capture(model, clip, prompt=PROMPT, words="red, circle", layers="all", start=0.0, end=1.0, phases=1, conditioning=None):
    return AttentionMapCapture.execute(model, clip, prompt, words, layers, start, end, phases, conditioning).args


def sample(model, positive, negative, batch=1, sampler="euler", steps=3, cfg=4.0, size=(8, 8)):
    empty = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(empty, 7, list(range(batch)))
    return comfy.sample.sample(model, noise, steps, cfg, sampler, "normal", positive, negative, empty, disable_pbar=True, seed=7)


def captured(model, clip, negative="", run=None, **knobs):
    """The maps of one sampling."""
    patched, positive = capture(model, clip, **knobs)
    return view(patched, sample(patched, positive, encoded(clip, negative), **(run or {})))[2]


def test_maps_are_the_means_of_the_probabilities(any_model, clip):
    spy = Probabilities(any_model)
    maps = captured(spy.model, clip, words="red, blue star", run=dict(batch=2, size=(8, 6)))
    columns = [(2,), (6, 7)]  # behind the start token; the comma is a token
    for scale, group in ((1, "1/1"), (2, "1/2")):
        layers = [p.key for p in unet_places(any_model) if p.scale == scale]
        seen = torch.stack([p for key in layers for p in spy.seen[key]]).mean(2)
        wanted = torch.stack([seen[..., list(c)].sum(-1).mean(0) for c in columns], 1)
        assert_close(maps.mean(groups=[group]), wanted.unflatten(-1, (8 // scale, 6 // scale)), atol=1e-6, rtol=1e-4)


def test_the_image_is_unchanged(any_model, clip):
    patched, positive = capture(any_model, clip)
    made = sample(patched, positive, encoded(clip, ""))
    assert torch.equal(made, sample(any_model, encoded(clip, PROMPT), encoded(clip, "")))
    assert KEY not in any_model.model_options["transformer_options"]


def test_other_layers_and_steps_run_untouched(eps, clip):
    (patched, positive), seen = capture(eps, clip, layers="middle", start=0.3, end=0.7), []
    patched = with_options_seen(patched, lambda options: seen.append(list(options.get("patches_replace", {}).get("attn2", {}))))
    sample(patched, positive, encoded(clip, ""), steps=10)
    layers = [p.key for p in unet_places(eps) if p.block == "middle"]
    assert {tuple(s) for s in seen} == {(), tuple(layers)} and 3 <= sum(map(bool, seen)) <= 5


def test_only_the_positive_is_read_in_split_calls(eps, clip, monkeypatch):
    whole = captured(eps, clip, negative="a dog", run=dict(batch=2))
    monkeypatch.setattr(type(eps), "get_free_memory", lambda self, device: 1.0)
    parts = captured(eps, clip, negative="a dog", run=dict(batch=2))
    assert_close(parts.mean(), whole.mean(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("negative", ["a dog", LONG])
def test_the_negatives_length_does_not_matter(eps, clip, negative):
    """The host repeats the shorter text to the length of the longer."""
    alone = captured(eps, clip, run=dict(steps=1, cfg=1.0))
    assert_close(captured(eps, clip, negative, run=dict(steps=1)).mean(), alone.mean(), atol=1e-6, rtol=1e-4)


def test_images_of_a_batch_have_maps_of_their_own(eps, clip):
    both, one = captured(eps, clip, run=dict(batch=2)).mean(), captured(eps, clip).mean()
    assert_close(both[:1], one, atol=1e-5, rtol=1e-3)
    assert (both[0] - both[1]).abs().max() > 1e-4


@pytest.mark.parametrize("sampler, evaluations", [("euler", 3), ("heun", 5), ("dpmpp_2m", 3)])
def test_every_evaluation_counts_once(eps, clip, sampler, evaluations):
    maps = captured(eps, clip, run=dict(sampler=sampler))
    assert maps.sums.count == {(0, f"1/{s}"): evaluations * sum(p.scale == s for p in unet_places(eps)) for s in (1, 2)}


def test_shrunk_layers_count_and_other_nodes_evaluations_do_not(eps, clip):
    plain, maps = captured(eps, clip), captured(shrunk(eps), clip)
    assert maps.sums.count == plain.sums.count and maps.mean().shape == plain.mean().shape and maps.mean().isfinite().all()
    assert captured(PerturbedAttentionGuidance.execute(eps, 3.0).args[0], clip).sums.count == plain.sums.count


def test_phases_hold_their_part_of_the_sampling(eps, clip):
    parts, whole = captured(eps, clip, phases=2, run=dict(steps=6)), captured(eps, clip, run=dict(steps=6))
    assert parts.phases == ((0.0, 0.5), (0.5, 1.0)) and parts.seen == [0, 1]
    assert_close(parts.mean(), whole.mean())
    assert_close(parts.mean(phases=[1]), captured(eps, clip, start=0.5, run=dict(steps=6)).mean())


def test_words_of_a_long_prompt_are_found(eps, clip):
    patched, positive = capture(eps, clip, LONG + "a cat", "circle, circle#30, cat")
    control = patched.model_options["transformer_options"][KEY][-1]
    assert positive[0][0].shape[1] == 154 and len(control.words[0]["circle"]) == 30 and control.words[0]["cat"][0] > 77
    maps = view(patched, sample(patched, positive, encoded(clip, "")))[2]
    assert (maps.mean(["circle"]) >= maps.mean(["circle#30"])).all()


def test_a_conditioning_may_replace_the_prompts(eps, clip):
    longer = [[torch.cat([encoded(clip, PROMPT)[0][0], torch.zeros(1, 3, tiny.CONTEXT)], 1), {"mark": 1}]]
    patched, positive = capture(eps, clip, conditioning=longer)
    assert positive[0][1]["mark"] == 1 and KEY not in longer[0][1]
    one = view(patched, sample(patched, positive, encoded(clip, ""), cfg=1.0))[2].mean()
    assert (one < captured(eps, clip, run=dict(cfg=1.0)).mean() + 0.5).all() and one.isfinite().all()
    with pytest.raises(ValueError, match=r"holds texts of 77 tokens, but the prompt.*one of 154"):
        capture(eps, clip, LONG, conditioning=encoded(clip, PROMPT))


def test_rows_have_the_maps_of_their_own_words(eps, clip):
    """A shorter text is repeated to the length of a longer one; its copies count."""
    spy, texts = Probabilities(eps), (PROMPT, LONG + "a blue dog")
    rows = as_rows([encoded(clip, t) for t in texts], 2)[0]
    maps = captured(spy.model, clip, prompt="\n".join(texts), words="blue, star", conditioning=rows, run=dict(batch=4))
    seen = torch.stack([p for key in (p.key for p in unet_places(eps) if p.scale == 1) for p in spy.seen[key]]).mean((0, 2))
    blue = prompt_of(clip, texts[1]).find("blue")[0], prompt_of(clip, texts[1]).words
    columns = (6, 6 + 77), blue[1][blue[0][0]].columns
    wanted = torch.stack([seen[i][:, list(columns[i // 2])].sum(-1) for i in range(4)])
    assert_close(maps.mean(["blue"], ["1/1"])[:, 0].flatten(1), wanted, atol=1e-6, rtol=1e-4)
    assert maps.mean(["star"])[:2].min() > 0 and not maps.mean(["star"])[2:].any()


def test_lines_and_rows_must_fit(eps, clip):
    rows = as_rows([encoded(clip, t) for t in ("a red circle", "a blue circle")], 2)[0]
    for text in ("a red circle", "a red circle\na blue circle\na dog", "a\nb\nc\nd\ne", ""):
        with pytest.raises(ValueError, match=r"holds 4 texts, but the prompt has \d line.*the source, then every target"):
            capture(eps, clip, text, "", conditioning=rows)
    with pytest.raises(ValueError, match=r"'dog' is in none of the prompts; the words of 'a red circle'.*; the words of 'a blue circle'"):
        capture(eps, clip, "a red circle\na blue circle", "dog", conditioning=rows)


def test_the_view_shows_a_tile_for_every_word_and_row(eps, clip):
    patched, positive = capture(eps, clip, phases=2)
    latent = sample(patched, positive, encoded(clip, ""), batch=2, size=(8, 16))
    sizes = {rows: view(patched, latent, rows=rows)[0].shape for rows in ("mean", "layers", "steps")}
    assert all(s[0] == 2 and s[3] == 3 for s in sizes.values()) and sizes["mean"][1] < sizes["steps"][1] == sizes["layers"][1]
    table, mask, maps, passed = view(patched, latent, word="circle", image=torch.rand(2, 60, 120, 3))
    assert mask.shape == (2, 60, 120) and passed["samples"] is latent and not torch.equal(table, view(maps, latent)[0])
    assert view(maps, latent, word="circle", threshold=0.0)[1].shape == (2, 64, 128)
    assert torch.equal(view(maps, latent, word="red")[1], view(maps, latent)[1])  # the first word
    assert torch.equal(view(comfy.samplers.CFGGuider(patched), latent)[0], view(maps, latent)[0])


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(words="dog"), f"'dog' is in none of the prompts; the words of '{PROMPT}' are: a, red, circle"),
        (dict(prompt="", words=""), "The prompt has no words"),
        (dict(layers="bottom"), "layers has 'bottom', which names no layer of this model"),
        (dict(layers=" "), "layers is empty"),
        (dict(start=0.5, end=0.5), "runs from 0.5 to 0.5"),
    ],
)
def test_bad_input_is_refused(eps, clip, knobs, message):
    with pytest.raises(ValueError, match=message):
        capture(eps, clip, **knobs)


def test_a_swapped_word_of_prompt_to_prompt_has_the_sources_map(eps, clip):
    model, positive, *rest = editing.patch(eps, clip, "a blue circle", "a red circle", **ALL)
    patched, both = capture(model, clip, "a red circle\na blue circle", "", conditioning=positive)
    maps = view(patched, editing.sample(patched, both, *rest, steps=3))[2]
    assert maps.words == ("a", "red", "circle", "blue")
    assert_close(maps.mean(["blue"])[1], maps.mean(["red"])[0])
    assert_close(*maps.mean(["a", "circle"]))
    assert not maps.mean(["blue"])[0].any() and not maps.mean(["red"])[1].any()


def test_maps_are_those_of_the_latents_own_run(eps, clip):
    patched, positive = capture(eps, clip)
    latents = [sample(patched, positive, encoded(clip, ""), steps=steps) for steps in (3, 6)]
    first, again = (view(patched, latent)[2] for latent in latents)
    assert again.sums.count[0, "1/1"] == 2 * first.sums.count[0, "1/1"]
    assert sorted(t.numel() for t in again.sums.total.values()) == [2 * 16, 2 * 64]  # a map a word and group
    assert_close(first.mean(), captured(eps, clip).mean())
    with pytest.raises(ValueError, match=r"made other latents in its last 2 run\(s\), not this one. Connect the latent that was sampled"):
        view(patched, latents[0] + 1)


def test_maps_of_both_parts_of_a_sampling_are_summed(eps, clip):
    patched, positive = capture(eps, clip)
    empty, given = {"samples": torch.zeros(1, 4, 8, 8)}, (7, 6, 4.0, "euler", "normal", positive, encoded(clip, ""))
    ksampler = host_nodes.KSamplerAdvanced().sample
    first = ksampler(patched, "enable", *given, empty, 0, 2, "enable")[0]
    second = ksampler(patched, "disable", *given, first, 2, 6, "disable")[0]
    whole = ksampler(patched, "enable", *given, empty, 0, 6, "disable")[0]
    whole, both, part = (view(patched, made["samples"])[2] for made in (whole, second, first))
    assert both.sums.count == whole.sums.count and part.sums.count[0, "1/1"] == whole.sums.count[0, "1/1"] // 3
    assert_close(both.mean(), whole.mean(), atol=1e-5, rtol=1e-4)
    edit = edited(patched, positive, inversions.TARGET, second)  # without noise too, but no further part
    assert view(patched, edit)[2].sums.count == view(patched, edited(patched, positive, inversions.TARGET))[2].sums.count


def test_maps_of_a_denoised_output_are_shown(eps, clip):
    patched, positive = capture(eps, clip)
    guider = cfg_guider(patched, positive, encoded(clip, ""), 1.0)
    given = Noise_RandomNoise(7), guider, comfy.samplers.sampler_object("euler"), sigmas_of(eps)[:-1], {"samples": torch.zeros(1, 4, 8, 8)}
    out, denoised = SamplerCustomAdvanced.execute(*given).args
    assert not torch.equal(out["samples"], denoised["samples"])
    assert_close(*(view(guider, made["samples"])[2].mean() for made in (out, denoised)))


def test_a_view_without_maps_says_so(eps, clip):
    patched, positive = capture(eps, clip, start=0.1, end=0.2)
    empty = torch.zeros(1, 4, 8, 8)
    for source in (eps, comfy.samplers.CFGGuider(eps)):
        with pytest.raises(ValueError, match=r"does not come from Attention Map Capture\. Connect the model of that node"):
            view(source, empty)
    with pytest.raises(ValueError, match="nothing to show for this latent: the model has not sampled yet"):
        view(patched, empty)
    made = sample(patched, positive, encoded(clip, ""))
    with pytest.raises(ValueError, match="Nothing was captured in the run: no step was between"):
        view(patched, made)
    with pytest.raises(ValueError, match="none of the conditionings that are sampled is the 'positive' of that node"):
        sample(patched, encoded(clip, PROMPT), encoded(clip, ""))


STARTS = {  # first token of the text and of the image among those of a block, for 7 of text
    "omnigen2": (0, 7), "boogu": (0, 7), "aura": (8, 15), "lumina2": (0, 7), "zimage": (0, 32), "hunyuan_video": (0, 7), "hunyuan_image": (0, 7),
    "hidream": (16, 0), "lens": (16, 0), "joyimage": (16, 0), "flux": (0, 7), "flux2": (505, 512), "chroma": (0, 7), "sd3": (0, 7), "qwen": (0, 7),
    "krea2": (0, 7), "ideogram4": (0, 7), "mage": (0, 7), "cogvideo": (0, 7), "pixeldit": (0, 7), "wan": (0, 0), "wan_i2v": (0, 0), "cosmos2": (0, 0), "ltxv": (0, 0), "kandinsky5": (0, 0),
}  # fmt: skip


def draw(model, name, positive, steps=2):
    latent = {"samples": tiny_dits.empty(name, 2)}
    return editing.sample(model, positive, tiny_dits.text(name, 2, 5), latent, cfg=1.0, scheduler="simple", seed=3, steps=steps)


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.DITS))
def test_maps_of_a_dit_are_its_probabilities(name):
    spy = Keys(tiny_dits.dit(name))
    dit = dit_of(spy.model)
    control = Capture(({"one": (1, 2), "other": (5,)},), frozenset(p.key for p in dit.places), dit=dit, length=7)
    positive = tiny_dits.text(name, 1)
    patched = install(spy.model, control)
    made = draw(patched, name, marked(positive, control.token))
    size, (text, image) = dit.grid(tiny_dits.empty(name).shape), STARTS[name]
    here = size[0] * size[1] * size[2]
    found = spy.blocks(here, 7) if dit.cross else spy.joint(max(text + 7, image + here))
    assert len(found) == 2 * len(dit.places)
    wanted = []
    for q, few, mask in found:
        bias = 0.0 if mask is None or dit.cross else mask.float() if mask.dtype != torch.bool else torch.where(mask, 0.0, -1e9)
        k = few.repeat_interleave(q.shape[1] // few.shape[1], 1)
        p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1).mean(1)[:, image : image + here]
        wanted.append(torch.stack([p[..., text + 1] + p[..., text + 2], p[..., text + 5]], 1))
    shape = size if size[0] > 1 else size[1:]
    sums = sum(last_run(patched).sums.total.values())
    assert_close(sums, sum(wanted).unflatten(-1, shape), atol=1e-5, rtol=1e-4)
    assert torch.equal(made, draw(spy.model, name, positive))


@pytest.mark.parametrize("name", ["flux", "flux2", "wan"])
def test_rows_of_a_dit_have_the_maps_of_their_own_words(name):
    """Texts of unequal length are filled up, behind or in front."""
    model, clip = tiny_dits.dit(name), tiny_dits.Clip(tiny_text.clip("flux"), name)
    texts = ("red circle", "a very shiny blue circle on white")
    edited, positive, negative, latent, _ = editing.patch(model, clip, texts[1], texts[0], **OFF)

    def maps(model, text, conditioning, count):
        patched, rows = capture(model, clip, text, "circle", conditioning=conditioning)
        given = {"samples": latent["samples"][:count], "batch_index": [0] * count}
        return view(patched, editing.sample(patched, rows, negative, given, cfg=1.0, scheduler="simple", steps=1))[2].mean()

    both, alone = maps(edited, "\n".join(texts), positive, 2), [maps(model, text, None, 1) for text in texts]
    assert_close(both, torch.cat(alone), atol=1e-6, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.DITS))
def test_token_ranges_are_where_text_and_image_change(name):
    """Another token of text, and another left edge of the image, show in the keys of the first block just there."""
    spy = Keys(tiny_dits.dit(name))
    dit, positive = dit_of(spy.model), tiny_dits.text(name, 1)
    corner = tiny_dits.empty(name, 1) + 0.25  # the host leaves an empty latent as it is
    other = [[positive[0][0].clone(), positive[0][1]]]
    other[0][0][:, 3] += 1
    keys = []
    for text, latent in ((positive, corner), (other, corner), (positive, corner.index_fill(-1, torch.arange(2), 0.75))):
        spy.seen.clear()
        given = (torch.ones_like(latent), 1, 1.0, "euler", "simple", text, text, latent)
        comfy.sample.sample(spy.model, *given, denoise=0.5, disable_pbar=True, seed=3)
        size, (start, image) = dit.grid(latent.shape), STARTS[name]
        here = size[0] * size[1] * size[2]
        rows = spy.blocks(here, 7) + spy.blocks(here, here) if dit.cross else spy.joint(max(start + 7, image + here))
        keys.append([s[1] for s in rows])
    refined = name in ("lumina2", "zimage", "omnigen2", "boogu", "hunyuan_video", "hunyuan_image", "krea2", "kandinsky5", "hidream")
    changed = (keys[0][0] - keys[1][0]).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    text = range(start, max(start + 7, image))  # Z-Image fills it up
    assert start + 3 in changed and set(changed) <= set(text) and (refined or changed == [start + 3])
    which = -len(dit.places) if dit.cross else 0
    changed = (keys[0][which] - keys[2][which]).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    frames, rows, columns = size
    left = [image + (f * rows + r) * columns + c for f in range(frames) for r in range(rows) for c in range(2 // dit.patch[2])]
    if name in ("lumina2", "zimage", "omnigen2", "boogu"):  # which refine the image first
        assert image in changed and set(changed) <= set(range(image, image + max(here, 32 * (name == "zimage"))))
    else:
        assert changed == left


def test_blocks_beside_a_models_own_are_not_counted():
    class Asked(ControlRun):
        """A control that needs every layer, and notes which it got."""

        def __init__(self, *given):
            super().__init__(*given)
            self.got = []

        def wanted(self, kind):
            return self.all_layers

        def share_qk(self, call, first, tokens):
            self.got.append((call.kind, call.place.number))

    @dataclass(frozen=True)
    class Fixed(Control):
        run = Asked

    model = tiny_dits.dit("wan_vace")
    control = Fixed(**network_of(model))
    patched = install(model, control)
    draw(patched, "wan_vace", marked(tiny_dits.text("wan_vace", 1), control.token), 1)
    assert last_run(patched).got == [(kind, block) for block in range(4) for kind in ("self", "cross")]


def test_token_ranges_of_every_order():
    def ranges(tokens, **layout):
        return Dit("some", Layout((), **layout), (1, 2, 2), ()).token_ranges(tokens, 16, 7)

    assert ranges(30) == (slice(7, 23), slice(0, 7)) and ranges(22) is None  # references behind
    assert ranges(30, order="text, rest, image") == (slice(14, 30), slice(0, 7))
    assert ranges(30, order="text, rest, image", beside=True) == (slice(14, 30), slice(7, 14))
    assert ranges(30, order="image, text") == (slice(0, 16), slice(16, 23))
    assert ranges(64, order="text, rest, image", multiple=32) == (slice(32, 48), slice(0, 7)) and ranges(32, multiple=32) is None


def test_changed_tokens_are_an_error_in_the_first_call():
    model = tiny_dits.dit("flux")
    control = Capture(({"a": (1,)},), frozenset({0}), dit=dit_of(model))
    patched = with_fewer_tokens(install(model, control), 5)
    with pytest.raises(ValueError, match="No attention of Flux came through ComfyUI's hook with 16 tokens of the image and 7 of the text"):
        draw(patched, "flux", marked(tiny_dits.text("flux", 1), control.token))


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_parts_of_an_image_are_not_read(name):
    """An area is a part of it, and so is a window of some of a video's frames."""
    model = tiny_dits.dit(name)
    control = Capture(({"one": (1, 2)},), frozenset({0}), dit=dit_of(model))
    patched, positive = install(model, control), marked(tiny_dits.text(name, 1), control.token)
    size = tuple(n // 2 for n in tiny_dits.empty(name).shape[2:]), (0,) * (tiny_dits.empty(name).ndim - 2)
    part = [[features, {**values, "area": (*size[0], *size[1])}] for features, values in positive]
    sums = []
    for given in (positive, [*positive, *part], part):
        made = draw(patched, name, given, steps=1)
        sums.append(last_run(patched).sums.total)
    assert_close(sums[1], sums[0], atol=1e-6, rtol=1e-4)
    assert not sums[2]
    with pytest.raises(ValueError, match=r"Nothing was captured.*the positive acts in an area alone, or context windows"):
        view(patched, made)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_words_of_a_dit_are_found(kind):
    clip, model = tiny_text.clip(kind), tiny_text.denoiser(kind)
    patched, positive = capture(model, clip, layers="early")
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    made = editing.sample(patched, positive, positive, latent, cfg=1.0, scheduler="simple", seed=1, steps=2)
    assert view(patched, made)[2].mean().shape == (1, 2, 4, 4) and made.isfinite().all()


def test_blocks_are_chosen_by_thirds_and_numbers():
    places = [Block(i, 9) for i in range(9)]
    assert chosen("middle, 8", places, "layers") == {3, 4, 5, 8} and chosen("0-1", places, "layers") == {0, 1}
    assert len(chosen("all", places, "layers")) == 9
    with pytest.raises(ValueError, match=r"layers has '12', which names no block of this model.*numbers from 0 to 8"):
        chosen("12", places, "layers")


def edited(model, source, positive, latent=None):
    """FlowEdit's latent."""
    return inversions.flow_edit(model, latent, source=source, positive=positive)


def compared(model, source, target):
    """DiffEdit Mask's latent."""
    given = dict(model=model, source=source, target=target, image=inversions.image(), method="DiffEdit", maps=1)
    return DiffEditMask.execute(**with_settings(DiffEditMask, **given)).args[2]["samples"]


def test_noises_of_a_step_are_one_image(eps, clip, monkeypatch):
    """Their mean counts, where a node predicts several of an image; as many together as memory allows."""
    patched, captured = capture(eps, clip)

    def found():
        latent = inversions.flow_edit(patched, source=inversions.SOURCE, positive=captured, n_avg=3, n_max=2 / 6, n_min=1 / 6)
        return view(patched, latent)[2].mean()

    together = found()
    assert len(together) == 1
    monkeypatch.setattr(type(patched), "get_free_memory", lambda self, device: 1.0)
    assert_close(found(), together, atol=1e-5, rtol=1e-4)


def test_maps_of_an_inversion_are_shown(eps, clip):
    """By the latent that the inverter gives out."""
    patched, positive = capture(eps, clip)
    _, noisy, *_ = inversions.invert("edict", patched, source=positive)
    assert view(patched, noisy["samples"])[2].mean().max() > 0


@pytest.mark.parametrize("run", [edited, compared])
def test_either_prompt_of_two_is_captured(eps, clip, run):
    """Nodes that sample under two prompts in turn begin with the source, whichever the capture is for."""
    patched, captured = capture(eps, clip)
    other = encoded(clip, "a green square")
    seen = [view(patched, run(patched, *pair))[2].mean() for pair in ((captured, other), (other, captured))]
    assert all(maps.max() > 0 for maps in seen)
    with pytest.raises(ValueError, match="none of the conditionings that are sampled is the 'positive' of that node"):
        run(patched, other, other if run is edited else inversions.TARGET)
