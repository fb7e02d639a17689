"""IP-Adapter: layouts, projections and the decoupled attention, beside the `diffusers` package where it is installed."""

import importlib.util
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from controlled_diffusion.attention import ip_adapter
from controlled_diffusion.attention.ip_adapter import decoupled, image_prompt, layer_weights, mask_tokens, recognize
from controlled_diffusion.attention.layers import Place
from torch.testing import assert_close

from adapters import SD15, SDXL, parted, published
from checks import draw, refused
from harness import standins

CLOSE = dict(atol=1e-5, rtol=1e-5)
SMALL = dict(text=64, widths=[32, 64, 64])


@pytest.fixture(scope="module")
def unet_class():
    """The UNet of the `diffusers` package, which brings its IP-Adapter with it."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("the package 'diffusers' is not installed; it is the reference of these tests")
    standins.install()
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def adapter(kind: str = "base", features: int = 48, seed: int = 0, **shape):
    return recognize(published(kind, features, **{**SMALL, **shape}, seed=seed), "test.safetensors")


def features_of(kind: str, count: int, width: int, patches: int = 17) -> torch.Tensor:
    return draw(count, width) if kind == "base" else draw(count, patches, width)


@pytest.mark.parametrize(("kind", "tokens"), [("base", 4), ("plus", 16), ("full", 17)])
def test_a_layout_is_recognized_by_names_and_shapes(kind, tokens):
    found = adapter(kind)
    assert (found.kind, found.features, found.width, len(found.layers)) == (kind, 48, 64, 3)
    assert found.tokens(features_of(kind, 2, 48)).shape == (2, tokens, 64)


def test_layers_are_ordered_by_number():
    found = adapter(widths=[32, 48, 64, 80, 96, 112])  # numbers 1, 3, ..., 11: as text, 11 comes before 3
    assert [(k.shape[0], v.shape[0]) for k, v in found.layers] == [(n, n) for n in (32, 48, 64, 80, 96, 112)]


def test_an_adapter_is_used_in_the_precision_of_the_features():
    weights = {k: v.half() for k, v in published("plus", 48, **SMALL).items()}
    assert recognize(weights, "half").keys_values(features_of("plus", 1, 48))[0][0].dtype == torch.float32


PATHS = [f"{block}.attentions.{i}.transformer_blocks.0.attn2.processor" for block, i in (
    *(("down_blocks.1", i) for i in range(11)), ("up_blocks.0", 0), ("mid_block", 0),
)]  # fmt: skip
SCRIPT = {"image_proj": "image_proj_model", "ip_adapter": "adapter_modules"}


def in_training(weights, layers: bool = True, unet: bool = True):
    """A file of the reference training script, with the layers by themselves, inside the UNet, or both."""
    parts = {p: {k.removeprefix(f"{p}."): v for k, v in weights.items() if k.startswith(p)} for p in SCRIPT}
    made = {f"image_proj_model.{k}": v for k, v in parts["image_proj"].items()} | {"unet.conv_in.weight": torch.ones(1)}
    for number, path in enumerate(PATHS):
        for part in ("to_k_ip.weight", "to_v_ip.weight"):
            value = parts["ip_adapter"][f"{2 * number + 1}.{part}"]
            made |= ({f"adapter_modules.{2 * number + 1}.{part}": value} if layers else {}) | ({f"unet.{path}.{part}": value} if unet else {})
    return {k: made[k] for k in sorted(made)}  # as safetensors orders them


@pytest.mark.parametrize("form", [{}, dict(unet=False), dict(layers=False)])
@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_files_of_the_training_script_are_read(kind, form):
    weights = published(kind, 48, 64, [8 * (i + 1) for i in range(len(PATHS))])
    found, wanted = (recognize(w, "mine") for w in (in_training(weights, **form), weights))
    assert found.kind == wanted.kind and found.projection.keys() == wanted.projection.keys()
    assert all(torch.equal(a, b) for one, other in zip(found.layers, wanted.layers) for a, b in zip(one, other))


@pytest.mark.parametrize("change, message", [
    (lambda w: {k: v for k, v in w.items() if not k.startswith("image_proj")}, "0 weights in 'image_proj'"),
    (lambda w: {"double_blocks.0.k.weight": torch.ones(1)}, "beside double_blocks"),
    (lambda w: w | {"image_proj.pos_emb.weight": torch.ones(1)}, "unknown layout"),
    (lambda w: w | {"ip_adapter.1.to_q_lora.down.weight": torch.ones(1)}, "FaceID adapter: it comes with a LoRA"),
    (lambda w: w | {"image_proj.perceiver_resampler.proj_in.weight": torch.ones(1)}, "face recognition"),
    (lambda w: w | {"ip_adapter.1.gate": torch.ones(1)}, "unknown kind in its layers"),
    (lambda w: {k: v for k, v in w.items() if k != "ip_adapter.3.to_v_ip.weight"}, "the file is damaged"),
    (lambda w: w | {"ip_adapter.3.to_v_ip.weight": torch.ones(8, 64)}, "the file is damaged"),
    (lambda w: w | {"image_proj.norm.weight": torch.ones(32)}, "is damaged: the shapes .* makes no tokens of width 64"),
])  # fmt: skip
def test_unsupported_files_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        recognize(change(published("base", 48, **SMALL)), "mine.safetensors")
    assert "mine.safetensors" in str(refused.value)


def test_a_faceid_projection_is_named():
    weights = {k.replace("proj.3", "norm"): v for k, v in published("full", 512, **SMALL).items()}
    refused("FaceID", recognize, weights, "faceid.safetensors")


def test_features_and_models_of_another_kind_are_refused():
    refused("takes 48 features from CLIP Vision, but got 32", adapter().tokens, draw(1, 32))
    refused("takes 48 features", adapter("plus").tokens, draw(1, 48))
    refused(r"3 cross-attention layers of widths 1 x 32, 2 x 64 .* SDXL has 1 of 1 x 32", adapter().check_fits, "SDXL", [32], 64)
    refused("text of width 64, but SD2 has", adapter().check_fits, "SD2", [32, 64, 64], 128)
    adapter().check_fits("SD15", [32, 64, 64], 64)


PROJECTED = {
    "SD1.5": ("base", 1024, SD15, {}),
    "SD1.5 ViT-bigG": ("base", 1280, SD15, {}),
    "SD1.5 plus": ("plus", 1280, SD15, dict(width=768)),
    "SD1.5 full-face": ("full", 1280, SD15, {}),
    "SDXL": ("base", 1280, SDXL, {}),
    "SDXL ViT-H": ("base", 1024, SDXL, {}),
    "SDXL plus ViT-H": ("plus", 1280, SDXL, dict(width=1280)),
}


@pytest.mark.parametrize("name", PROJECTED)
def test_projections_equal_diffusers(unet_class, name):
    kind, features, family, shape = PROJECTED[name]
    weights = published(kind, features, family["text"], family["widths"][:1], **shape)
    host = unet_class(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=8)
    theirs = host._convert_ip_adapter_image_proj_to_diffusers(parted(weights)["image_proj"], low_cpu_mem_usage=False)
    seen = features_of(kind, 2, features, 257)
    with torch.no_grad():
        wanted = theirs(seen)
    found = recognize(weights, name).tokens(seen)
    assert_close(found, wanted.reshape(found.shape), **CLOSE)


def reference(text: int, width: int, heads: int, scale: float):
    """The attention of diffusers with an adapter in it, and that adapter."""
    from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

    weights = published("base", 48, text, [width])
    theirs = Attention(query_dim=width, cross_attention_dim=text, heads=heads, dim_head=width // heads)
    theirs.set_processor(IPAdapterAttnProcessor2_0(width, text, num_tokens=[4], scale=scale))
    theirs.processor.load_state_dict({f"to_{part}_ip.0.weight": weights[f"ip_adapter.1.to_{part}_ip.weight"] for part in "kv"})
    return theirs, recognize(weights, "layer"), partial(ip_adapter.multi_head, heads=heads)


@pytest.mark.parametrize("width, heads, text", [(320, 8, 768), (640, 8, 768), (1280, 8, 768), (640, 10, 2048), (1280, 20, 2048)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.6])
def test_attention_equals_diffusers(unet_class, width, heads, text, weight):
    theirs, ours, attention = reference(text, width, heads, weight)
    hidden, words, images = draw(2, 64, width), draw(2, 77, text, seed=1), draw(2, 48, seed=2)
    with torch.no_grad():
        wanted = theirs(hidden, encoder_hidden_states=(words, [ours.tokens(images)[:, None]]))
        q, k, v = theirs.to_q(hidden), theirs.to_k(words), theirs.to_v(words)
        found = theirs.to_out[0](decoupled(attention(q, k, v), q, [ours.keys_values(images)[0]], weight, attention))
    assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_several_images_equal_diffusers(unet_class, masked):
    """Without masks diffusers puts all images into one attention (`concat`), with masks it adds one for each (`add`)."""
    theirs, ours, attention = reference(64, 64, 4, 0.7)
    hidden, words, images = draw(1, 64, 64), draw(1, 77, 64, seed=1), draw(3, 48, seed=2)
    prompt = image_prompt(ours, images, torch.zeros(1, 48), "add" if masked else "concat")
    extra = dict(ip_adapter_masks=[torch.ones(1, 3, 8, 8)]) if masked else {}
    with torch.no_grad():
        wanted = theirs(hidden, encoder_hidden_states=(words, [ours.tokens(images)[None]]), **extra)
        q, text = theirs.to_q(hidden), attention(theirs.to_q(hidden), theirs.to_k(words), theirs.to_v(words))
        found = theirs.to_out[0](decoupled(text, q, prompt.terms(prompt.images[0], prompt.nothing[0], [True], 1), 0.7, attention))
    assert_close(found, wanted, **CLOSE)


HEADS = 4


def layer(prompt: ip_adapter.ImagePrompt, weight: float = 1.0, shown=(True,), size: int = 1, **where) -> torch.Tensor:
    """The first layer's attention of width 32 for a batch with these parts."""
    count = len(shown) * size
    q, text = draw(count, 36, 32, seed=5), draw(count, 36, 32, seed=6)
    terms = prompt.terms(prompt.images[0], prompt.nothing[0], list(shown), size)
    return decoupled(text, q, terms, weight, partial(ip_adapter.multi_head, heads=HEADS), **where)


