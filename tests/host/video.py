"""A tiny random video MODEL and its VAE, whose latents are 5-D: (batch, channels, frames, height, width)."""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.wan.vae import WanVAE

from host.tiny import fill

CONTEXT = 32
WAN_CONFIG = dict(
    image_model="wan2.1",
    model_type="t2v",
    in_dim=16,
    out_dim=16,
    dim=48,
    ffn_dim=64,
    freq_dim=32,
    text_dim=CONTEXT,
    num_heads=2,
    num_layers=1,
)


def tiny_video_model(seed: int = 0):
    """Wan 2.1 with one block of width 48."""
    settings = comfy.supported_models.WAN21_T2V(dict(WAN_CONFIG))
    settings.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.WAN21(settings, device="cpu")
    fill(model.diffusion_model, seed)
    model.diffusion_model.head.head.weight.data *= 0.1
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, *devices)


def tiny_video_vae(seed: int = 0):
    """Wan 2.1's VAE at a width of 4."""
    network = WanVAE(dim=4, z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True])
    return comfy.sd.VAE(sd=fill(network, seed).state_dict(), dtype=torch.float32)


def video_conditioning(seed: int):
    """A random CONDITIONING that fits `tiny_video_model`."""
    return [[torch.randn(1, 7, CONTEXT, generator=torch.Generator().manual_seed(seed)), {}]]
