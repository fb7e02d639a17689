"""IP-Adapter in ComfyUI's own sampling."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import comfy.ldm.modules.attention as host_attention
import comfy.ops
import comfy.samplers
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from controlled_diffusion.attention.ip_adapter import recognize
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.schedules import Constant, Schedule
from controlled_diffusion.nodes.host import demo, gradients
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.host.noise_levels import noise_scale
from controlled_diffusion.nodes.ip_adapter import IPAdapterLoader, IPAdapterPatch
from controlled_diffusion.nodes.negative_attention import NegativeAttention
from controlled_diffusion.nodes.word_weights import WordWeights
from controlled_diffusion.training.demo.config import VISION_CONFIG
from node_helpers import conditioning_set_values as with_values
from safetensors.torch import save_file

from adapters import SD15, SDXL, parted, published
from compare import assert_close
from host import editing, tiny_editors
from host.sampling import Count, cfg_guider, dual_guider, half_mask, ksampler, latent, run, with_options_seen
from host.tiny import CONTEXT, UNET_CONFIG, conditioning, fill, unet

EMPTY, CAT, DOG = (conditioning(i) for i in range(3))
TEXT_OF_78 = conditioning(5, tokens=78)  # the host cannot put it into one call with one of 77
DEEP = dict(transformer_depth=[1, 2], transformer_depth_output=[1, 1, 2, 2], transformer_depth_middle=2)
FEATURES, HIDDEN = VISION_CONFIG["projection_dim"], VISION_CONFIG["hidden_size"]
CLOSE = dict(atol=1e-4, rtol=1e-4)
SIGMA = 2.0
pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def vision():
    """A tiny random CLIP_VISION of ComfyUI's own class."""
    encoder = demo.new_demo_encoder()
    fill(encoder.model, 4)
    return encoder


def random_image(seed: int = 0, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 48, 48, 3, generator=torch.Generator().manual_seed(seed))


def widths_of(model) -> list[int]:
    return [a.to_k.weight.shape[0] for a in ip_adapter.layers_of(model).values()]


def adapter_for(model, kind: str = "base", seed: int = 0):
    weights = published(kind, FEATURES if kind == "base" else HIDDEN, CONTEXT, widths_of(model), seed)
    return recognize(weights, "tiny.safetensors")


def patched(model, vision, image=None, kind="base", seed=0, weight=1.0, start=0.0, end=1.0, combine="concat", layers="", **optional):
    """The outputs of IP-Adapter Patch."""
    given = (model, adapter_for(model, kind, seed), vision, weight, start, end, combine, layers, "center")
    return IPAdapterPatch.execute(*given, image=random_image() if image is None else image, **optional).args


def execute(model, adapter, encoder, **optional):
    return IPAdapterPatch.execute(model, adapter, encoder, 1.0, 0.0, 1.0, "concat", "", "center", **optional)


def guided(model, positive=CAT, negative=EMPTY, cfg: float = 3.0):
    return cfg_guider(model, positive, negative, cfg)


def predictions(model, positive=CAT, negative=EMPTY, empty=None, sigma: float = SIGMA) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model predicts for positive and negative at a sigma, in one run of ComfyUI's CFG."""
    seen, noted = [], model.clone()
    note = lambda args: seen.append((args["cond_denoised"], args["uncond_denoised"])) or args["denoised"]  # noqa: E731
    noted.set_model_sampler_post_cfg_function(note)
    run(guided(noted, positive, negative), empty, sigmas=torch.tensor([sigma, 0.0]))
    return seen[0]


def layer_outputs(model, block=("input", 1), **given) -> torch.Tensor:
    """What the cross-attention of the first block gives, after its output projection."""
    seen, watched = [], model.clone()

    def note(n, options):
        if options["block"] == block:
            seen.append(n.clone())
        return n

    watched.set_model_attn2_output_patch(note)
    predictions(watched, **given)
    return torch.cat(seen)


