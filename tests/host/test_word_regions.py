"""Word Regions inside the real ComfyUI, on tiny random UNets and DiTs."""

import comfy.hooks
import comfy.sample
import nodes as host_nodes
import pytest
import torch
from comfy_extras.nodes_hooks import ConditioningSetDefaultAndCombine
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.attention import attention_maps
from controlled_diffusion.nodes.host.attention.prompt_to_prompt import PromptToPrompt
from controlled_diffusion.nodes.host.attention.word_regions import WordRegions as Control
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, record_of
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.multi_cfg import GuidanceChannel
from controlled_diffusion.nodes.word_regions import WordRegions, WordRegionsView

from compare import assert_close
from host import editing, tiny, tiny_dits
from host.editing import control_of, last_run
from host.sampling import Count, run
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
PROMPT, PHRASES = "a red circle and a blue star", "red circle\nblue star"
UNETS, DITS = ("eps", "v", "flow"), ("flux", "qwen", "zimage", "wan")
FAMILIES = (*UNETS, *tiny_dits.there({name: tiny_dits.DITS[name] for name in DITS}))


@pytest.fixture
def family(request, clip, text_model):
    """(model, clip, empty latent of two images) of a family."""
    name = request.param
    if name in UNETS:
        return tiny.unet(name, output_scale=0.2), clip, torch.zeros(2, 4, 8, 8)
    return tiny_dits.dit(name), tiny_dits.Clip(text_model, name), tiny_dits.empty(name, 2)


every_family = pytest.mark.parametrize("family", FAMILIES, indirect=True)
some = pytest.mark.parametrize("family", ["eps", "flow", "flux", "wan"], indirect=True)
eps = pytest.mark.parametrize("family", ["eps"], indirect=True)


def regional(model, clip, *regions, phrases=PHRASES, **knobs):
    """(model, positive, negative) of Word Regions."""
    given = defaults(WordRegions) | dict(prompt=PROMPT, phrases=phrases, find_percent=0.3, anchors=0.1, spread=0, sampling="restart") | knobs
    return WordRegions.execute(model, clip, **given, regions={f"region_{i}": c for i, c in enumerate(regions) if c is not None}).args


def drawn(model, positive, negative, empty, **more):
    return editing.sample(model, positive, negative, {"samples": empty}, **dict(scheduler="simple") | more)


def view(source, latent, phrase="", image=None):
    """(mask, table, latent, text)."""
    return WordRegionsView.execute(source, {"samples": latent}, phrase, image).args


def with_mask(conditioning, mask):
    return host_nodes.ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0]


def with_default(conditioning, whole):
    return ConditioningSetDefaultAndCombine().set_default_and_combine(conditioning, whole)[0]


@eps
def test_without_phrases_nothing_changes(family):
    model, clip, empty = family
    patched, positive, _ = regional(model, clip, phrases=" \n")
    negative = encoded(clip, "")
    assert patched is model and torch.equal(drawn(patched, positive, negative, empty), drawn(model, encoded(clip, PROMPT), negative, empty))


@pytest.mark.parametrize("sampling", ["restart", "go on"])
@every_family
def test_finding_alone_leaves_the_images(family, sampling):
    model, clip, empty = family
    patched, positive, _ = regional(model, clip, sampling=sampling)
    negative = encoded(clip, "")
    made = drawn(patched, positive, negative, empty)
    assert torch.equal(made, drawn(model, encoded(clip, PROMPT), negative, empty))
    mask, table, _, told = view(patched, made)
    frames = empty.shape[2] if empty.ndim == 5 else 1
    scale = control_of(patched, Control).scale
    assert mask.shape == (2 * 2 * frames, *(n * scale for n in empty.shape[-2:])) and table.ndim == 4
    assert len(told.splitlines()) == 2 and "red circle" in told and float(mask.amax()) == 1
    assert float(mask.unflatten(0, (2, -1)).sum(0).amax()) <= 1 + 1e-5


@some
def test_a_restart_equals_the_masks_drawn_by_hand(family):
    """ComfyUI's own nodes with the masks that were found: a mask for each region, the whole prompt as default."""
    model, clip, empty = family
    regions, negative = [encoded(clip, "a dog"), encoded(clip, "the cat")], encoded(clip, "")
    patched, positive, _ = regional(model, clip, *regions, sampling="restart")
    made = drawn(patched, positive, negative, empty)
    masks = last_run(patched, Control).masks
    by_hand = [part for i, region in enumerate(regions) for part in with_mask(region, masks[:, i])]
    whole = with_default(by_hand, encoded(clip, PROMPT))
    assert_close(made, drawn(model, whole, negative, empty), atol=1e-5, rtol=1e-5)
    assert editing.differ(made, drawn(model, encoded(clip, PROMPT), negative, empty)) > 1e-4


