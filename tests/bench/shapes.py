"""Models at the published shapes with random weights, for benchmarks: SD1.5, SDXL and Flux.1 dev."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch

SD15 = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=768,
    use_spatial_transformer=True, legacy=False, use_checkpoint=False, use_linear_in_transformer=False, adm_in_channels=None,
    use_temporal_attention=False, use_temporal_resblock=False,
)  # fmt: skip
SDXL = SD15 | dict(
    num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, context_dim=2048, use_linear_in_transformer=True,
    adm_in_channels=2816, num_classes="sequential",
)  # fmt: skip
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
    num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How large a model is, and the size of its conditioning."""

    family: type
    network: type
    config: dict
    width: int  # of the text's features
    pooled: int
    side: int  # of the latent of the size that the model is made for, in cells
    words: int = 77
    channels: int = 4
    on_cpu: torch.dtype = torch.float32
    on_gpu: torch.dtype = torch.float16
    extras: dict = field(default_factory=dict)

    def conditioning(self, seed: int, rows: int = 1) -> list:
        """A random CONDITIONING."""
        draw = torch.Generator().manual_seed(seed)
        text = torch.randn(rows, self.words, self.width, generator=draw)
        return [[text, {"pooled_output": torch.randn(rows, self.pooled, generator=draw), **self.extras}]]

    def latent(self, batch: int = 1, side: int | None = None) -> torch.Tensor:
        return torch.zeros(batch, self.channels, side or self.side, side or self.side)


SHAPES = {
    "sd15": Shape(comfy.supported_models.SD15, comfy.model_base.BaseModel, SD15, 768, 768, 64),
    "sdxl": Shape(comfy.supported_models.SDXL, comfy.model_base.SDXL, SDXL, 2048, 1280, 128, on_cpu=torch.bfloat16),
    "flux": Shape(
        *(comfy.supported_models.Flux, comfy.model_base.Flux, FLUX, 4096, 768, 128, 256, 16, torch.bfloat16, torch.bfloat16),
        extras={"guidance": 3.5},
    ),
}

NARROW = {  # with as many layers
    "sd15": dict(model_channels=32, num_heads=1),
    "sdxl": dict(model_channels=64, num_heads=1, num_head_channels=-1),
    "flux": dict(hidden_size=48, num_heads=4, axes_dim=[4, 4, 4]),
}


def clock() -> float:
    """CPU seconds, so that other work on the machine does not count, or those of the clock on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def fused(attention, *args, **kwargs) -> torch.Tensor:
    """torch's own attention, as `diffusers` has it and ComfyUI on a GPU."""
    return host_attention.attention_pytorch(*args, **kwargs)


def shortest(runs: dict[Hashable, Callable[[], float]], repeats: int) -> dict[Hashable, float]:
    """Of every run the shortest time of `repeats`, taken in turn."""
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in runs}


def model_of(name: str, dtype: torch.dtype | None = None, **changed):
    """A MODEL on ComfyUI's device; `dtype` is half precision on a GPU unless given, `changed` overrides the configuration."""
    shape, device = SHAPES[name], comfy.model_management.get_torch_device()
    settings = shape.family(shape.config | changed)
    settings.unet_config |= changed
    settings.set_inference_dtype(dtype or (shape.on_gpu if device.type == "cuda" else shape.on_cpu), None)
    model = shape.network(settings, device=device)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