WITH, WITHOUT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
FAMILIES = {  # ComfyUI's config of the family at a small width, its blocks in diffusers, and how many cross-attentions it has
    "SD1.5": (dict(num_res_blocks=[2] * 4, channel_mult=[1, 2, 2, 2], transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3),
              dict(block_out_channels=(32, 64, 64, 64), kinds=(WITH, WITH, WITH, WITHOUT), transformer_layers_per_block=1), 16),
    "SDXL": (dict(num_res_blocks=[2] * 3, channel_mult=[1, 1, 2], transformer_depth=[0, 0, 2, 2, 10, 10],
                  transformer_depth_output=[0] * 3 + [2] * 3 + [10] * 3, transformer_depth_middle=10, use_linear_in_transformer=True),
             dict(block_out_channels=(32, 32, 64), kinds=(WITHOUT, WITH, WITH), transformer_layers_per_block=[1, 2, 10], use_linear_projection=True), 70),
}  # fmt: skip


@pytest.mark.parametrize(("family", "mults", "published_shape"), [("SD1.5", [1, 2, 4, 4], SD15), ("SDXL", [1, 2, 4], SDXL)])
def test_layers_are_ordered_as_in_published_files(family, mults, published_shape):
    """At their true widths, without memory for weights."""
    config = UNET_CONFIG | FAMILIES[family][0] | dict(model_channels=320, channel_mult=mults, context_dim=published_shape["text"])
    network = UNetModel(**config, num_heads=8, device="meta", operations=comfy.ops.disable_weight_init)
    keys = [a.to_k.weight for _, a in ip_adapter.transformers(network)]
    assert [k.shape[0] for k in keys] == published_shape["widths"]
    assert {k.shape[1] for k in keys} == {published_shape["text"]}


def converted(model, family: str):
    """The same network as a UNet of the `diffusers` package."""
    from diffusers import UNet2DConditionModel

    shape = dict(FAMILIES[family][1])
    down, up = zip(*shape.pop("kinds"))
    blocks = dict(down_block_types=down, up_block_types=up[::-1], layers_per_block=2)
    theirs = UNet2DConditionModel(16, cross_attention_dim=CONTEXT, attention_head_dim=4, **blocks, **shape)
    ours, names = model.model.diffusion_model.state_dict(), comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    theirs.load_state_dict({k: ours[names[k]] for k in theirs.state_dict()})
    return theirs.eval()


class AtX(comfy.samplers.Sampler):
    """Predicts once, at a noisy latent of its own, for positive and negative."""

    def __init__(self, x: torch.Tensor):
        self.x, self.denoised = x, []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        conds, options = [model_wrap.conds[k] for k in ("positive", "negative")], extra_args["model_options"]
        self.denoised = comfy.samplers.calc_cond_batch(model_wrap.inner_model, conds, self.x.to(sigmas.device), sigmas[:1], options)
        return self.x


