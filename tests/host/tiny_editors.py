"""Tiny random instruction models made of ComfyUI's own classes, and what they take: conditionings and latents."""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from host import tiny

CONTEXT = 32
FLUX = dict(context_in_dim=CONTEXT, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, guidance_embed=True)
FLUX1 = dict(image_model="flux", in_channels=16, out_channels=16, vec_in_dim=16, axes_dim=[4, 6, 6], theta=10000, patch_size=2,
             qkv_bias=True, txt_ids_dims=[])  # fmt: skip
FLUX2 = dict(image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[4, 4, 4, 4], theta=2000, patch_size=1,
             qkv_bias=False, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
             ref_index_scale=10.0)  # fmt: skip
QWEN = dict(image_model="qwen_image", patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=CONTEXT, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6))  # fmt: skip
OMNIGEN2 = dict(image_model="omnigen2", patch_size=2, in_channels=16, hidden_size=48, num_layers=1, num_refiner_layers=1,
                num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 8, 8), axes_lens=(64, 64, 64),
                text_feat_dim=CONTEXT)  # fmt: skip
CHROMA = dict(image_model="chroma", in_channels=16, out_channels=16, context_in_dim=CONTEXT, hidden_size=32, mlp_ratio=2.0, num_heads=2,
              depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True, in_dim=64, out_dim=32,
              hidden_dim=32, n_layers=2, txt_ids_dims=[], vec_in_dim=None)  # fmt: skip
EDITORS = {  # name: config, class of the model, shape of its latents
    "flux": (comfy.supported_models.Flux, FLUX | FLUX1, comfy.model_base.Flux, (16, 8, 8)),
    "flux2": (comfy.supported_models.Flux2, FLUX | FLUX2, comfy.model_base.Flux2, (128, 4, 4)),
    "qwen": (comfy.supported_models.QwenImage, QWEN, comfy.model_base.QwenImage, (16, 1, 8, 8)),
    "omnigen2": (comfy.supported_models.Omnigen2, OMNIGEN2, comfy.model_base.Omnigen2, (16, 8, 8)),
}


def instruct_pix2pix(family: str = "eps", seed: int = 0, output_scale: float = 0.05):
    """A UNet with 8 input channels as the host detects InstructPix2Pix, of the family 'eps', 'v' or 'flow'."""
    settings = tiny.TinySD1({**tiny.UNET_CONFIG, "in_channels": 8})
    settings.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SD15_instructpix2pix(settings, model_type=tiny.FAMILIES[family], device="cpu")
    tiny.fill(model, seed)
    model.diffusion_model.out[-1].weight.data *= output_scale
    return as_model(model)


def editor(name: str, seed: int = 0):
    """A MODEL of a family that takes reference latents; see EDITORS."""
    config, given, made, _ = EDITORS[name]
    return of_config(config, given, made, seed)


def chroma():
    """A MODEL whose class knows reference latents and whose network does not."""
    return of_config(comfy.supported_models.Chroma, CHROMA, comfy.model_base.Chroma)


def of_config(config, given: dict, made, seed: int = 0):
    settings = config(dict(given))
    settings.set_inference_dtype(torch.float32, None)
    return as_model(fill(made(settings, device="cpu"), seed))


def fill(model, seed: int):
    """Every parameter set: strong enough that the image shows in the result, and no bias or gate at zero."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.diffusion_model.parameters():
        spread, middle = (0.15, 0.0) if parameter.ndim > 1 else (0.1, 0.1)
        parameter.data = (torch.randn(parameter.shape, generator=draw) * spread + middle).to(parameter.dtype)
    return model


def as_model(model):
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, *devices)


def image_for(name: str, seed: int = 5, batch: int = 1) -> dict:
    """A random LATENT of the editor's shape."""
    return {"samples": torch.randn(batch, *EDITORS[name][3], generator=torch.Generator().manual_seed(seed))}


def instruction(seed: int, tokens: int = 7):
    """A random CONDITIONING that fits every editor."""
    draw = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, tokens, CONTEXT, generator=draw), torch.randn(1, 16, generator=draw)
    return [
        [text, {"pooled_output": pooled, "attention_mask": torch.ones(1, tokens, dtype=torch.long)}]
    ]  # OmniGen2 counts tokens by the mask
