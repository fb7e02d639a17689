"""Tiny random CLIPs with several text encoders, made of ComfyUI's own classes and tokenizers, and the denoisers that take them."""

import comfy.model_base
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from host import tiny, tiny_editors


def _clip_config(width: int) -> dict:
    return dict(hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, num_hidden_layers=3, projection_dim=width)


T5 = dict(d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=2)
SMALL = {"clip_l_model_config": _clip_config(16), "clip_g_model_config": _clip_config(24), "t5xxl_model_config": T5}
KINDS = {  # tokenizer, text model, widths by key of embedding files
    "sd2": (comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel, {"clip_h": 24}),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, {"clip_l": 16, "clip_g": 24}),
    "sd3": (comfy.text_encoders.sd3_clip.SD3Tokenizer, comfy.text_encoders.sd3_clip.sd3_clip(t5=False), {"clip_l": 16, "clip_g": 24}),
    "flux": (comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.flux.flux_clip(torch.float32), {"clip_l": 16, "t5xxl": 32}),
}
SD3 = dict(
    input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=1, adm_in_channels=40,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64}}, num_patches=256,
    pos_embed_max_size=16, pos_embed_scaling_factor=None, qk_norm="rms",
)  # fmt: skip


class TinySDXL(comfy.supported_models.SDXL):
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


def clip(kind: str, embedding_directory=None, seed: int = 1, dtype: torch.dtype = torch.float32):
    """A CLIP of "sd2", "sdxl", "sd3" (without T5) or "flux"."""
    tokenizer, model, _ = KINDS[kind]
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    small = {**SMALL, "clip_h_model_config": _clip_config(24)}
    made = comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options={"dtype": dtype, **small})
    tiny.fill(made.cond_stage_model, seed)
    return made


def denoiser(kind: str, seed: int = 0):
    """A MODEL that takes what `clip(kind)` encodes: "sdxl", "sd3" or "flux"."""
    if kind == "sd3":
        made = tiny_editors.of_config(comfy.supported_models.SD3, SD3, comfy.model_base.SD3, seed)
        made.model.diffusion_model.pos_embed.zero_()  # made without a value
        return made
    if kind == "flux":
        return tiny_editors.of_config(comfy.supported_models.Flux, tiny_editors.FLUX | tiny_editors.FLUX1, comfy.model_base.Flux, seed)
    config = {**tiny.UNET_CONFIG, "context_dim": 40, "adm_in_channels": 24 + 6 * 256, "num_classes": "sequential"}
    settings = TinySDXL(config)
    settings.set_inference_dtype(torch.float32, None)
    return tiny_editors.as_model(tiny.fill(comfy.model_base.SDXL(settings, device="cpu"), seed))


def vae(kind: str, seed: int = 2):
    """A VAE of as many channels as `denoiser(kind)` takes."""
    channels = 4 if kind == "sdxl" else 16
    config = {"ddconfig": {**tiny.VAE_CONFIG, "z_channels": channels}, "embed_dim": channels}
    weights = tiny.fill(AutoencoderKL(**config), seed).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": config}, dtype=torch.float32)