@pytest.mark.parametrize(("family", "kind"), [("SD1.5", "base"), ("SD1.5", "plus"), ("SD1.5", "full"), ("SDXL", "base")])
def test_a_whole_unet_predicts_what_diffusers_predicts(vision, family, kind, tmp_path):
    """Through nodes and a file: numbers of layers, blocks, projections, the zero image, and both rows of CFG."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("the package 'diffusers' is not installed; it is the reference of this test")
    config, _, count = FAMILIES[family]
    model = unet("eps", **config)
    weights = published(kind, FEATURES if kind == "base" else HIDDEN, CONTEXT, widths_of(model))
    theirs = converted(model, family)
    sigma, x = float(model.get_model_object("model_sampling").sigmas[600]), torch.randn(1, 4, 16, 16)
    given = (x / (1 + sigma**2) ** 0.5).repeat(2, 1, 1, 1), 600, torch.cat([CAT[0][0], EMPTY[0][0]])
    plain = theirs(*given).sample
    theirs._load_ip_adapter_weights([parted(weights)], low_cpu_mem_usage=False)
    encoded = vision.encode_image(random_image())
    features, nothing = encoded["image_embeds"], torch.zeros_like(encoded["image_embeds"])
    if kind != "base":
        features = encoded["penultimate_hidden_states"]
        nothing = vision.model(pixel_values=torch.zeros(1, 3, 64, 64), intermediate_output=-2)[1]
    eps = theirs(*given, added_cond_kwargs={"image_embeds": [torch.cat([features, nothing])[:, None].float()]}).sample
    assert len(widths_of(model)) == count and (eps - plain).flatten(1).abs().amax(1).min() > 0.1

    save_file(weights, tmp_path / f"{family} {kind}.safetensors")
    folder_paths.add_model_folder_path("ipadapter", str(tmp_path))
    loaded = IPAdapterLoader.execute(f"{family} {kind}.safetensors").args[0]
    node = execute(model, loaded, vision, image=random_image()).args[0]
    once = AtX(x)
    guided(node).sample(torch.zeros_like(x), torch.zeros_like(x), once, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    found = (x - torch.cat(once.denoised).cpu()) / sigma
    assert_close(found, eps, atol=1e-5, rtol=1e-5)


def test_weight_zero_is_the_model_itself_bit_for_bit(any_model, vision):
    """Runs are independent, and the model is unchanged."""
    plain, node = ksampler(any_model, CAT, EMPTY, 3.0), patched(any_model, vision)[0]
    assert torch.equal(ksampler(patched(any_model, vision, weight=0.0)[0], CAT, EMPTY, 3.0), plain)
    assert torch.equal(ksampler(patched(any_model, vision, layers="all:0")[0], CAT, EMPTY, 3.0), plain)
    first, second = (ksampler(node, CAT, EMPTY, 3.0) for _ in range(2))
    assert torch.equal(first, second) and not torch.allclose(first, plain, atol=1e-2)
    assert torch.equal(ksampler(any_model, CAT, EMPTY, 3.0), plain)


@pytest.mark.parametrize(("start", "end", "acts"), [(0.0, 1.0, True), (0.0, 0.3, False), (0.6, 1.0, False), (0.4, 0.5, True)])
def test_it_acts_between_its_percents_alone(eps_model, vision, start, end, acts):
    sigma = noise_scale(eps_model).sigma(0.45)
    found = torch.cat(predictions(patched(eps_model, vision, start=start, end=end)[0], sigma=sigma))
    assert torch.equal(found, torch.cat(predictions(eps_model, sigma=sigma))) is not acts


@pytest.mark.parametrize(
    "made, wanted",
    [
        (dict(weight=0.8, schedule=Schedule(Constant(0.5))), dict(weight=0.4)),
        (dict(layers="all:0, input1:0.5"), dict(weight=0.5, layers="all:0, input1:1")),
    ],
    ids=["schedule", "layer"],
)
def test_schedule_and_layer_weights_multiply_the_weight(eps_model, vision, made, wanted):
    assert_close(*(predictions(patched(eps_model, vision, **given)[0]) for given in (made, wanted)))


def alone(model, vision, text, image: bool, **settings) -> torch.Tensor:
    """The prediction for one text that sees the image, or the empty image, by itself."""
    node, seen, blank = patched(model, vision, conditioning=text, **settings)
    return predictions(node, positive=seen if image else blank)[0]


def test_positives_see_the_image_negatives_the_empty_one(any_model, vision):
    found = predictions(patched(any_model, vision)[0])
    assert_close(found, (alone(any_model, vision, CAT, True), alone(any_model, vision, EMPTY, False)), **CLOSE)
    plain = predictions(any_model)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(found, plain))


def test_split_calls_give_the_same(eps_model, vision):
    together, apart = Count(eps_model), Count(eps_model)
    predictions(patched(together.model, vision)[0])
    found = predictions(patched(apart.model, vision)[0], negative=TEXT_OF_78)
    assert (together.calls, apart.calls) == (1, 2)
    assert_close(found, (alone(eps_model, vision, CAT, True), alone(eps_model, vision, TEXT_OF_78, False)), **CLOSE)


def test_split_calls_read_the_noise_level_once(eps_model, vision):
    seen = []
    predictions(patched(eps_model, vision, schedule=lambda sigma, scale: seen.append(sigma) or 0.5)[0], negative=TEXT_OF_78)
    assert len(seen) == 1


def test_a_new_conditioning_goes_by_its_index(eps_model, vision):
    """Another node may ask for predictions of its own; of these the first is taken for the positive, as in ComfyUI's CFG."""
    seen = []

    def ask(args):
        fresh = [[{**c, "uuid": object()} for c in args[k]] for k in ("cond", "uncond")]
        seen.extend(comfy.samplers.calc_cond_batch(args["model"], fresh, args["input"], args["sigma"], args["model_options"]))
        return args["denoised"]

    node = patched(eps_model, vision)[0]
    wanted = predictions(node)
    node.set_model_sampler_post_cfg_function(ask)
    run(guided(node), sigmas=torch.tensor([SIGMA, 0.0]))
    assert_close(tuple(seen), wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["dual", "nested dual", "perp-neg"])