def prompt(count: int = 1, combine: str = "concat", seed: int = 0) -> ip_adapter.ImagePrompt:
    return image_prompt(adapter(seed=seed), draw(count, 48, seed=seed + 3), torch.zeros(1, 48), combine)


def test_it_is_the_text_plus_an_attention_with_its_own_softmax():
    one = prompt()
    q, text, (k, v) = draw(1, 36, 32, seed=5), draw(1, 36, 32, seed=6), one.images[0]
    heads = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    shares = ((heads[0] @ heads[1].transpose(-1, -2)) / 8**0.5).softmax(-1)
    assert_close(shares.sum(-1), torch.ones(1, HEADS, 36))
    assert_close(layer(one, 0.3), text + 0.3 * (shares @ heads[2]).transpose(1, 2).flatten(2))


def test_it_is_additive_in_weight():
    base, half, whole = (layer(prompt(), w) for w in (0.0, 0.5, 1.0))
    assert_close(whole - base, 2 * (half - base))
    assert not torch.allclose(whole, base, atol=0.1)


def test_the_same_image_twice_in_one_attention_is_that_image():
    twice, alone = (image_prompt(adapter(), draw(1, 48).repeat(n, 1), torch.zeros(1, 48), "concat") for n in (2, 1))
    for shown in ((True,), (False,)):
        assert_close(layer(twice, shown=shown), layer(alone, shown=shown))


