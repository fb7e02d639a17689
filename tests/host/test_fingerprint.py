"""Which model an inversion belongs to: told by its weights, in any precision, under any LoRA."""

import json
from dataclasses import replace

import comfy.hooks
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import comfy.sd
import pytest
import torch
from controlled_diffusion.nodes.host.fingerprint import Weights
from controlled_diffusion.nodes.host.model_tag import ModelTag

from host import tiny

pytestmark = pytest.mark.usefixtures("inference_mode")
SIGMAS = (14.0, 1.0, 0.0)
KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"


def in_precision(dtype):
    model = tiny.unet("eps")
    for p in model.model.diffusion_model.parameters():
        p.data = p.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_same_weights_in_another_precision_are_the_same(dtype):
    assert Weights.of(in_precision(dtype)).same(Weights.of(tiny.unet("eps")))


def quantized(kind: str):
    """The model with a layer as the host holds it of a quantized file."""
    model = tiny.unet("eps")
    block = model.get_model_object("diffusion_model").middle_block[1].transformer_blocks[0].attn2
    weight = block.to_v.weight.float()
    scale = weight.abs().max() / 448
    layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(weight.shape[1], weight.shape[0], bias=False, device="cpu")
    stored = {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}
    if kind == "nvfp4":
        packed = comfy.quant_ops.QuantizedTensor.from_float(weight, "TensorCoreNVFP4Layout")
        stored = packed.state_dict("weight")
    form = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    layer.load_state_dict(stored | {"comfy_quant": form}, strict=False)
    block.to_v = layer
    return model


@pytest.mark.skipif(not hasattr(comfy.ops, "mixed_precision_ops"), reason="this ComfyUI loads no quantized layers")
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4"])
def test_the_same_weights_from_a_quantised_file_are_the_same(kind):
    model = quantized(kind)
    assert f"{KEY}_scale" in model.model_state_dict(), "the layer is not quantized: nothing is tested"
    assert Weights.of(model).same(Weights.of(tiny.unet("eps")))
    assert not Weights.of(model).same(Weights.of(tiny.unet("eps", seed=3)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_does_not_matter(layout):
    model = tiny.unet("eps")
    model.model.diffusion_model.to(memory_format=layout)
    assert Weights.of(model) == Weights.of(tiny.unet("eps"))


def test_weights_that_differ_by_half_a_percent_are_other_weights():
    own, model = Weights.of(tiny.unet("eps")), tiny.unet("eps")
    assert not own.same(Weights.of(tiny.unet("eps", seed=3)))
    for p in model.model.diffusion_model.parameters():
        p.data = p.data + 0.005 * p.data.std(unbiased=False) * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    assert not own.same(Weights.of(model))


def test_other_shapes_are_told_apart_by_themselves():
    own, wide = Weights.of(tiny.unet("eps")), Weights.of(tiny.unet("eps", model_channels=64))
    assert own.layout != wide.layout and not replace(own, layout=wide.layout).same(own)


def test_a_hook_that_is_applied_changes_nothing():
    model = tiny.unet("eps")
    before, weight = Weights.of(model), model.model.state_dict()[KEY].clone()
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    hooked = model.clone()
    hooked.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    hooked.patch_hooks(hooks)
    assert not torch.equal(model.model.state_dict()[KEY], weight), "the hook is not applied: nothing is tested"
    assert Weights.of(hooked) == before == Weights.of(model)


def test_a_lora_that_is_baked_in_changes_nothing_and_is_counted():
    model = tiny.unet("eps")
    before, weight = Weights.of(model), model.model.state_dict()[KEY].clone()
    patched = comfy.sd.load_lora_for_models(model, None, tiny.lora(model), 1.0, 0)[0]
    comfy.model_management.load_models_gpu([patched], force_patch_weights=True)
    assert not torch.equal(model.model.state_dict()[KEY], weight), "the LoRA is not baked in: nothing is tested"
    assert Weights.of(patched) == before == Weights.of(model)
    assert ModelTag.of(patched, SIGMAS).patched == 1 and ModelTag.of(model, SIGMAS).patched == 0
    ModelTag.of(patched, SIGMAS).check(model)
    patched.detach()
    assert Weights.of(model) == before


def test_the_weights_are_only_looked_at():
    model = tiny.unet("eps")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    Weights.of(model)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


def test_another_model_of_the_same_kind_is_refused():
    with pytest.raises(ValueError, match=r"another BaseModel \(SD15, eps\): the weights of this model are not the same\. Connect"):
        ModelTag.of(tiny.unet("eps"), SIGMAS).check(tiny.unet("eps", seed=3))


def test_weights_and_prediction_tell_models_not_names_of_classes():
    """Which may change with ComfyUI's version."""
    model, tag = tiny.unet("eps"), ModelTag.of(tiny.unet("eps"), SIGMAS)
    replace(tag, family="SD15", latent_format="Another").check(model)
    with pytest.raises(ValueError, match=r"made with BaseModel \(SD15, eps\), but the model is BaseModel \(SD15, v\)"):
        tag.check(tiny.unet("v"))