def test_guiders_of_three_conditionings(eps_model, vision, kind):
    """Only the first sees the image; ComfyUI marks the second as a negative, and orders its list differently than plain CFG."""

    def sampled(model, *texts):
        if kind != "perp-neg":
            return run(dual_guider(model, *texts, 3.0, 2.0, nested=kind == "nested dual"))
        guider = Guider_PerpNeg(model)
        guider.set_conds(*texts)
        guider.set_cfg(3.0, 0.8)
        return run(guider)

    node, seen, _ = patched(eps_model, vision, conditioning=CAT)
    token = seen[0][1][ip_adapter.KEY][0][0]
    blanks = [with_values(c, {ip_adapter.KEY: ((token, False),)}) for c in (DOG, EMPTY)]
    assert_close(sampled(patched(eps_model, vision)[0], CAT, DOG, EMPTY), sampled(node, seen, *blanks), atol=1e-2, rtol=1e-3)


LEFT = {"area": (8, 4, 0, 0), "strength": 1.0, "set_area_to_bounds": False}


def test_an_area_brings_no_image_to_the_negative(eps_model, vision):
    """The host gives the negative a copy of the positive's entry, marks and uuid included, with the negative's text."""
    node, seen, blank = patched(eps_model, vision, conditioning=CAT)
    left, plain = [*with_values(seen, LEFT), *DOG], [*with_values(CAT, LEFT), *DOG]
    assert_close(predictions(node, positive=left)[1], predictions(eps_model, positive=plain)[1], **CLOSE)
    nothing = with_values(EMPTY, {ip_adapter.KEY: blank[0][1][ip_adapter.KEY]})
    found, wanted = predictions(patched(eps_model, vision)[0], positive=plain), predictions(node, positive=left, negative=nothing)
    assert_close(found[1], wanted[1], **CLOSE)


@pytest.mark.parametrize("own", [False, True])
def test_a_second_adapter_leaves_the_firsts_area(eps_model, vision, own):
    """A patch of weight 0 behind another changes nothing, also where the host copies an area to the negative."""
    right = half_mask(8)
    node, seen, blank = patched(eps_model, vision, conditioning=CAT) if own else (patched(eps_model, vision, mask=right)[0], CAT, EMPTY)
    given = dict(positive=[*with_values(seen, LEFT), *seen], negative=blank)
    both = patched(node, vision, seed=1, weight=0.0)[0]
    assert_close(predictions(both, **given), predictions(node, **given))


def test_images_of_a_batch_see_the_image_or_each_its_own(eps_model, vision):
    both, plain = (layer_outputs(m, empty=latent(2)) for m in (patched(eps_model, vision)[0], eps_model))
    assert both.shape[0] == 4 and all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(both, plain))
    images = random_image(1, 2)
    node = patched(eps_model, vision, images, combine="batch")[0]
    both = predictions(node, empty=latent(2))
    for i in range(2):
        one = predictions(patched(eps_model, vision, images[i : i + 1])[0], empty=latent(2))
        assert_close([b[i] for b in both], [o[i] for o in one], **CLOSE)
    with pytest.raises(ValueError, match="2 images for a batch of 3 images"):
        predictions(node, empty=latent(3))


def test_several_images_combine_as_they_should(eps_model, vision):
    images = random_image(1, 2)
    base = layer_outputs(eps_model)
    single = [layer_outputs(patched(eps_model, vision, images[i : i + 1])[0]) for i in range(2)]
    added = layer_outputs(patched(eps_model, vision, images, combine="add")[0])
    assert_close(added - base, sum(s - base for s in single), **CLOSE)
    twice = layer_outputs(patched(eps_model, vision, images[:1].repeat(2, 1, 1, 1))[0])
    assert_close(twice, single[0], **CLOSE)


def test_a_layer_is_additive_in_weight(eps_model, vision):
    at = {w: layer_outputs(patched(eps_model, vision, weight=w)[0]) for w in (0.5, 1.0, -1.0)}
    base = layer_outputs(eps_model)
    assert_close(at[1.0] - base, 2 * (at[0.5] - base), **CLOSE)
    assert_close(at[-1.0] - base, base - at[1.0], **CLOSE)