def test_added_images_are_the_sum_of_the_single_ones():
    own, images, none = adapter(), draw(3, 48), torch.zeros(1, 48)
    text = draw(1, 36, 32, seed=6)
    single = [layer(image_prompt(own, p[None], none)) - text for p in images]
    assert_close(layer(image_prompt(own, images, none, "add")), text + sum(single))
    empty = layer(image_prompt(own, images[:1], none), shown=(False,)) - text
    assert_close(layer(image_prompt(own, images, none, "add"), shown=(False,)), text + 3 * empty)


def test_the_average_is_one_image_of_mean_features():
    own, images = adapter(), draw(3, 48)
    mean = image_prompt(own, images.mean(0, keepdim=True), torch.zeros(1, 48))
    assert_close(layer(image_prompt(own, images, torch.zeros(1, 48), "average")), layer(mean))


def test_combine_batch_gives_image_i_to_image_i():
    own, images, none = adapter(), draw(2, 48), torch.zeros(1, 48)
    found = layer(image_prompt(own, images, none, "batch"), shown=(False, True), size=2)
    for row, (features, shown) in enumerate([(images[:1], False), (images[:1], False), (images[:1], True), (images[1:], True)]):
        q, text = (draw(4, 36, 32, seed=s)[row : row + 1] for s in (5, 6))
        alone = image_prompt(own, features, none)
        wanted = decoupled(
            text, q, alone.terms(alone.images[0], alone.nothing[0], [shown], 1), 1.0, partial(ip_adapter.multi_head, heads=HEADS)
        )
        assert_close(found[row : row + 1], wanted)


