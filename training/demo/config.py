"""The sizes of the demo model's networks."""

from __future__ import annotations

import math

import torch

VISION_CONFIG = dict(
    model_type="clip_vision_model", num_channels=3, image_size=64, patch_size=8, hidden_size=64, intermediate_size=192,
    num_attention_heads=4, num_hidden_layers=3, hidden_act="gelu", projection_dim=64,
)  # fmt: skip
VISION_HEAD = 16  # channels of a head of the image encoder
CONTEXT = 128
CLIP_CONFIG = dict(hidden_size=CONTEXT, intermediate_size=4 * CONTEXT, num_attention_heads=4, num_hidden_layers=2, projection_dim=CONTEXT)
UNET_CONFIG = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[2, 1], channel_mult=[1, 2], transformer_depth=[0, 1, 1],
    transformer_depth_output=[1, 0, 1, 1, 1], transformer_depth_middle=1, context_dim=CONTEXT, use_spatial_transformer=True, legacy=False,
    use_checkpoint=False, use_linear_in_transformer=False, adm_in_channels=None, use_temporal_attention=False, use_temporal_resblock=False,
)  # fmt: skip
HEAD_CHANNELS = 32
SEEDS = {"autoencoder": 10, "scenes": 20, "denoiser": 30, "weights": 40, "tokens": 50}


def start_tokens(count: int, width: int) -> torch.Tensor:
    """Start values of the token table (count, width), the same on every machine."""
    return 0.5 * torch.randn(count, width, generator=torch.Generator().manual_seed(SEEDS["tokens"]))


def vision_config(weights: dict[str, torch.Tensor]) -> dict:
    """The sizes of the image encoder with these weights, as VISION_CONFIG has them."""
    hidden, channels, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
    places = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
    layers = [k for k in weights if k.startswith("vision_model.encoder.layers.") and k.endswith(".mlp.fc1.weight")]
    return VISION_CONFIG | dict(
        num_channels=channels, image_size=patch * math.isqrt(places), patch_size=patch, hidden_size=hidden,
        intermediate_size=len(weights[layers[0]]), num_attention_heads=hidden // VISION_HEAD, num_hidden_layers=len(layers),
        projection_dim=len(weights["visual_projection.weight"]),
    )  # fmt: skip