def test_two_adapters_add_up_in_any_order(eps_model, vision):
    other = random_image(1)
    base = layer_outputs(eps_model)
    first, second = patched(eps_model, vision)[0], patched(eps_model, vision, other, seed=1)[0]
    both = layer_outputs(patched(first, vision, other, seed=1)[0])
    assert_close(both - base, layer_outputs(first) + layer_outputs(second) - 2 * base, **CLOSE)
    assert_close(both, layer_outputs(patched(second, vision)[0]), **CLOSE)


def test_layer_weights_reach_their_layers(vision):
    model = unet("eps", **DEEP)
    blocks = [("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 3)]
    plain = {b: layer_outputs(model, b) for b in blocks}
    node = patched(model, vision, layers="all:0, output0.1:1")[0]
    changed = [b for b in blocks if not torch.equal(layer_outputs(node, b), plain[b])]
    assert changed == [("output", 0), ("output", 3)]  # and what comes after it
    found, wanted = layer_outputs(node, ("output", 0)).chunk(2), plain["output", 0].chunk(2)
    assert torch.equal(found[0], wanted[0]) and not torch.allclose(found[1], wanted[1], atol=1e-3)  # the second transformer alone


def test_a_mask_limits_the_image_to_its_place(eps_model, vision):
    models = patched(eps_model, vision, mask=half_mask())[0], eps_model, patched(eps_model, vision)[0]
    found, base, whole = (layer_outputs(m).unflatten(1, (8, 8)) for m in models)
    assert torch.equal(found[:, :, :3], base[:, :, :3])
    assert_close(found[:, :, 5:], whole[:, :, 5:], **CLOSE)
    assert torch.equal(torch.cat(predictions(patched(eps_model, vision, mask=torch.zeros(1, 8, 8))[0])), torch.cat(predictions(eps_model)))


def test_a_mask_for_each_image(eps_model, vision):
    """Two masks for four images: they come round again, as the host repeats what is too short for a batch."""
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    found = layer_outputs(patched(eps_model, vision, mask=masks)[0], empty=latent(4))
    base, whole = (layer_outputs(m, empty=latent(4)) for m in (eps_model, patched(eps_model, vision)[0]))
    assert torch.equal(found[::2], base[::2])
    assert_close(found[1::2], whole[1::2], **CLOSE)
    with pytest.raises(ValueError, match="mask holds 2 images but 3"):
        predictions(patched(eps_model, vision, mask=masks)[0], empty=latent(3))


def test_a_mask_is_cut_to_the_area_of_a_conditioning(eps_model, vision):
    """Right half masked in: within an area that is the left half nothing of the mask is left."""
    node, seen, _ = patched(eps_model, vision, conditioning=CAT, mask=half_mask(8))
    for left, acts in ((0, False), (4, True)):
        area = {**LEFT, "area": (8, 4, 0, left)}
        found = predictions(node, positive=with_values(seen, area))
        plain = predictions(eps_model, positive=with_values(CAT, area))
        assert torch.equal(found[0], plain[0]) is not acts
        assert torch.equal(found[1], plain[1])


def test_a_layer_that_the_model_lacks_is_refused(eps_model, vision):
    with pytest.raises(ValueError, match="'output9:1', which is no layer of this model"):
        patched(eps_model, vision, layers="output9:1")


def test_it_adds_to_negative_attention_in_any_order(eps_model, vision):
    """The image's part is added to the guided text's."""

    def with_negative(model):
        return NegativeAttention.execute(model, EMPTY, 5.0, 2.5, 0.5, 0.0, 1.0).args[0]

    seen, negative = patched(eps_model, vision)[0], with_negative(eps_model)
    first, second = predictions(with_negative(seen)), predictions(patched(negative, vision)[0])
    assert all(torch.equal(*both) for both in zip(first, second))
    assert not any(torch.allclose(first[0], predictions(model)[0], atol=1e-3) for model in (seen, negative))


def test_it_composes_with_word_weights_in_either_order(eps_model, vision, clip):
    def weighed(model):
        return WordWeights.execute(model, clip, "a red circle", "red: 3", 0.0, 1.0, "all").args[:2]

    seen, (alone, text) = patched(eps_model, vision)[0], weighed(eps_model)
    first, second = predictions(*weighed(seen)), predictions(patched(alone, vision)[0], text)
    assert all(torch.equal(*both) for both in zip(first, second))
    assert not any(torch.allclose(first[0], predictions(model, text)[0], atol=1e-3) for model in (seen, alone))


def halved(q, k, v, options):
    """Somebody's replacement of a cross-attention."""
    return 0.5 * host_attention.optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])