def test_fewer_images_repeat_over_a_larger_batch_that_they_fit():
    two = prompt(2, "batch")
    terms = two.terms(two.images[0], two.nothing[0], [True], 4)[0]
    assert terms[0].shape[0] == 4
    assert_close(terms[0][2:], two.images[0][0])
    refused("2 images for a batch of 3 images", two.terms, two.images[0], two.nothing[0], [True], 3)
    refused("combine is 'mix'; choose one of concat, add, average, batch", prompt, combine="mix")


def test_the_empty_image_is_not_nothing():
    text = draw(1, 36, 32, seed=6)
    assert not torch.allclose(layer(prompt(), shown=(False,)), text, atol=0.01)
    assert not torch.allclose(layer(prompt(), shown=(False,)), layer(prompt()), atol=0.01)


def test_other_rows_are_unchanged():
    one = prompt()
    q, text = draw(3, 36, 32, seed=5), draw(3, 36, 32, seed=6)
    terms = one.terms(one.images[0], one.nothing[0], [True], 1)
    found = decoupled(text, q, terms, 1.0, partial(ip_adapter.multi_head, heads=HEADS), rows=torch.tensor([1]))
    assert torch.equal(found[[0, 2]], text[[0, 2]])
    assert_close(found[1:2], decoupled(text[1:2], q[1:2], terms, 1.0, partial(ip_adapter.multi_head, heads=HEADS)))


def test_a_mask_scales_the_image_token_by_token():
    mask, fine, text = torch.zeros(1, 12, 12), torch.zeros(1, 64, 64), draw(1, 36, 32, seed=6)
    mask[:, :, 6:], fine[:, ::2] = 1.0, 1.0
    tokens = mask_tokens(mask, 6, 6)
    found, whole = layer(prompt(), mask=tokens), layer(prompt())
    left, right = tokens[0, :, 0] == 0, tokens[0, :, 0] == 1
    assert left.sum() == right.sum() == 12 and torch.equal(found[:, left], text[:, left])
    assert_close(found[:, right], whole[:, right])
    assert_close(found, text + tokens * (whole - text))
    assert_close(mask_tokens(fine, 8, 8), torch.full((1, 64, 1), 0.5), atol=0.05, rtol=0)  # a fine pattern becomes its share of each token


LAYERS = [Place(*p) for p in (("input", 1, 0, 1), ("input", 4, 0, 2), ("input", 4, 1, 2))]
LAYERS += [Place(*p) for p in (("output", 3, 0, 2), ("output", 5, 0, 1), ("middle", 0, 0, 4))]


@pytest.mark.parametrize("text, wanted", [
    ("", [1, 1, 1, 1, 1, 1]), ("all:0, output:0.5", [0, 0, 0, 0.5, 0.5, 0]), ("input4.1:-2\noutput3-5: .25", [1, 1, -2, 0.25, 0.25, 1]),
    ("middle:0, middle0:0.3, ", [1, 1, 1, 1, 1, 0.3]), ("input4:0, input:0.5", [0.5, 0.5, 0.5, 1, 1, 1]),
    ("output4-9:0", [1, 1, 1, 1, 0, 1]), ("1/2:0.5, 1/4:0", [1, 0.5, 0.5, 0.5, 1, 0]),
])  # fmt: skip
def test_layer_weights_are_read(text, wanted):
    assert layer_weights(text, LAYERS) == wanted


@pytest.mark.parametrize("text", ["output", "output:", "all:high", "input4.1=2"])
def test_unreadable_layer_weights_are_errors(text):
    refused("is no NAME:WEIGHT", layer_weights, f"all:1, {text}", LAYERS)


@pytest.mark.parametrize("name", ["output7", "down", "output-3", "1/8"])
def test_missing_layers_are_errors_with_those_there_are(name):
    there = r"input1 \(1/1\), input4 \(1/2\), output3 \(1/2\), output5 \(1/1\), middle0 \(1/4\)"
    refused(rf"'{name}:1', which is no layer of this model.*{there}; 1/2 is all layers", layer_weights, f"{name}:1", LAYERS)


def test_gradients_reach_the_adapters_own_weights():
    weights = {k: v.requires_grad_(True) for k, v in published("base", 48, **SMALL).items()}
    one = image_prompt(recognize(weights, "in training"), draw(1, 48), torch.zeros(1, 48))
    F.mse_loss(layer(one), torch.zeros(1, 36, 32)).backward()
    own = "image_proj.proj", "ip_adapter.1.to_k_ip", "ip_adapter.1.to_v_ip"
    assert all(weights[f"{k}.weight"].grad.abs().sum() > 0 for k in own)