@eps
def test_going_on_keeps_the_first_steps(family):
    model, clip, empty = family
    regions, seen = [encoded(clip, "a dog"), encoded(clip, "the cat")], {}
    for way in ("go on", "restart", None):
        patched, positive, _ = regional(model, clip, *regions, sampling=way) if way else (model, encoded(clip, PROMPT), None)
        steps = seen[way] = []
        drawn(patched, positive, encoded(clip, ""), empty, callback=lambda step, denoised, x, total, steps=steps: steps.append(denoised.clone()))
    assert [len(steps) for steps in seen.values()] == [4, 4, 4]
    same = {way: [torch.equal(a, b) for a, b in zip(seen[way], seen[None])] for way in ("go on", "restart")}
    assert same == {"go on": [True, True, True, False], "restart": [False] * 4}


@pytest.mark.parametrize("span", [None, (0.3, 1.0)])
@eps
def test_a_region_has_its_lora_and_the_negative_too(family, span):
    """The negative in the same part of the sampling as the region's conditioning."""
    model, clip, empty = family
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    region = comfy.hooks.set_timesteps_for_conditioning(comfy.hooks.set_hooks_for_conditioning(encoded(clip, "a dog"), hooks), span)
    patched, positive, negative = regional(model, clip, region, negative=encoded(clip, ""))
    made = drawn(patched, positive, negative, empty)
    mask = last_run(patched, Control).masks[:, 0]
    sides = (encoded(clip, "a dog"), encoded(clip, PROMPT)), (encoded(clip, ""), encoded(clip, ""))
    by_hand = [with_mask(comfy.hooks.set_hooks_for_conditioning(own, hooks), mask) for own, _ in sides]
    by_hand = [comfy.hooks.set_timesteps_for_conditioning(own, span) for own in by_hand]
    lists = [with_default(own, whole) for own, (_, whole) in zip(by_hand, sides)]
    assert_close(made, drawn(model, *lists, empty), atol=1e-5, rtol=1e-5)
    patched, positive, _ = regional(model, clip, region)
    assert editing.differ(made, drawn(patched, positive, encoded(clip, ""), empty)) > 1e-4


@eps
def test_hooks_begin_anew_with_a_restart(family):
    model, clip, empty = family
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.0, 0.4)):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(frames)
    whole = comfy.hooks.set_hooks_for_conditioning(encoded(clip, PROMPT), hooks)
    patched, positive, _ = regional(model, clip, conditioning=whole)
    assert torch.equal(drawn(patched, positive, encoded(clip, ""), empty), drawn(model, whole, encoded(clip, ""), empty))


@eps
def test_a_given_mask_replaces_what_is_found(family):
    model, clip, empty = family
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    patched, positive, _ = regional(model, clip, None, with_mask(encoded(clip, "a dog"), mask))
    made = drawn(patched, positive, encoded(clip, ""), empty)
    assert torch.equal(view(patched, made, "Blue star")[0], mask.expand(2, -1, -1))
    assert not (view(patched, made, "red circle")[0] * mask).any() or "has no place" in view(patched, made)[3]


@eps
def test_a_later_part_of_a_sampling_goes_on_with_the_regions(family):
    model, clip, empty = family
    patched, positive, _ = regional(model, clip, encoded(clip, "a dog"), sampling="go on")
    whole = drawn(patched, positive, encoded(clip, ""), empty)
    first = drawn(patched, positive, encoded(clip, ""), empty, last_step=3)
    given = (torch.zeros_like(first), 4, 4.0, "euler", "simple", positive, encoded(clip, ""), first)
    rest = comfy.sample.sample(patched, *given, start_step=3, disable_noise=True, disable_pbar=True, seed=7)
    assert_close(view(patched, rest)[0], view(patched, whole)[0])
    assert_close(rest, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["restart", "go on"])
@eps
def test_a_channel_acts_in_a_region(family, sampling):
    model, clip, empty = family
    patched, positive, _ = regional(model, clip, sampling=sampling)
    dog = encoded(clip, "a dog")

    def guided(source, **where):
        return run(MultiCFG(source, encoded(clip, ""), [Channel(positive, 4.0), Channel(dog, 3.0, name="dog", **where)]), empty)

    made = guided(patched, region="red circle")
    mask = last_run(patched, Control).masks[:, 0]
    if sampling == "restart":
        assert_close(made, guided(model, mask=mask), atol=1e-5, rtol=1e-5)
    assert editing.differ(made, guided(patched, region="blue star")) > 1e-4
    with pytest.raises(ValueError, match="in the region 'dog', but there are: red circle, blue star"):
        guided(patched, region="dog")
    with pytest.raises(ValueError, match="in the region 'red circle', but the model does not come from Word Regions"):
        guided(model, region="red circle")
    assert GuidanceChannel.execute({"role": "positive", "weight": 2.0}, conditioning=dog, region=" dog ").args[0][-1].region == "dog"