def with_halved(model, *place):
    other = model.clone()
    other.set_model_attn2_replace(halved, *place)
    return other


@pytest.mark.parametrize("place", [("input", 1), ("input", 1, 0)], ids=["by block", "by transformer"])
def test_it_composes_with_another_replacement_in_either_order(eps_model, vision, place):
    before = layer_outputs(with_halved(patched(eps_model, vision)[0], *place))
    after = layer_outputs(patched(with_halved(eps_model, *place), vision)[0])
    assert torch.equal(before, after)
    base, other, image = (layer_outputs(m) for m in (eps_model, with_halved(eps_model, *place), patched(eps_model, vision)[0]))
    assert_close(before, other + image - base, **CLOSE)
    assert not torch.allclose(other, base, atol=1e-3)


def test_it_chains_with_prompt_to_prompt(eps_model, vision, clip):
    """The target's text is edited as without the image, and the image is added as without the edit, in either order."""
    given = ("a blue circle", "a red circle")
    edited, positive, negative, empty, _ = editing.patch(eps_model, clip, *given, self_end=0.0)  # so that queries stay
    before, after = patched(edited, vision)[0], editing.patch(patched(eps_model, vision)[0], clip, *given, self_end=0.0)
    texts = dict(negative=negative, empty=empty["samples"])
    first, other = layer_outputs(before, positive=positive, **texts), layer_outputs(after[0], positive=after[1], **texts)
    assert torch.equal(first, other)
    base, edit, image = (layer_outputs(m, positive=positive, **texts) for m in (eps_model, edited, patched(eps_model, vision)[0]))
    assert_close(first, edit + image - base, **CLOSE)
    assert (edit - base).abs().max() > 1e-2 and (image - base).flatten(1).abs().amax(1).min() > 1e-2


def test_the_base_is_the_replacement_that_comfyui_prefers(eps_model, vision):
    node = patched(with_halved(eps_model, "input", 1), vision)[0]

    def silent(q, k, v, options):
        return torch.zeros_like(q)

    node.set_model_attn2_replace(silent, "input", 1, 0)
    plain = eps_model.clone()
    plain.set_model_attn2_replace(silent, "input", 1, 0)
    image = layer_outputs(patched(eps_model, vision)[0]) - layer_outputs(eps_model)
    assert_close(layer_outputs(node), layer_outputs(plain) + image, **CLOSE)


def test_an_override_sees_only_the_text(eps_model, vision):
    lengths = []

    def override(attention, q, k, v, *args, **kwargs):
        lengths.append((k.shape[1], "block" in kwargs["transformer_options"]))
        return attention(q, k, v, *args, **kwargs)

    def watched(model):
        lengths.clear()
        node = model.clone()
        node.model_options["transformer_options"]["optimized_attention_override"] = override
        predictions(node)
        return list(lengths)

    assert watched(patched(eps_model, vision)[0]) == watched(eps_model)


def test_gradients_pass_through_the_patched_model(eps_model, vision):
    """As in guidance through the denoiser, with keys that came to the device while no gradient was asked for."""
    node, kept = patched(eps_model, vision)[0], []

    def graded(args):
        gradients.to_normal_tensors(args["model"])
        with gradients.differentiable():
            x = args["input"].clone().requires_grad_(True)
            conds = gradients.clone_inference_tensors(args["cond"])
            for c in conds:
                c["model_conds"] = {k: type(v)(gradients.clone_inference_tensors(v.cond)) for k, v in c["model_conds"].items()}
            sigma = gradients.clone_inference_tensors(args["sigma"])
            (out,) = comfy.samplers.calc_cond_batch(args["model"], [conds], x, sigma, args["model_options"])
            kept.append(torch.autograd.grad(out.square().sum(), x)[0])
        return args["denoised"]

    node.set_model_sampler_post_cfg_function(graded)
    run(guided(node), sigmas=torch.tensor([SIGMA, 0.0]))
    assert kept[0].abs().sum() > 0


