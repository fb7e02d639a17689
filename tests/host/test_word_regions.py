"""Word Regions inside the real ComfyUI, on tiny random UNets and DiTs."""

import comfy.hooks
import comfy.sample
import nodes as host_nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_hooks import ConditioningSetDefaultAndCombine
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.attention import attention_maps, region_loras
from controlled_diffusion.nodes.host.attention.hook import network_of
from controlled_diffusion.nodes.host.attention.prompt_to_prompt import PromptToPrompt
from controlled_diffusion.nodes.host.attention.word_regions import WordRegions as Control
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, record_of
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.multi_cfg import GuidanceChannel
from controlled_diffusion.nodes.word_regions import WordRegions, WordRegionsView
from safetensors.torch import save_file

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
    """(model, positive) of Word Regions."""
    given = defaults(WordRegions) | dict(prompt=PROMPT, phrases=phrases, find_percent=0.3, start_percent=0.0, anchors=0.1, spread=0) | knobs
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
    patched, positive = regional(model, clip, phrases=" \n")
    negative = encoded(clip, "")
    assert patched is model and torch.equal(drawn(patched, positive, negative, empty), drawn(model, encoded(clip, PROMPT), negative, empty))


@pytest.mark.parametrize("start", [0.0, 0.3], ids=["again", "on"])
@every_family
def test_finding_alone_leaves_the_images(family, start):
    model, clip, empty = family
    patched, positive = regional(model, clip, start_percent=start)
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
    patched, positive = regional(model, clip, *regions, start_percent=0.0)
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
    for way, start in (("go on", 0.3), ("restart", 0.0), (None, None)):
        patched, positive = regional(model, clip, *regions, start_percent=start) if way else (model, encoded(clip, PROMPT))
        steps = seen[way] = []
        drawn(patched, positive, encoded(clip, ""), empty, callback=lambda step, denoised, x, total, steps=steps: steps.append(denoised.clone()))
    assert [len(steps) for steps in seen.values()] == [4, 4, 4]
    same = {way: [torch.equal(a, b) for a, b in zip(seen[way], seen[None])] for way in ("go on", "restart")}
    assert same == {"go on": [True, True, True, False], "restart": [False] * 4}


@eps
def test_a_region_acts_in_its_part_of_the_sampling(family):
    model, clip, empty = family
    region = comfy.hooks.set_timesteps_for_conditioning(encoded(clip, "a dog"), (0.3, 1.0))
    patched, positive = regional(model, clip, region)
    made = drawn(patched, positive, encoded(clip, ""), empty)
    by_hand = comfy.hooks.set_timesteps_for_conditioning(with_mask(encoded(clip, "a dog"), last_run(patched, Control).masks[:, 0]), (0.3, 1.0))
    assert_close(made, drawn(model, with_default(by_hand, encoded(clip, PROMPT)), encoded(clip, ""), empty), atol=1e-5, rtol=1e-5)


@eps
def test_regions_act_from_start_percent(family):
    """The steps before are those without regions, although the sampling begins again."""
    model, clip, empty = family
    seen = {}
    for name, regions in {"none": (), "dog": (encoded(clip, "a dog"),)}.items():
        seen[name] = []
        patched, positive = regional(model, clip, *regions, find_percent=0.6, start_percent=0.3)
        drawn(patched, positive, encoded(clip, ""), empty, callback=lambda i, x0, x, n, own=seen[name]: own.append(x0.clone()))
    same = [torch.equal(a, b) for a, b in zip(seen["none"], seen["dog"])]
    assert same[0] and not same[2] and len(same) == 4


@eps
def test_hooks_begin_anew_with_a_restart(family):
    model, clip, empty = family
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.0, 0.4)):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(frames)
    whole = comfy.hooks.set_hooks_for_conditioning(encoded(clip, PROMPT), hooks)
    patched, positive = regional(model, clip, conditioning=whole)
    assert torch.equal(drawn(patched, positive, encoded(clip, ""), empty), drawn(model, whole, encoded(clip, ""), empty))


@eps
def test_a_given_mask_replaces_what_is_found(family):
    model, clip, empty = family
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    patched, positive = regional(model, clip, None, with_mask(encoded(clip, "a dog"), mask))
    made = drawn(patched, positive, encoded(clip, ""), empty)
    assert torch.equal(view(patched, made, "Blue star")[0], mask.expand(2, -1, -1))
    assert not (view(patched, made, "red circle")[0] * mask).any() or "has no place" in view(patched, made)[3]