@eps
def test_a_restart_costs_the_first_steps_alone(family):
    model, clip, empty = family
    counts = []
    for way in ("go on", "restart"):
        count = Count(model)
        patched, positive, _ = regional(count.model, clip, sampling=way)
        drawn(patched, positive, encoded(clip, ""), empty)
        counts.append(count.rows)
    assert counts[1] - counts[0] == 3 * 2 * 2, "three steps of positive and negative of two images"


@pytest.mark.parametrize("sampling", ["restart", "go on"])
@eps
def test_reports_show_the_pass_that_made_the_image(family, sampling):
    """Without regions both ways sample alike, and so do maps, blend masks, weights and counts of nodes before and behind."""
    model, clip, empty = family
    shown = {}
    for way in (sampling, None):
        captured, positive = attention_maps.prepare(model, clip, PROMPT, PHRASES, "all", 0.0, 1.0, 1, None)
        if way:
            captured, positive, _ = regional(captured, clip, conditioning=positive, sampling=way)
        guider = MultiCFG(captured, encoded(clip, ""), [Channel(positive, 4.0), Channel(encoded(clip, "a dog"), 3.0, name="dog")])
        made = run(guider, empty)
        shown[way] = attention_maps.maps_of(captured, {"samples": made}).mean(PHRASES.splitlines()), record_of(guider, {"samples": made}).text()
    assert torch.equal(shown[sampling][0], shown[None][0]) and shown[sampling][1] == shown[None][1]


@pytest.mark.parametrize("family", ["eps", "flux"], indirect=True)
def test_prompt_to_prompt_has_the_regions_of_each_row(family):
    """Found alone they change neither rows nor blend masks. A phrase that a row's prompt lacks has no region there."""
    model, clip, empty = family
    target, phrases = "a red circle and a blue square", "red circle\nblue star\nblue square"
    patched, rows, negative, latent, _ = editing.patch(model, clip, target, PROMPT, latent={"samples": empty[:1]}, blend_words="star", blend_start=0.0)
    plain = editing.sample(patched, rows, negative, latent, scheduler="simple")
    blends = editing.last_run(patched, PromptToPrompt).blending.masks
    given = dict(prompt=f"{PROMPT}\n{target}", conditioning=rows, phrases=phrases)
    found, positive, _ = regional(patched, clip, **given)
    made = editing.sample(found, positive, negative, latent, scheduler="simple")
    assert torch.equal(made, plain)
    assert [(p, m.tolist()) for p, m in blends] == [(p, m.tolist()) for p, m in editing.last_run(found, PromptToPrompt).blending.masks]
    masks = last_run(found, Control).masks
    assert masks.flatten(2).any(-1).tolist() == [[True, True, False], [True, False, True]]
    found, positive, _ = regional(patched, clip, None, None, encoded(clip, "a dog"), **given)
    made = editing.sample(found, positive, negative, latent, scheduler="simple")
    assert_close(made[:1], plain[:1], atol=1e-4, rtol=1e-4)
    assert editing.differ(made[1], plain[1]) > 1e-4


@eps
def test_what_was_not_found_is_said(family):
    model, clip, empty = family
    patched, positive, _ = regional(model, clip, encoded(clip, "a dog"), find_percent=1.0)
    made = drawn(patched, positive, encoded(clip, ""), empty)
    assert last_run(patched, Control).warnings == ["no step was at or after 100% of the sampling: no region was found, and none acted"]
    with pytest.raises(ValueError, match="No region was found in the run: no step was at or after 100%"):
        view(patched, made)


@eps
def test_errors_name_what_is_wrong(family):
    model, clip, _ = family
    with pytest.raises(ValueError, match=r"'green' is in none of the prompts; the words of 'a red circle and a blue star' are: a, red"):
        regional(model, clip, phrases="green")
    with pytest.raises(ValueError, match=r"region_2 is connected, but there are 2 phrase\(s\): red circle, blue star"):
        regional(model, clip, None, None, encoded(clip, "a dog"))
    with pytest.raises(ValueError, match="The conditioning of 'red circle' has text features of width 16"):
        regional(model, clip, [[torch.zeros(1, 77, 16), {}]])
    with pytest.raises(ValueError, match="does not come from Word Regions"):
        view(model, torch.zeros(1, 4, 8, 8))
    patched, positive, _ = regional(model, clip)
    area = [[features, {**values, "area": (4, 4, 0, 0)}] for features, values in positive]
    with pytest.raises(ValueError, match="could not read the attention of its prompt"):
        drawn(patched, area, encoded(clip, ""), torch.zeros(1, 4, 8, 8))


def test_unknown_networks_are_refused_by_name(clip):
    with pytest.raises(ValueError, match="does not route its attention through ComfyUI's hook"):
        regional(tiny_dits.dit("pixart"), clip)