def test_what_layers_need_again_is_made_once_fit_for_gradients(eps_model, vision):
    """Keys, values and masks are made at the first step of a run, in inference mode."""
    node, *_ = patched(eps_model, vision, mask=half_mask())
    runs = []
    run(guided(with_options_seen(node, lambda options: runs.append(options[next(k for k in options if str(k).startswith(ip_adapter.KEY))]))))
    made = runs[0].cache.known
    kinds = {key[0] for key in made}
    tensors = [t for value in made.values() for t in (value if isinstance(value, list) else [(value,)]) for t in t]
    layers = len(ip_adapter.layers_of(eps_model))
    assert kinds == {"terms", "rows", "mask"} and len([key for key in made if key[0] == "terms"]) == layers < len(runs) * layers
    assert not any(t.is_inference() for t in tensors if t is not None)


def channels(vision, model, weight: float = 1.0):
    """The patched model, and a channel of the image beside an empty text."""
    node, seen, blank = patched(model, vision, conditioning=EMPTY)
    return node, Channel(seen, weight, null=blank, name="image")


def test_a_channel_of_weight_zero_changes_nothing(any_model, vision):
    node, image = channels(vision, any_model, 0.0)
    text = Channel(CAT, 4.0)
    assert torch.equal(run(MultiCFG(node, EMPTY, [text, image])), run(MultiCFG(any_model, EMPTY, [text])))
    assert torch.equal(ksampler(MultiCFGWrapper([image]).install(node), CAT, EMPTY, 4.0), ksampler(any_model, CAT, EMPTY, 4.0))