@eps
def test_a_later_part_of_a_sampling_goes_on_with_the_regions(family):
    model, clip, empty = family
    patched, positive = regional(model, clip, encoded(clip, "a dog"), start_percent=0.3)
    whole = drawn(patched, positive, encoded(clip, ""), empty)
    first = drawn(patched, positive, encoded(clip, ""), empty, last_step=3)
    given = (torch.zeros_like(first), 4, 4.0, "euler", "simple", positive, encoded(clip, ""), first)
    rest = comfy.sample.sample(patched, *given, start_step=3, disable_noise=True, disable_pbar=True, seed=7)
    assert_close(view(patched, rest)[0], view(patched, whole)[0])
    assert_close(rest, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("start", [0.0, 0.3], ids=["again", "on"])
@eps
def test_a_channel_acts_in_a_region(family, start):
    model, clip, empty = family
    patched, positive = regional(model, clip, start_percent=start)
    dog = encoded(clip, "a dog")

    def guided(source, **where):
        return run(MultiCFG(source, encoded(clip, ""), [Channel(positive, 4.0), Channel(dog, 3.0, name="dog", **where)]), empty)

    made = guided(patched, region="red circle")
    mask = last_run(patched, Control).masks[:, 0]
    if not start:
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
    for start in (0.3, 0.0):
        count = Count(model)
        patched, positive = regional(count.model, clip, start_percent=start)
        drawn(patched, positive, encoded(clip, ""), empty)
        counts.append(count.rows)
    assert counts[1] - counts[0] == 3 * 2 * 2, "three steps of positive and negative of two images"


@pytest.mark.parametrize("start", [0.0, 0.3], ids=["again", "on"])
@eps
def test_reports_show_the_pass_that_made_the_image(family, start):
    """Without regions both ways sample alike, and so do maps, blend masks, weights and counts of nodes before and behind."""
    model, clip, empty = family
    shown = {}
    for way in (start, None):
        captured, positive = attention_maps.prepare(model, clip, PROMPT, PHRASES, "all", 0.0, 1.0, 1, None)
        if way is not None:
            captured, positive = regional(captured, clip, conditioning=positive, start_percent=way)
        guider = MultiCFG(captured, encoded(clip, ""), [Channel(positive, 4.0), Channel(encoded(clip, "a dog"), 3.0, name="dog")])
        made = run(guider, empty)
        shown[way] = attention_maps.maps_of(captured, {"samples": made}).mean(PHRASES.splitlines()), record_of(guider, {"samples": made}).text()
    assert torch.equal(shown[start][0], shown[None][0]) and shown[start][1] == shown[None][1]


@pytest.mark.parametrize("family", ["eps", "flux"], indirect=True)
def test_prompt_to_prompt_has_the_regions_of_each_row(family):
    """Found alone they change neither rows nor blend masks. A phrase that a row's prompt lacks has no region there."""
    model, clip, empty = family
    target, phrases = "a red circle and a blue square", "red circle\nblue star\nblue square"
    patched, rows, negative, latent, _ = editing.patch(model, clip, target, PROMPT, latent={"samples": empty[:1]}, blend_words="star", blend_start=0.0)
    plain = editing.sample(patched, rows, negative, latent, scheduler="simple")
    blends = editing.last_run(patched, PromptToPrompt).blending.masks
    given = dict(prompt=f"{PROMPT}\n{target}", conditioning=rows, phrases=phrases)
    found, positive = regional(patched, clip, **given)
    made = editing.sample(found, positive, negative, latent, scheduler="simple")
    assert torch.equal(made, plain)
    assert [(p, m.tolist()) for p, m in blends] == [(p, m.tolist()) for p, m in editing.last_run(found, PromptToPrompt).blending.masks]
    masks = last_run(found, Control).masks
    assert masks.flatten(2).any(-1).tolist() == [[True, True, False], [True, False, True]]
    found, positive = regional(patched, clip, None, None, encoded(clip, "a dog"), **given)
    made = editing.sample(found, positive, negative, latent, scheduler="simple")
    assert_close(made[:1], plain[:1], atol=1e-4, rtol=1e-4)
    assert editing.differ(made[1], plain[1]) > 1e-4


@eps
def test_what_was_not_found_is_said(family):
    model, clip, empty = family
    patched, positive = regional(model, clip, encoded(clip, "a dog"), find_percent=1.0)
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
    patched, positive = regional(model, clip)
    area = [[features, {**values, "area": (4, 4, 0, 0)}] for features, values in positive]
    with pytest.raises(ValueError, match="could not read the attention of its prompt"):
        drawn(patched, area, encoded(clip, ""), torch.zeros(1, 4, 8, 8))


def test_unknown_networks_are_refused_by_name(clip):
    with pytest.raises(ValueError, match="does not route its attention through ComfyUI's hook"):
        regional(tiny_dits.dit("pixart"), clip)


def lora_on(model, layers, rank: int = 2, seed: int = 3) -> dict:
    """A LoRA on layers of a MODEL, by name."""
    draw, made = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        out, *given = model.model.get_submodule(layer).weight.shape
        shapes = {"up": (out, rank), "down": (rank, *given)} if len(given) == 1 else {"up": (out, rank, 1, 1), "down": (rank, *given)}
        made |= {f"{layer}.lora_{k}.weight": 0.3 * torch.randn(shape, generator=draw) / shape[1] ** 0.5 for k, shape in shapes.items()}
    return made


def hooked(lora: dict, strength: float = 1.0):
    return comfy.hooks.create_hook_lora(lora, strength, 0.0)


def everywhere(model, clip, lora: dict, image, text: float, reached: dict):
    """The MODEL with a LoRA by token, with these masks at every call: of the image as (H, W), of the text a number."""
    (found,) = region_loras.loras_of(model, clip, hooked(lora), 0, "dog")
    patched, dit = model.clone(), network_of(model)["dit"]

    def around(executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
        rows = torch.as_tensor(image, dtype=x.dtype).expand(len(x), *x.shape[2:])
        masks = region_loras.CallMasks(dit, rows, torch.full(c_crossattn.shape[:2], text))
        with region_loras.acting(executor.class_obj, [(found.parts, 1.0, masks)], reached):
            return executor(x, t, c_concat, c_crossattn, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", around)
    return patched


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "zimage"], indirect=True)
def test_full_masks_are_the_plain_lora_and_empty_ones_none(family):
    """On all layers of tokens, that is on all but those of timestep and pooled text. (Z-Image fills its tokens up with ones that are in no region.)"""
    model, clip, empty = family
    positive, negative, reached = encoded(clip, PROMPT), encoded(clip, "a dog"), {}
    layers = [layer for layer, shape in adapters.weights_of(model).items() if len(shape) in (2, 4)]
    drawn(everywhere(model, clip, lora_on(model, layers), 1.0, 1.0, reached), positive, negative, empty)
    of_tokens = [layer for layer in layers if reached.get(layer)]
    assert not [layer for layer in layers if "attn" in layer and reached.get(layer) is False] and len(of_tokens) > len(layers) / 3
    lora = lora_on(model, of_tokens)
    plain, without = (drawn(m, positive, negative, empty) for m in (adapters.patched(model, lora), model))
    made, effect = drawn(everywhere(model, clip, lora, 1.0, 1.0, {}), positive, negative, empty), editing.differ(plain, without)
    assert effect > 1e-3 and editing.differ(made, plain) < 1e-3 * effect
    assert torch.equal(drawn(everywhere(model, clip, lora, 0.0, 0.0, {}), positive, negative, empty), without)


@pytest.mark.parametrize("family", ["flux"], indirect=True)
def test_a_lora_of_other_names_acts_on_its_part_of_a_layer(family):
    """Queries of diffusers are a third of a layer here."""
    model, clip, empty = family
    width, draw = model.model.get_submodule("diffusion_model.double_blocks.0.img_attn.proj").in_features, torch.Generator().manual_seed(6)
    name = "transformer.transformer_blocks.0.attn.to_k"
    lora = {f"{name}.lora_A.weight": torch.randn(2, width, generator=draw), f"{name}.lora_B.weight": torch.randn(width, 2, generator=draw)}
    positive, negative = encoded(clip, PROMPT), encoded(clip, "a dog")
    plain = drawn(adapters.patched(model, lora), positive, negative, empty)
    effect = editing.differ(plain, drawn(model, positive, negative, empty))
    made = drawn(everywhere(model, clip, lora, 1.0, 1.0, {}), positive, negative, empty)
    assert effect > 1e-4 and editing.differ(made, plain) < 1e-3 * effect


@pytest.mark.parametrize("algorithm", ["LoHa", "LoKr"])
@eps
def test_full_masks_are_the_plain_adapter(family, algorithm):
    model, clip, empty = family
    made = adapters.Design(algorithm, 2).adapters(model, 0).tensors()
    lora = {k: v if v.ndim < 2 else 0.3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, (k, v) in enumerate(made.items())}
    positive, negative = encoded(clip, PROMPT), encoded(clip, "a dog")
    plain = drawn(adapters.patched(model, lora), positive, negative, empty)
    effect = editing.differ(plain, drawn(model, positive, negative, empty))
    made = drawn(everywhere(model, clip, lora, 1.0, 1.0, {}), positive, negative, empty)
    assert effect > 1e-3 and editing.differ(made, plain) < 1e-3 * effect


@eps
def test_two_loras_that_share_the_image_are_one(family):
    model, clip, empty = family
    positive, negative, lora = encoded(clip, PROMPT), encoded(clip, ""), tiny.lora(model)
    half = torch.zeros(8, 8)
    half[:, :4] = 1
    layers = [layer for layer in adapters.weights_of(model) if any(part in layer for part in ("attn1", ".ff.", "in_layers"))]
    lora = lora_on(model, layers)
    both = everywhere(everywhere(model, clip, lora, half, 0.0, {}), clip, lora, 1 - half, 0.0, {})
    assert_close(drawn(both, positive, negative, empty), drawn(adapters.patched(model, lora), positive, negative, empty), atol=1e-4, rtol=1e-3)


def lora_regions(model, clip, **knobs):
    """(model, positive) of Word Regions with a LoRA in either region."""
    return regional(model, clip, hooked(attention_lora(model, 3)), hooked(attention_lora(model, 4)), **knobs)


def attention_lora(model, seed: int = 5) -> dict:
    """A LoRA on the attention of a MODEL."""
    return lora_on(model, [layer for layer in adapters.weights_of(model) if "attn" in layer or "attention" in layer], seed=seed)


@every_family
def test_a_lora_acts_in_its_region(family):
    model, clip, empty = family
    empty, negative = empty.repeat(*[1] * (empty.ndim - 2), 2, 2), encoded(clip, "")  # which Z-Image can tell apart from the text
    plain = drawn(*regional(model, clip), negative, empty)
    made = drawn(*lora_regions(model, clip), negative, empty)
    assert editing.differ(made, plain) > 1e-4
    first = drawn(*regional(model, clip, hooked(attention_lora(model))), negative, empty)
    second = drawn(*regional(model, clip, None, hooked(attention_lora(model))), negative, empty)
    assert min(editing.differ(first, plain), editing.differ(second, plain), editing.differ(first, second)) > 1e-5


@eps
def test_loras_cost_no_evaluation(family):
    model, clip, empty = family
    counts = []
    for regions in ((), (hooked(attention_lora(model)), hooked(attention_lora(model)))):
        count = Count(model)
        drawn(*regional(count.model, clip, *regions), encoded(clip, ""), empty)
        counts.append((count.rows, count.calls))
    assert counts[0] == counts[1]


@eps
def test_images_of_a_batch_have_their_own_regions(family):
    model, clip, empty = family
    patched, positive = lora_regions(model, clip)
    both = drawn(patched, positive, encoded(clip, ""), empty)
    masks = editing.last_run(patched, Control).masks
    assert not torch.equal(masks[0], masks[1])
    one = editing.sample(patched, positive, encoded(clip, ""), {"samples": empty[:1]}, scheduler="simple")
    assert_close(one, both[:1], atol=1e-4, rtol=1e-3)


@eps
def test_no_hook_stays_after_a_run_or_an_error(family):
    model, clip, empty = family
    patched, positive = lora_regions(model, clip)
    inner = model.model.diffusion_model

    def left() -> int:
        return sum(len(module._forward_hooks) for module in inner.modules())

    seen = []

    def fail(module, given):
        seen.append(left())
        if seen[-1]:
            raise RuntimeError("the last layer fails")

    handle = inner.out.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="the last layer fails"):
            drawn(patched, positive, encoded(clip, ""), empty)
    finally:
        handle.remove()
    assert seen[-1] and not left()
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    drawn(patched, positive, encoded(clip, ""), empty)
    assert not left() and all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


