"""The demo model: a small text-to-image latent diffusion model of the demo world, trained from nothing.

Three stages, each resumable: an autoencoder, the latents of a fixed set of scenes, and the denoiser together with
its text tower. The networks are ComfyUI's own classes and come in from outside; this file knows only torch.
"""

from __future__ import annotations

import math
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.training.demo.config import SEEDS, start_tokens
from controlled_diffusion.training.loop import Loop, Step
from controlled_diffusion.training.noisy_classifier import initialize

from demo import world

NOISY = 600  # of 1000 levels


@dataclass(frozen=True)
class Recipe:
    """Steps, rates and amounts of the shipped weights. On 2 CPU cores about 15 minutes for the autoencoder, 10 for the latents and
    an hour for each of the denoiser's two stages; 0.7 PFLOP in all (`tests/demo/make_model.py cost`), which is a minute of a GPU's
    arithmetic at 10 TFLOP/s; the time on one has not been measured."""

    autoencoder_steps: int = 1400
    autoencoder_rate: float = 1.5e-3
    scenes: int = 20_000
    denoiser_steps: int = 3400
    denoiser_rate: float = 1.5e-3
    refine_steps: int = 2400
    refine_rate: float = 8e-4
    refine_noisy_share: float = 0.4
    batch: int = 32


RECIPE = Recipe()


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {k: p.requires_grad_(True) for k, p in module.named_parameters()}


def prefetch(make: Callable[[int], object], start: int, stop: int, ahead: int = 8) -> Iterator:
    """make(start), make(start + 1), ... computed by a thread that runs ahead."""
    ready: queue.Queue = queue.Queue(ahead)

    def work():
        for i in range(start, stop):
            ready.put(make(i))

    threading.Thread(target=work, daemon=True).start()
    for _ in range(start, stop):
        yield ready.get()


def as_images(arrays: list[np.ndarray]) -> torch.Tensor:
    """uint8 (H, W, 3) arrays to a float batch (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(255)


def initialize_autoencoder(encoder: torch.nn.Sequential, decoder: torch.nn.Sequential) -> None:
    """Starts ComfyUI's TAESD as a plain 8 x 8 mean and its nearest-neighbor inverse: every block is the identity,
    so that colors and places pass from the first step on."""
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        initialize(module, SEEDS["weights"])
        for layer in module:
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is None:
                eye = torch.eye(layer.out_channels)[:, :, None, None]
                layer.weight.data = eye.repeat(1, 1, 3, 3) / 9 if name == "encoder" else F.pad(eye, (1, 1, 1, 1))
    decoder[-1].bias.data.fill_(0.5)


def _crops(index: int, scenes: int, crops: int, size: int) -> torch.Tensor:
    """Crops on the grid of 16 pixels that touch a thing, from scenes of their own."""
    rng = np.random.default_rng((SEEDS["autoencoder"], index))
    cut = []
    for _ in range(scenes):
        scene = world.random_scene(rng)
        image = world.render(scene)
        for _ in range(crops):
            thing = scene.things[int(rng.integers(len(scene.things)))]
            spot = np.array([thing.y, thing.x]) + rng.uniform(-1, 1, 2) * thing.radius - size / 2
            top, left = np.clip(np.round(spot / 16), 0, (world.SIZE - size) // 16).astype(int) * 16
            cut.append(image[top : top + size, left : left + size])
    return as_images(cut)


def _moments_loss(latent: torch.Tensor) -> torch.Tensor:
    """How far each latent channel is from mean 0 and deviation 1."""
    return (latent.mean((0, 2, 3)) ** 2 + (latent.std((0, 2, 3)) - 1) ** 2).mean()


def train_autoencoder(
    encoder: torch.nn.Module, decoder: torch.nn.Module, loop: Loop, *, noise: float = 0.06, whole_share: float = 0.05
) -> Iterator[Step]:
    """L1 + MSE on crops of 64, in the last share of the steps on whole images; latents carry a little noise."""
    whole_from = int(loop.steps * (1 - whole_share))

    def batch(index):
        return _crops(index, 4, 2, 64) if index < whole_from else _crops(index, 2, 1, world.SIZE)

    batches = prefetch(batch, loop.done, loop.steps)

    def loss_of(index):
        images = next(batches).contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(index)
        with torch.autocast("cpu", torch.bfloat16):
            latent = encoder(images).float()
            jitter = torch.randn(latent.shape, generator=generator) * noise
            image = decoder(latent + jitter).float()
        error = image - images
        return error.abs().mean() + 4 * error.square().mean() + 0.02 * _moments_loss(latent)

    return loop.run(loss_of)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio in dB of each image of two batches in [0, 1]."""
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def scene(index: int, seed: int = SEEDS["scenes"]) -> world.Scene:
    """Scene number `index` of the training set; other seeds give held-out sets."""
    return world.random_scene(np.random.default_rng((seed, index)))