def test_a_channel_is_proportional_to_its_weight(eps_model, vision):
    node, image = channels(vision, eps_model)
    sigmas = torch.tensor([0.8, 0.0])
    at = {w: run(MultiCFG(node, EMPTY, [Channel(CAT, 4.0), replace(image, weight=w)]), sigmas=sigmas) for w in (0.0, 1.0, 2.5)}
    assert_close(at[2.5] - at[0.0], 2.5 * (at[1.0] - at[0.0]), atol=1e-3, rtol=1e-3)
    difference = [run(guided(node, c, EMPTY, 1.0), sigmas=sigmas) for c in (image.conditioning, image.null)]
    assert_close(at[1.0] - at[0.0], difference[0] - difference[1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(at[1.0], at[0.0], atol=1e-2)


def test_a_channel_is_the_patch_and_what_a_ksampler_gives(eps_model, vision):
    """Alone it is IP-Adapter Patch for the whole run; beside a text the patch of channels gives KSampler the same."""
    node, image = channels(vision, eps_model, 4.0)
    guider = MultiCFG(node, image.null, [Channel(image.conditioning, 4.0)])
    assert_close(run(guider), ksampler(patched(eps_model, vision)[0], EMPTY, EMPTY, 4.0), atol=1e-3, rtol=1e-3)
    image = replace(image, weight=2.0)
    both = run(MultiCFG(node, EMPTY, [Channel(CAT, 4.0), image]))
    assert_close(ksampler(MultiCFGWrapper([image]).install(node), CAT, EMPTY, 4.0), both, atol=1e-3, rtol=1e-3)


def test_it_costs_two_evaluations_more_and_none_at_weight_zero(eps_model, vision):
    counted = Count(eps_model)
    for weight, rows in ((1.0, 4), (0.0, 2)):
        counted.rows = 0
        node, image = channels(vision, counted.model, weight)
        run(MultiCFG(node, EMPTY, [Channel(CAT, 4.0), image]), sigmas=torch.tensor([SIGMA, 0.0]))
        assert counted.rows == rows


def test_two_images_can_be_two_channels(eps_model, vision):
    first, seen, blank = patched(eps_model, vision, conditioning=EMPTY)
    both, seen_2, blank_2 = patched(first, vision, random_image(1), seed=1, conditioning=EMPTY)
    sigmas = torch.tensor([SIGMA, 0.0])
    one, two = Channel(seen, 1.0, null=blank), Channel(seen_2, 1.0, null=blank_2)
    further = (), (one,), (two,), (one, two)
    base, a, b, together = (run(MultiCFG(both, EMPTY, [Channel(CAT, 4.0), *extra]), sigmas=sigmas) for extra in further)
    assert_close(together - base, (a - base) + (b - base), **CLOSE)
    alone_first = run(MultiCFG(first, EMPTY, [Channel(CAT, 4.0), one]), sigmas=sigmas)
    assert_close(a, alone_first, **CLOSE)  # the second adapter keeps away from the first one's conditioning


def test_one_conditioning_may_see_two_images(eps_model, vision):
    first, seen, _ = patched(eps_model, vision, conditioning=CAT)
    both, seen, _ = patched(first, vision, random_image(1), seed=1, conditioning=seen)
    everywhere = patched(patched(eps_model, vision)[0], vision, random_image(1), seed=1)[0]
    assert_close(predictions(both, positive=seen)[0], predictions(everywhere)[0], **CLOSE)
    assert all(isinstance(out, ExecutionBlocker) for out in patched(eps_model, vision)[1:]), "without one there is none to hand on"


VIDEO = dict(use_temporal_attention=True, use_temporal_resblock=True, video_kernel_size=[3, 1, 1], merge_factor=0.0, merge_strategy="fixed")


NONE = ".* has no cross-attention of the UNet kind"


@pytest.mark.parametrize("model, message", [("flux", f"Flux {NONE}"), ("qwen", f"QwenImage {NONE}"), ("video", "BaseModel is a video model")])
def test_other_networks_are_refused(eps_model, vision, model, message):
    made = unet("eps", **VIDEO) if model == "video" else tiny_editors.editor(model)
    with pytest.raises(ValueError, match=message):
        execute(made, adapter_for(eps_model), vision, image=random_image())


@pytest.mark.parametrize(
    "shape, image, message",
    [
        (None, None, "There is no image"),
        (None, random_image()[:0], "There is no image"),
        ((1024, CONTEXT, None), random_image(), f"takes 1024 features from CLIP Vision, but got {FEATURES}"),
        ((FEATURES, 2048, [640, 1280]), random_image(), r"mine was made for 2 cross-attention layers .* BaseModel has 7"),
    ],
)
def test_images_and_adapters_that_do_not_fit_are_refused(eps_model, vision, shape, image, message):
    adapter = recognize(published("base", *shape[:2], shape[2] or widths_of(eps_model)), "mine") if shape else adapter_for(eps_model)
    with pytest.raises(ValueError, match=message):
        execute(eps_model, adapter, vision, image=image)


def test_an_encoded_image_is_taken_as_it_is(eps_model, vision):
    encoded = nodes.CLIPVisionEncode().encode(vision, random_image(), "center")[0]
    node = execute(eps_model, adapter_for(eps_model), encoded).args[0]
    assert torch.equal(torch.cat(predictions(node)), torch.cat(predictions(patched(eps_model, vision)[0])))
    with pytest.raises(ValueError, match="image is connected too"):
        execute(eps_model, adapter_for(eps_model), encoded, image=random_image())
    with pytest.raises(ValueError, match="'plus' adapter"):
        execute(eps_model, adapter_for(eps_model, "plus"), encoded)


def test_the_crop_is_the_encoders(eps_model, vision):
    wide = torch.cat([random_image(0), random_image(1)], 2)
    prompts = [ip_adapter.prompt_of(adapter_for(eps_model), vision, wide, crop=crop) for crop in (True, False)]
    middle = ip_adapter.prompt_of(adapter_for(eps_model), vision, wide[:, :, 24:72])
    assert_close(prompts[0].images[0], middle.images[0], atol=5e-2, rtol=5e-2)  # the host resizes first, then cuts
    assert not torch.allclose(prompts[0].images[0][0], prompts[1].images[0][0], atol=0.1)


def test_the_loader_lists_only_safetensors(tmp_path):
    """Of ComfyUI's own folder too."""
    folder_paths.add_model_folder_path("ipadapter", str(tmp_path))
    names = "image_proj.proj.0.weight", "image_proj.norm.weight", "ip_adapter.0.a"
    save_file({name: torch.ones(1) for name in names}, tmp_path / "faceid.safetensors")
    (tmp_path / "old.bin").write_bytes(b"pickle")
    assert "faceid.safetensors" in ip_adapter.ADAPTERS.names() and "old.bin" not in ip_adapter.ADAPTERS.names()
    assert str(Path(folder_paths.models_dir) / "ipadapter") in folder_paths.get_folder_paths("ipadapter")
    with pytest.raises(ValueError, match=r"faceid\.safetensors is a FaceID adapter"):
        IPAdapterLoader.execute("faceid.safetensors")
    with pytest.raises(ValueError, match=r"no adapter 'old\.bin'.*Only \.safetensors"):
        IPAdapterLoader.execute("old.bin")