@eps
def test_keyframes_say_how_strong_a_lora_is(family):
    model, clip, empty = family
    hooks, frames = hooked(attention_lora(model)), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (1.0, 0.9)):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    late = hooks.clone()
    late.set_keyframes_on_hooks(frames)
    negative, steps = encoded(clip, ""), {}
    for name, regions in {"none": (), "late": (late,)}.items():
        steps[name] = []
        drawn(*regional(model, clip, *regions), negative, empty, callback=lambda i, x0, x, n, own=steps[name]: own.append(x0.clone()))
    same = [torch.equal(a, b) for a, b in zip(steps["none"], steps["late"])]
    assert same[:3] == [True] * 3 and editing.differ(drawn(*regional(model, clip, hooks), negative, empty), drawn(*regional(model, clip), negative, empty)) > 1e-5


KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
WRONG = {
    "dora": (lambda lora: lora | {f"{KEY}.dora_scale": torch.ones(64, 1)}, "is DoRA"),
    "diff": (lambda lora: {f"{KEY}.diff": torch.zeros(64, 64)}, "holds whole weights or their differences"),
    "set": (lambda lora: lora | {"diffusion_model.out.2.set_weight": torch.zeros(4, 32, 3, 3)}, "holds whole weights or their differences"),
    "glora": (lambda lora: {f"{KEY}.{n}.weight": torch.zeros(64, 2) if n[1] == "2" else torch.zeros(2, 64) for n in ("a1", "a2", "b1", "b2")}, "is GLoRA"),
    "oft": (lambda lora: {f"{KEY}.oft_blocks": torch.zeros(8, 8, 8)}, "is OFT"),
    "shape": (lambda lora: {f"{KEY}.lora_up.weight": torch.zeros(320, 2), f"{KEY}.lora_down.weight": torch.zeros(2, 768)}, "does not fit diffusion_model.mid"),
    "keys": (lambda lora: {"transformer.blocks.7.attn.to_q.lora_A.weight": torch.zeros(2, 8)}, r"does not fit the model \(BaseModel\)"),
}


