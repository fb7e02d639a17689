"""Attention maps inside the real host, on tiny random UNets and DiTs."""

from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from controlled_diffusion.attention.layers import Block, chosen_blocks
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture, AttentionMapView
from controlled_diffusion.nodes.host.attention.attention_maps import Capture
from controlled_diffusion.nodes.host.attention.dit import Dit, Layout, dit_of
from controlled_diffusion.nodes.host.attention.hook import Run, install
from controlled_diffusion.nodes.host.attention.unet import unet_places
from controlled_diffusion.nodes.host.conditionings import KEY, marked
from controlled_diffusion.nodes.host.prompts import as_rows, encoded, prompt_of
from controlled_diffusion.nodes.prompt_to_prompt import P2PAttentionPatch

from compare import assert_close
from host import tiny, tiny_dits, tiny_text
from host.test_prompt_to_prompt import Tokens, comfy_scale, shrunk
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
PROMPT, LONG = "a red circle, a blue star", "a red circle, " * 30


@pytest.fixture
def eps():
    return tiny.unet("eps", output_scale=0.2)


def capture(model, clip, prompt=PROMPT, words="red, circle", layers="all", start=0.0, end=1.0, phases=1, conditioning=None):
    return AttentionMapCapture.execute(model, clip, prompt, words, layers, start, end, phases, conditioning).args


def view(source, latent=None, words="", rows="mean", layers="all", word="", threshold=0.4, image=None):
    return AttentionMapView.execute(source, {"samples": latent}, words, rows, layers, word, threshold, image).args


def sample(model, positive, negative, batch=1, sampler="euler", steps=3, cfg=4.0, size=(8, 8)):
    empty = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(empty, 7, list(range(batch)))
    return comfy.sample.sample(model, noise, steps, cfg, sampler, "normal", positive, negative, empty, disable_pbar=True, seed=7)


def captured(model, clip, negative="", run=None, **knobs):
    """The maps of one sampling."""
    patched, positive = capture(model, clip, **knobs)
    return view(patched, sample(patched, positive, encoded(clip, negative), **(run or {})))[2]




class Spy:
    """Another node's attention: the host's, with its probabilities kept."""

    def __init__(self, model):
        self.model, self.seen = model.clone(), {p.key: [] for p in unet_places(model)}
        for place in unet_places(model):
            self.model.set_model_attn2_replace(self._keep(place.key), *place.key)

    def _keep(self, key):
        def attend(q, k, v, options):
            heads = [t.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for t in (q, k)]
            p = (heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5).softmax(-1)
            part = len(p) // len(options["cond_or_uncond"])
            self.seen[key].append(p[options["cond_or_uncond"].index(0) * part :][:part])
            return optimized_attention(q, k, v, options["n_heads"])

        return attend


