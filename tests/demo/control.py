"""A small ControlNet for a demo model: silhouettes of the things, in the low-rank form that shares the denoiser's weights.

The control branch (arXiv 2302.05543) is a copy of the denoiser's encoder. Its hint block and its zero convolutions are
trained whole, the copied weights by a low-rank difference (ComfyUI's Control-LoRA format).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model
from demo.any_world import World, in_one

RANK, SEED = 16, 70
WHOLE = ("input_hint_block.", "zero_convs.", "middle_block_out.")


def silhouettes(world: World, scene) -> np.ndarray:
    """The hint of a scene: its things in white on black, uint8 (size, size, 3)."""
    white = in_one(world.masks(scene), world.size)
    return np.repeat((white * 255).astype(np.uint8)[..., None], 3, 2)


def trainable_parts(weights: dict[str, torch.Tensor]) -> dict[str, torch.nn.Parameter]:
    """Start values of what is trained, by the keys of ComfyUI's format, from the weights of a fresh control branch."""
    draw, parts = torch.Generator().manual_seed(SEED), {}
    for name, weight in weights.items():
        if name.startswith(WHOLE):
            parts[name] = weight.clone()
        elif name.endswith(".weight") and weight.ndim in (2, 4) and min(weight.shape[0], weight[0].numel()) > RANK:
            stem, inputs = name.removesuffix(".weight"), weight[0].numel()
            parts[f"{stem}.up"] = torch.zeros(weight.shape[0], RANK)
            parts[f"{stem}.down"] = torch.randn(RANK, inputs, generator=draw) / inputs**0.5
    return {k: torch.nn.Parameter(v) for k, v in parts.items()}


def whole_weights(weights: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The control branch's weights: those of the denoiser plus the low-rank differences, or trained whole."""
    found = {}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if name in parts:
            found[name] = parts[name]
        elif f"{stem}.up" in parts and name.endswith(".weight"):
            found[name] = weight + (parts[f"{stem}.up"] @ parts[f"{stem}.down"]).view(weight.shape)
        else:
            found[name] = weight
    return found


def train_control(
    world: World, predict: Callable, encode_text: Callable, tokens: demo_model.Tokens, latents: torch.Tensor, loop: Loop, *,
    batch: int, empty: float = 0.3,
) -> Iterator[Step]:  # fmt: skip
    """`latents` (N, C, h, w) are those of the world's first scenes; `predict(noisy, levels, context, hints) -> eps` is the denoiser under the control branch, `encode_text(ids) -> context`."""

    def prepare(index):
        rng = np.random.default_rng((SEED, index))
        picks = rng.integers(len(latents), size=batch)
        scenes = [world.scene(int(i)) for i in picks]
        texts = [world.caption(s, rng).text if rng.random() >= empty else "" for s in scenes]
        levels = (np.arange(batch) + rng.random(batch)) / batch * 1000
        hints = demo_model.as_images([silhouettes(world, s) for s in scenes])
        return latents[picks].float(), torch.stack([tokens(t) for t in texts]), hints, torch.from_numpy(levels).long()

    batches = demo_model.prefetch(prepare, loop.done, loop.steps)

    def loss_of(index):
        x0, ids, hints, t = next(batches)
        noisy, noise, a = demo_model.noised(x0, t, index)
        with torch.autocast("cpu", torch.bfloat16):
            eps = predict(noisy, t.float(), encode_text(ids), hints).float()
        return demo_model.denoising_loss(eps, noise, a)

    return loop.run(loss_of)