@torch.no_grad()
def encoded(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Latents of images (N, 3, 128, 128), (N, 4, 16, 16), unit scale."""
    with torch.autocast("cpu", torch.bfloat16):
        return encoder(images.contiguous(memory_format=torch.channels_last)).float()


def preview_colors(latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The (5, 3) matrix that best turns a latent pixel and 1 into the mean color, in [-1, 1], of its 8 x 8 pixels."""
    colors = F.avg_pool2d(2 * images - 1, 8).movedim(1, -1).reshape(-1, 3)
    pixels = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    return torch.linalg.lstsq(torch.cat([pixels, torch.ones(len(pixels), 1)], 1), colors).solution


class Tokens:
    """Token ids (77,) of a caption, word by word through ComfyUI's tokenizer, with a memory."""

    def __init__(self, ids_of_word: Callable[[str], list[int]], start: int = 49406, end: int = 49407, length: int = 77):
        self.word = lru_cache(None)(ids_of_word)
        self.start, self.end, self.length = start, end, length

    def __call__(self, text: str) -> torch.Tensor:
        ids = [i for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()) for i in self.word(word)]
        row = [self.start, *ids, self.end]
        return torch.tensor(row + [self.end] * (self.length - len(row)))


def initialize_denoiser(unet: torch.nn.Module, tower: torch.nn.Module) -> None:
    """Seeded start of denoiser and text tower; residual branches begin at zero."""
    initialize(unet, SEEDS["weights"])
    initialize(tower, SEEDS["weights"] + 1)
    tokens, places = tower.embeddings.token_embedding.weight, tower.embeddings.position_embedding.weight
    tokens.data = start_tokens(*tokens.shape)
    places.data *= 0.1 * math.sqrt(places.shape[1])


def matrices_of(parameters: dict[str, torch.nn.Parameter]) -> list[str]:
    """Weights of linear layers and convolutions; tables and norms are left to AdamW."""
    return [k for k, p in parameters.items() if p.ndim in (2, 4) and "embedding" not in k]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax attention on (B, N, heads * width), written out: in bfloat16 on a CPU its backward pass is far faster
    than the fused kernel's."""
    batch = q.shape[0]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
        weights = (scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1)
        out = weights @ v
    return out.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)


def encode_text(tower: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """ComfyUI's CLIP text tower without its in-place additions, (B, 77) ids -> (B, 77, width)."""
    x = tower.embeddings(ids)
    mask = torch.full((x.shape[1], x.shape[1]), -1e4).triu_(1)

    for layer in tower.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return tower.final_layer_norm(x)


def alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> torch.Tensor:
    """Stable Diffusion's noise schedule, ComfyUI's default for eps models."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def _spread(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """`count` random numbers, one in each of as many equal parts of [low, high)."""
    return low + (np.arange(count) + rng.random(count)) / max(1, count) * (high - low)


def spread_levels(rng: np.random.Generator, batch: int, noisy_share: float = 0.0) -> np.ndarray:
    """Noise levels of a batch, evenly over all 1000, but `noisy_share` of them evenly over those above NOISY."""
    noisy = int(batch * noisy_share)
    return np.concatenate([_spread(rng, noisy, NOISY, 1000), _spread(rng, batch - noisy, 0, 1000)])


def _captions(index: int, picks: np.ndarray, empty: float, tokens: Tokens) -> torch.Tensor:
    rng = np.random.default_rng((SEEDS["denoiser"], index, 1))
    texts = [world.random_caption(scene(int(i)), rng).text if rng.random() >= empty else "" for i in picks]
    return torch.stack([tokens(t) for t in texts])


def noised(x0: torch.Tensor, levels: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy latents, noise, alpha_bar (B, 1, 1, 1)) of batch `index` at levels (B,)."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(index))
    a = alphas_cumprod()[levels].view(-1, 1, 1, 1)
    return (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last), noise, a


def denoising_loss(eps: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Error of predicted noise (B, C, H, W). On the clean image the loss weighs sqrt(SNR), at most sqrt(gamma): between min-SNR (arXiv
    2303.09556, section 3.4), under which this model was slow to learn where things go, and the loss of v-prediction."""
    snr = (alpha_bar / (1 - alpha_bar)).flatten()
    return ((eps - noise).square().flatten(1).mean(1) * snr.clamp(max=gamma).sqrt() / snr).mean()


def eps_error(eps: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    return denoising_loss(eps, noise, alpha_bar)


def v_error(v: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Mean square error of a predicted velocity (arXiv 2202.00512, section 4)."""
    return F.mse_loss(v, alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0)


def train_denoiser(
    unet: torch.nn.Module, tower: torch.nn.Module, tokens: Tokens, latents: torch.Tensor, loop: Loop, *,
    batch: int = 48, empty: float = 0.1, noisy_share: float = 0.0, error: Callable[..., torch.Tensor] = eps_error,
) -> Iterator[Step]:  # fmt: skip
    """`error(prediction, x0, noise, alpha_bar)` is the loss. `noisy_share` of each batch is drawn from the levels above NOISY alone,
    where places are decided."""

    def prepare(index):
        rng = np.random.default_rng((SEEDS["denoiser"], index))
        picks = rng.integers(len(latents), size=batch)
        levels = spread_levels(rng, batch, noisy_share)
        return latents[picks].float(), _captions(index, picks, empty, tokens), torch.from_numpy(levels).long()

    batches = prefetch(prepare, loop.done, loop.steps)

    def loss_of(index):
        x0, ids, t = next(batches)
        noisy, noise, a = noised(x0, t, index)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(noisy, t.float(), encode_text(tower, ids)).float()
        return error(prediction, x0, noise, a)

    return loop.run(loss_of)