def test_maps_are_the_means_of_the_probabilities(any_model, clip):
    spy = Spy(any_model)
    maps = captured(spy.model, clip, words="red, blue star", run=dict(batch=2, size=(8, 6)))
    columns = [(2,), (6, 7)]  # behind the start token; the comma is a token
    for scale, group in ((1, "1/1"), (2, "1/2")):
        layers = [p.key for p in unet_places(any_model) if p.scale == scale]
        seen = torch.stack([p for key in layers for p in spy.seen[key]]).mean(2)
        wanted = torch.stack([seen[..., list(c)].sum(-1).mean(0) for c in columns], 1)
        assert_close(maps.of(groups=[group]), wanted.unflatten(-1, (8 // scale, 6 // scale)), atol=1e-6, rtol=1e-4)


def test_the_image_is_what_it_was(any_model, clip):
    patched, positive = capture(any_model, clip)
    made = sample(patched, positive, encoded(clip, ""))
    assert torch.equal(made, sample(any_model, encoded(clip, PROMPT), encoded(clip, "")))
    assert KEY not in any_model.model_options["transformer_options"]


def test_layers_and_moments_outside_run_untouched(eps, clip):
    patched, positive = capture(eps, clip, layers="middle", start=0.3, end=0.7)
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append(list(args[5].get("patches_replace", {}).get("attn2", {})))
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key("diffusion_model", "spy", spy)
    sample(patched, positive, encoded(clip, ""), steps=10)
    layers = [p.key for p in unet_places(eps) if p.block == "middle"]
    assert {tuple(s) for s in seen} == {(), tuple(layers)} and 3 <= sum(map(bool, seen)) <= 5


def test_only_the_positive_is_read_however_the_calls_are_split(eps, clip, monkeypatch):
    whole = captured(eps, clip, negative="a dog", run=dict(batch=2))
    monkeypatch.setattr(type(eps), "get_free_memory", lambda self, device: 1.0)
    parts = captured(eps, clip, negative="a dog", run=dict(batch=2))
    assert_close(parts.of(), whole.of(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("negative", ["a dog", LONG])
def test_a_negative_of_any_length_changes_nothing_in_the_first_step(eps, clip, negative):
    """The host repeats the shorter text to the length of the longer."""
    alone = captured(eps, clip, run=dict(steps=1, cfg=1.0))
    assert_close(captured(eps, clip, negative, run=dict(steps=1)).of(), alone.of(), atol=1e-6, rtol=1e-4)


def test_images_of_a_batch_have_the_maps_of_each_by_itself(eps, clip):
    both, one = captured(eps, clip, run=dict(batch=2)).of(), captured(eps, clip).of()
    assert_close(both[:1], one, atol=1e-5, rtol=1e-3)
    assert (both[0] - both[1]).abs().max() > 1e-4


@pytest.mark.parametrize("sampler, evaluations", [("euler", 3), ("heun", 5), ("dpmpp_2m", 3)])
def test_every_evaluation_counts_once(eps, clip, sampler, evaluations):
    maps = captured(eps, clip, run=dict(sampler=sampler))
    assert maps.sums.count == {(0, f"1/{s}"): evaluations * sum(p.scale == s for p in unet_places(eps)) for s in (1, 2)}


def test_layers_whose_image_is_shrunk_for_some_steps_count_too(eps, clip):
    plain, maps = captured(eps, clip), captured(shrunk(eps), clip)
    assert maps.sums.count == plain.sums.count and maps.of().shape == plain.of().shape and maps.of().isfinite().all()


def test_what_another_node_evaluates_besides_does_not_count(eps, clip):
    perturbed = PerturbedAttentionGuidance.execute(eps, 3.0).args[0]
    assert captured(perturbed, clip).sums.count == captured(eps, clip).sums.count


def test_phases_hold_their_part_of_the_sampling(eps, clip):
    parts, whole = captured(eps, clip, phases=2, run=dict(steps=6)), captured(eps, clip, run=dict(steps=6))
    assert parts.phases == ((0.0, 0.5), (0.5, 1.0)) and parts.seen == [0, 1]
    assert_close(parts.of(), whole.of())
    assert_close(parts.of(phases=[1]), captured(eps, clip, start=0.5, run=dict(steps=6)).of())


def test_words_of_a_long_prompt_and_repeated_words_are_found(eps, clip):
    patched, positive = capture(eps, clip, LONG + "a cat", "circle, circle#30, cat")
    control = patched.model_options["transformer_options"][KEY][-1]
    assert positive[0][0].shape[1] == 154 and len(control.words[0]["circle"]) == 30 and control.words[0]["cat"][0] > 77
    maps = view(patched, sample(patched, positive, encoded(clip, "")))[2]
    assert (maps.of(["circle"]) >= maps.of(["circle#30"])).all()


def test_a_conditioning_of_other_nodes_may_stand_for_the_prompt(eps, clip):
    longer = [[torch.cat([encoded(clip, PROMPT)[0][0], torch.zeros(1, 3, tiny.CONTEXT)], 1), {"mark": 1}]]
    patched, positive = capture(eps, clip, conditioning=longer)
    assert positive[0][1]["mark"] == 1 and KEY not in longer[0][1]
    one = view(patched, sample(patched, positive, encoded(clip, ""), cfg=1.0))[2].of()
    assert (one < captured(eps, clip, run=dict(cfg=1.0)).of() + 0.5).all() and one.isfinite().all()
    with pytest.raises(ValueError, match=r"holds texts of 77 tokens, but the prompt.*one of 154"):
        capture(eps, clip, LONG, conditioning=encoded(clip, PROMPT))


def test_every_row_of_several_prompts_has_the_maps_of_its_own_words(eps, clip):
    """A shorter text is repeated to the length of a longer one; its copies count."""
    spy, texts = Spy(eps), (PROMPT, LONG + "a blue dog")
    rows = as_rows([encoded(clip, t) for t in texts], 2)[0]
    maps = captured(spy.model, clip, prompt="\n".join(texts), words="blue, star", conditioning=rows, run=dict(batch=4))
    seen = torch.stack([p for key in (p.key for p in unet_places(eps) if p.scale == 1) for p in spy.seen[key]]).mean((0, 2))
    blue = prompt_of(clip, texts[1]).find("blue")[0], prompt_of(clip, texts[1]).words
    columns = (6, 6 + 77), blue[1][blue[0][0]].columns
    wanted = torch.stack([seen[i][:, list(columns[i // 2])].sum(-1) for i in range(4)])
    assert_close(maps.of(["blue"], ["1/1"])[:, 0].flatten(1), wanted, atol=1e-6, rtol=1e-4)
    assert maps.of(["star"])[:2].min() > 0 and not maps.of(["star"])[2:].any()


def test_of_prompt_to_prompt_the_swapped_word_looks_where_the_sources_does(eps, clip):
    given = defaults(P2PAttentionPatch) | dict(
        source="a red circle", targets="a blue circle", cross_end=1.0, self_end=1.0, self_layers="all"
    )
    model, positive, negative, *_ = P2PAttentionPatch.execute(eps, clip, **given | dict(width=64, height=64)).args
    patched, both = capture(model, clip, "a red circle\na blue circle", "", conditioning=positive)
    noise = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), 7, [0, 0])
    comfy.sample.sample(patched, noise, 3, 4.0, "euler", "normal", both, negative, torch.zeros_like(noise), disable_pbar=True, seed=7)
    maps = view(patched)[2]
    assert maps.words == ("a", "red", "circle", "blue")
    assert_close(maps.of(["blue"])[1], maps.of(["red"])[0])
    assert_close(*maps.of(["a", "circle"]))
    assert not maps.of(["blue"])[0].any() and not maps.of(["red"])[1].any()


def test_lines_and_rows_must_fit(eps, clip):
    rows = as_rows([encoded(clip, t) for t in ("a red circle", "a blue circle")], 2)[0]
    for text in ("a red circle", "a red circle\na blue circle\na dog", "a\nb\nc\nd\ne", ""):
        with pytest.raises(ValueError, match=r"holds 4 texts, but the prompt has \d line.*the source, then every target"):
            capture(eps, clip, text, "", conditioning=rows)
    with pytest.raises(ValueError, match=r"'dog' is in none of the prompts; the words of 'a red circle'.*; the words of 'a blue circle'"):
        capture(eps, clip, "a red circle\na blue circle", "dog", conditioning=rows)


def test_a_run_starts_anew_and_memory_is_a_map_a_word_and_group(eps, clip):
    patched, positive = capture(eps, clip)
    first = view(patched, sample(patched, positive, encoded(clip, "")))[2]
    again = view(patched, sample(patched, positive, encoded(clip, ""), steps=6))[2]
    assert first is not again and again.sums.count[0, "1/1"] == 2 * first.sums.count[0, "1/1"]
    assert sorted(t.numel() for t in again.sums.total.values()) == [2 * 16, 2 * 64]




def test_the_view_shows_a_tile_for_every_word_and_row(eps, clip):
    patched, positive = capture(eps, clip, phases=2)
    latent = sample(patched, positive, encoded(clip, ""), batch=2, size=(8, 16))
    sizes = {rows: view(patched, latent, rows=rows)[0].shape for rows in ("mean", "layers", "steps")}
    assert all(s[0] == 2 and s[3] == 3 for s in sizes.values()) and sizes["mean"][1] < sizes["steps"][1] == sizes["layers"][1]
    table, mask, maps, passed = view(patched, latent, word="circle", image=torch.rand(2, 60, 120, 3))
    assert mask.shape == (2, 60, 120) and passed["samples"] is latent and not torch.equal(table, view(maps, latent)[0])
    assert view(maps, latent, word="circle", threshold=0.0)[1].shape == (2, 64, 128)
    assert torch.equal(view(maps, latent, word="red")[1], view(maps, latent)[1])  # the first word
    guider = comfy.samplers.CFGGuider(patched)
    assert torch.equal(view(guider, latent)[0], view(maps, latent)[0])


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
def test_bad_input_is_refused_with_what_to_do(eps, clip, knobs, message):
    with pytest.raises(ValueError, match=message):
        capture(eps, clip, **knobs)


def test_a_view_without_a_finished_run_says_so(eps, clip):
    patched, positive = capture(eps, clip, start=0.1, end=0.2)
    for source in (eps, patched, comfy.samplers.CFGGuider(eps)):
        with pytest.raises(ValueError, match="There is no finished run to look at"):
            view(source)
    sample(patched, positive, encoded(clip, ""))
    with pytest.raises(ValueError, match="Nothing was captured in the run: no step lay between"):
        view(patched)
    with pytest.raises(ValueError, match="none of the conditionings that are sampled is the 'positive' of that node"):
        sample(patched, encoded(clip, PROMPT), encoded(clip, ""))



STARTS = {  # first token of the text and of the image among those of a block, for 7 of text
    "omnigen2": (0, 7), "boogu": (0, 7), "aura": (8, 15), "lumina2": (0, 7), "zimage": (0, 32), "hunyuan_video": (0, 7), "hunyuan_image": (0, 7),
    "hidream": (16, 0), "lens": (16, 0), "joyimage": (16, 0), "flux": (0, 7), "flux2": (505, 512), "chroma": (0, 7), "sd3": (0, 7), "qwen": (0, 7),
    "krea2": (0, 7), "ideogram4": (0, 7), "mage": (0, 7), "cogvideo": (0, 7), "pixeldit": (0, 7), "wan": (0, 0), "wan_i2v": (0, 0), "cosmos2": (0, 0), "ltxv": (0, 0), "kandinsky5": (0, 0),
}  # fmt: skip


class Keys:
    """Another node's override: keeps queries and keys of each attention, heads first, and gives what the host gives."""

    def __init__(self, model):
        self.model, self.seen = model.clone(), []
        self.model.model_options["transformer_options"]["optimized_attention_override"] = self._keep

    def _keep(self, function, q, k, v, *args, **kwargs):
        heads = args[0] if args else kwargs["heads"]
        if not kwargs.get("skip_reshape"):
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        self.seen.append((q.clone(), k.clone(), kwargs.get("mask", args[1] if len(args) > 1 else None)))
        return function(*([q, k] if kwargs.get("skip_reshape") else [t.transpose(1, 2).flatten(2) for t in (q, k)]), v, *args, **kwargs)

    def blocks(self, tokens: int, keys: int):
        return [s for s in self.seen if s[0].shape[2] == tokens and s[1].shape[2] == keys]

    def joint(self, least: int):
        """Attentions of at least so many tokens over the same."""
        return [s for s in self.seen if s[0].shape[2] == s[1].shape[2] >= least]


def draw(model, name, positive, steps=2):
    noise = comfy.sample.prepare_noise(tiny_dits.empty(name, 2), 3)
    given = (positive, tiny_dits.text(name, 2, 5), tiny_dits.empty(name, 2))
    return comfy.sample.sample(model, noise, steps, 1.0, "euler", "simple", *given, disable_pbar=True, seed=3)


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.DITS))
def test_a_dits_maps_are_what_its_image_looks_at_in_the_text(name):
    spy = Keys(tiny_dits.dit(name))
    dit = dit_of(spy.model)
    control = Capture(({"one": (1, 2), "other": (5,)},), frozenset(p.key for p in dit.places), dit=dit, length=7)
    positive = tiny_dits.text(name, 1)
    made = draw(install(spy.model, control), name, marked(positive, control.token))
    size, (text, image) = control.runs[0].dit.grid(tiny_dits.empty(name).shape), STARTS[name]
    here = size[0] * size[1] * size[2]
    found = spy.blocks(here, 7) if dit.cross else spy.joint(max(text + 7, image + here))
    assert len(found) == 2 * len(dit.places)
    wanted = []
    for q, few, mask in found:
        bias = (
            0.0
            if mask is None or dit.cross
            else mask.float()
            if mask.dtype != torch.bool
            else torch.zeros(mask.shape).masked_fill(~mask, -1e9)
        )
        k = few.repeat_interleave(q.shape[1] // few.shape[1], 1)
        p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1).mean(1)[:, image : image + here]
        wanted.append(torch.stack([p[..., text + 1] + p[..., text + 2], p[..., text + 5]], 1))
    shape = size if size[0] > 1 else size[1:]
    sums = sum(control.runs[0].sums.total.values())
    assert_close(sums, sum(wanted).unflatten(-1, shape), atol=1e-5, rtol=1e-4)
    assert torch.equal(made, draw(spy.model, name, positive))


@pytest.mark.parametrize("name", ["flux", "flux2", "wan"])
def test_on_a_dit_every_row_of_several_prompts_has_the_maps_of_its_own_words(name):
    """Texts of unequal length are filled up, behind or in front."""
    model, clip = tiny_dits.dit(name), tiny_dits.Clip(tiny_text.clip("flux"), name)
    texts, latent = ("red circle", "a very shiny blue circle on white"), {"samples": tiny_dits.empty(name)}
    given = defaults(P2PAttentionPatch) | dict(source=texts[0], targets=texts[1], latent=latent, cross_end=0.0, self_end=0.0, joint_end=0.0)
    edited, positive, negative, *_ = P2PAttentionPatch.execute(model, clip, **given).args

    def maps(model, text, conditioning, count):
        patched, rows = capture(model, clip, text, "circle", conditioning=conditioning)
        noise = comfy.sample.prepare_noise(tiny_dits.empty(name, count), 7, [0] * count)
        comfy.sample.sample(patched, noise, 1, 1.0, "euler", "simple", rows, negative, torch.zeros_like(noise), disable_pbar=True, seed=7)
        return view(patched)[2].of()

    both, alone = maps(edited, "\n".join(texts), positive, 2), [maps(model, text, None, 1) for text in texts]
    assert_close(both, torch.cat(alone), atol=1e-6, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.DITS))
def test_the_seats_of_text_and_image_are_where_they_change(name):
    """Another token of text, and another left edge of the image, show in the keys of the first block just there."""
    spy = Keys(tiny_dits.dit(name))
    dit, positive = dit_of(spy.model), tiny_dits.text(name, 1)
    corner = tiny_dits.empty(name, 1) + 0.25  # the host leaves an empty latent as it is
    other = [[positive[0][0].clone(), positive[0][1]]]
    other[0][0][:, 3] += 1
    keys = []
    for text, latent in ((positive, corner), (other, corner), (positive, corner.index_fill(-1, torch.arange(2), 0.75))):
        spy.seen.clear()
        noise = torch.ones_like(latent)
        given = (text, text, latent)
        comfy.sample.sample(spy.model, noise, 1, 1.0, "euler", "simple", *given, denoise=0.5, disable_pbar=True, seed=3)
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


class Noting(Run):
    """A control that wants nothing, and notes what it was asked for."""

    def wants(self, kind, place):
        self.asked.append((kind, place.number))


def test_blocks_that_a_model_has_beside_its_own_are_not_counted():
    model = tiny_dits.dit("wan_vace")
    run = Noting("token", comfy_scale(model), "")
    run.dit, run.asked = dit_of(model), []
    draw(install(model, SimpleNamespace(begin=lambda scale, noise: run)), "wan_vace", marked(tiny_dits.text("wan_vace", 1), "token"), 1)
    assert run.asked == [(kind, block) for block in range(4) for kind in ("self", "cross")]


def test_the_orders_of_tokens_have_their_seats():
    def seats(tokens, **layout):
        return Dit("some", Layout((), **layout), (1, 2, 2), ()).seats(tokens, 16, 7)

    assert seats(30) == (slice(7, 23), slice(0, 7)) and seats(22) is None  # references behind
    assert seats(30, order="text, rest, image") == (slice(14, 30), slice(0, 7))
    assert seats(30, order="text, rest, image", beside=True) == (slice(14, 30), slice(7, 14))
    assert seats(30, order="image, text") == (slice(0, 16), slice(16, 23))
    assert seats(64, order="text, rest, image", multiple=32) == (slice(32, 48), slice(0, 7)) and seats(32, multiple=32) is None


@pytest.mark.parametrize("name", tiny_dits.there(tiny_dits.CLOSED))
def test_a_network_that_cannot_be_reached_is_refused_by_name(name):
    model = tiny_dits.dit(name)
    with pytest.raises(ValueError, match=rf"{type(model.model).__name__}.*does not route its attention through ComfyUI's hook.*Qwen-Image"):
        dit_of(model)


def test_a_network_whose_tokens_others_change_is_an_error_in_the_first_call():
    model = tiny_dits.dit("flux")
    control = Capture(({"a": (1,)},), frozenset({0}), dit=dit_of(model))
    patched = install(model, control)
    patched.model_options["transformer_options"].setdefault("patches", {})["post_input"] = [
        lambda args: {**args, "txt": args["txt"][:, :5], "txt_ids": args["txt_ids"][:, :5]}
    ]
    with pytest.raises(
        ValueError, match="No attention of Flux came through ComfyUI's hook with 16 tokens of the image and 7 of the text"
    ):
        draw(patched, "flux", marked(tiny_dits.text("flux", 1), control.token))


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_of_a_dit_only_the_whole_image_is_read(name):
    """An area is a part of it, and so is a window of some of a video's frames."""
    model = tiny_dits.dit(name)
    control = Capture(({"one": (1, 2)},), frozenset({0}), dit=dit_of(model))
    patched, positive = install(model, control), marked(tiny_dits.text(name, 1), control.token)
    size = tuple(n // 2 for n in tiny_dits.empty(name).shape[2:]), (0,) * (tiny_dits.empty(name).ndim - 2)
    part = [[features, {**values, "area": (*size[0], *size[1])}] for features, values in positive]
    sums = []
    for given in (positive, [*positive, *part], part):
        draw(patched, name, given, steps=1)
        sums.append(control.runs[0].sums.total)
    assert_close(sums[1], sums[0], atol=1e-6, rtol=1e-4)
    assert not sums[2]
    with pytest.raises(ValueError, match=r"Nothing was captured.*the positive acts in an area alone, or context windows"):
        view(patched)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_the_words_of_a_dit_are_seen(kind):
    clip, model = tiny_text.clip(kind), tiny_text.denoiser(kind)
    patched, positive = capture(model, clip, layers="early")
    empty = torch.zeros(1, 16, 8, 8)
    noise = comfy.sample.prepare_noise(empty, 1)
    made = comfy.sample.sample(patched, noise, 2, 1.0, "euler", "simple", positive, positive, empty, disable_pbar=True, seed=1)
    assert view(patched, made)[2].of().shape == (1, 2, 4, 4) and made.isfinite().all()


def test_blocks_of_a_dit_are_chosen_by_thirds_and_numbers():
    places = [Block(i, 9) for i in range(9)]
    assert chosen_blocks("middle, 8", places, "layers") == {3, 4, 5, 8} and chosen_blocks("0-1", places, "layers") == {0, 1}
    assert len(chosen_blocks("all", places, "layers")) == 9
    with pytest.raises(ValueError, match=r"layers has '12', which names no block of this model.*numbers from 0 to 8"):
        chosen_blocks("12", places, "layers")




def words(tokenizer, text, length=None):
    return [(w.text, w.columns) for w in prompt_of(Tokens(tokenizer), text, length).words]


def test_the_words_of_t5_are_those_of_fluxs_conditioning():
    from comfy.text_encoders.flux import FluxTokenizer

    assert words(FluxTokenizer(), "a (red:1.3) dachshund, sat")[:3] == [("a", (0, 1)), ("red", (2,)), ("dachshund", (3, 4, 5, 6, 7))]


def test_sd3_has_its_words_in_clip_and_in_t5():
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    assert words(SD3Tokenizer(), "a red cat") == [("a", (1, 77, 78)), ("red", (2, 79)), ("cat", (3, 80))]
    assert words(SD3Tokenizer(), "a red cat", 77) == [("a", (1,)), ("red", (2,)), ("cat", (3,))]


def test_the_template_of_a_chat_model_is_no_text_and_what_is_cut_off_it_shifts_the_words():
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    tokens = QwenImageTokenizer().tokenize_with_weights("a red dachshund")["qwen25_7b"][0]
    given = [t for t, _ in tokens]
    cut = len(given) - 1 - given[::-1].index(872) + 2  # behind 'user' and its line break, as the host cuts
    made = words(QwenImageTokenizer(), "a red dachshund", len(given) - cut)
    assert [w for w, _ in made] == ["a", "red", "dachshund"] and made[0][1] == (0,) and made[1][1] == (1,)
    assert [c for _, columns in made for c in columns] == list(range(len(given) - cut - 5))  # five of the template follow
    with pytest.raises(ValueError, match="has 2 columns for"):
        words(QwenImageTokenizer(), "a red dachshund", 2)


def test_encoders_whose_order_is_not_known_are_refused():
    class Odd:
        def tokenize_with_weights(self, text, return_word_ids=False):
            return {"one": [[]], "other": [[]]}

    with pytest.raises(ValueError, match="gives tokens of one, other, whose places"):
        prompt_of(Tokens(Odd()), "a")