@pytest.mark.parametrize("kind", WRONG)
@eps
def test_what_cannot_act_by_token_is_refused(family, kind):
    model, clip, _ = family
    change, message = WRONG[kind]
    with pytest.raises(ValueError, match=f"The LoRA of 'blue star' {message}"):
        regional(model, clip, None, hooked(change(tiny.lora(model))))


@eps
def test_a_lora_in_a_conditioning_is_refused(family):
    model, clip, _ = family
    region = comfy.hooks.set_hooks_for_conditioning(encoded(clip, "a dog"), hooked(tiny.lora(model)))
    with pytest.raises(ValueError, match="The conditioning of region_0 carries a LoRA"):
        regional(model, clip, region)


@eps
def test_the_part_of_the_text_encoder_is_left_to_load_lora(family):
    model, clip, _ = family
    lora = tiny.lora(model) | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(128, 2)}
    patched, _ = regional(model, clip, hooked(lora))
    (found,) = editing.control_of(patched, Control).loras
    assert [part.layer for part in found.parts] == [KEY]


@eps
def test_learned_words_are_phrases(family, tmp_path):
    model, _, empty = family
    save_file({"clip_l": torch.randn(2, tiny.CONTEXT)}, tmp_path / "mine.safetensors")
    clip = tiny.clip(embedding_directory=str(tmp_path))
    prompt = "a red embedding:mine and a blue star"
    patched, positive = regional(model, clip, hooked(attention_lora(model)), prompt=prompt, phrases="red embedding:mine\nblue star")
    made = drawn(patched, positive, encoded(clip, ""), empty)
    control = editing.control_of(patched, Control)
    assert [len(columns) for columns in control.words[0].values()] == [3, 2]
    assert "red embedding:mine" in view(patched, made)[3]
