"""The recipe of the illustrated demo model: a small text-to-image latent diffusion model of the illustrated world.

Three stages, each resumable, on a CPU or a GPU: the VAE (from the demo model's), the latents of a fixed set of scenes, and the UNet
together with its text tower. The networks are ComfyUI's own classes and come from the script; losses and schedules are the demo model's.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.demo import illustrated_world as world
from controlled_diffusion.training.demo.illustrated_captions import GROUND_WORDS, PLACE_WORDS, SIZE_WORDS, STYLE_WORDS, random_caption
from controlled_diffusion.training.demo.illustrated_drawings import COLORS, THINGS
from controlled_diffusion.training.demo.illustrated_grounds import SIZE
from controlled_diffusion.training.demo.illustrated_scenes import Scene, random_scene
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model

LATENT = SIZE // 8
UNET_CONFIG = {
    **config.UNET_CONFIG,
    "num_res_blocks": [2, 1, 1],
    "channel_mult": [1, 2, 3],
    "transformer_depth": [0, 0, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 0, 1],
    "transformer_depth_middle": -1,
}
CROP = 64  # pixels
SEEDS = {"autoencoder": 110, "scenes": 120, "denoiser": 130, "held out": 140}
EASY_STYLES = ("cartoon", "3d")


@dataclass(frozen=True)
class Recipe:
    """Steps, rates and amounts. The UNet's first `easy_steps` see only the single things without a filter among the first `easy_scenes`.
    `growth`: how many scenes are encoded for the steps up to which; the last ones for all further steps."""

    autoencoder_steps: int = 2000
    autoencoder_rate: float = 8e-4
    autoencoder_scenes: int = 4  # a step, two crops of each
    easy_scenes: int = 2000
    easy_steps: int = 600
    growth: tuple[tuple[int, int], ...] = ((2000, 600), (5000, 1800), (10_000, 4000), (20_000, 15_000))
    denoiser_steps: int = 15_000
    denoiser_rate: float = 1.3e-3
    batch: int = 32


RECIPES = {  # by device; a training begun on one goes on with the recipe of the other
    "cpu": Recipe(),
    "cuda": Recipe(autoencoder_steps=5000, autoencoder_scenes=12, easy_steps=400, growth=((30_000, 6000),), denoiser_steps=6000, batch=128),
}


def made_ahead(make: Callable[[int], object], start: int, stop: int, workers: int, block: int = 64) -> Iterator:
    """make(start), make(start + 1), ...: by a thread, or by several processes where there are cores for them."""
    if workers < 2 or start >= stop:
        yield from demo_model.prefetch(make, start, stop)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        blocks = [range(first, min(first + block, stop)) for first in range(start, stop, block)]
        pending = pool.map_async(make, blocks[0]) if blocks else None
        for following in [*blocks[1:], range(0)]:
            ready, pending = pending.get(), pool.map_async(make, following)
            yield from ready


def workers(device: str) -> int:
    """How many processes paint: one beside a CPU that trains, and nearly all cores beside a GPU."""
    return 1 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2)


def mixed_precision(device: str):
    """bfloat16 autocast on the device."""
    return torch.autocast(torch.device(device).type, torch.bfloat16)


# --- VAE --------------------------------------------------------------------------------------------------------


def _corner(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int]:
    """Top and left of a crop, on the latent grid: half of them about a random pixel of a thing."""
    spots = np.argwhere(mask)
    middle = spots[int(rng.integers(len(spots)))] if rng.random() < 0.6 and len(spots) else rng.uniform(0, SIZE, 2)
    return tuple(int(v) for v in (np.round((middle - CROP / 2) / 8) * 8).clip(0, SIZE - CROP))


def crops(scenes: int, index: int) -> np.ndarray:
    """Batch `index` of the VAE's training, two crops of each of `scenes` new scenes, uint8 (2 * scenes, 64, 64, 3)."""
    rng, cut = np.random.default_rng((SEEDS["autoencoder"], index)), []
    for _ in range(scenes):
        image, masks = world.paint(random_scene(rng))
        for _ in range(2):
            top, left = _corner(rng, masks[int(rng.integers(len(masks)))])
            cut.append(image[top : top + CROP, left : left + CROP])
    return np.stack(cut)


def _gradient_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the horizontal and vertical derivatives of two batches."""
    error = a - b
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def autoencoder_loss(encoder: torch.nn.Module, decoder: torch.nn.Module, images: torch.Tensor, index: int, noise: float = 0.05):
    """L1, MSE and gradient error of a batch, float (B, 3, H, W) in [0, 1], through latents with a little noise."""
    with mixed_precision(images.device.type):
        latent = encoder(images).float()
        jitter = torch.randn(latent.shape, generator=torch.Generator().manual_seed(index)).to(images.device)
        decoded = decoder(latent + noise * jitter).float()
    error = decoded - images
    fit = error.abs().mean() + 4 * error.square().mean() + _gradient_error(decoded, images)
    return fit + 0.02 * demo_model._moments_loss(latent)


def train_autoencoder(encoder: torch.nn.Module, decoder: torch.nn.Module, loop: Loop, device: str, batches: Iterator) -> Iterator[Step]:
    """Trains on `batches` of `crops`; the next one belongs to step `loop.done`."""

    def loss_of(index):
        batch = demo_model.as_images(list(next(batches))).to(device)
        return autoencoder_loss(encoder, decoder, batch.contiguous(memory_format=torch.channels_last), index)

    return loop.run(loss_of)


# --- the set of scenes ------------------------------------------------------------------------------------------


@lru_cache(100_000)
def scene(index: int, seed: int = SEEDS["scenes"]) -> Scene:
    """Scene number `index` of the training set; other seeds give held-out sets."""
    return random_scene(np.random.default_rng((seed, index)))


def image(index: int, seed: int = SEEDS["scenes"]) -> np.ndarray:
    """The image of a scene, uint8 (192, 192, 3)."""
    return world.paint(scene(index, seed))[0]


def images(count: int, seed: int = SEEDS["scenes"]) -> torch.Tensor:
    """The first scenes, float (N, 3, 192, 192) in [0, 1]."""
    return demo_model.as_images([image(i, seed) for i in range(count)])


@torch.no_grad()
def encode(encoder: torch.nn.Module, batch: torch.Tensor, device: str) -> torch.Tensor:
    """Latents (N, 4, 24, 24), float16 on the CPU, of images (N, 3, 192, 192) in [0, 1]."""
    with mixed_precision(device):
        return encoder(batch.to(device).contiguous(memory_format=torch.channels_last)).half().cpu()


# --- UNet and text tower ----------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*THINGS, *COLORS, "a an to the left of right and next", ","]
    for table in (GROUND_WORDS, STYLE_WORDS, PLACE_WORDS, SIZE_WORDS):
        phrases += [words for several in table.values() for words in several if words]
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+|[^a-z\s]", phrase)})


class Vocabulary:
    """The few rows of the token table that captions use: `ids` (N,), ascending, and `tokens(text)` as positions in them, int (77,)."""

    def __init__(self, ids_of_word: Callable[[str], list[int]], start: int = 49406, end: int = 49407):
        self.ids = sorted({start, end, *(i for word in vocabulary() for i in ids_of_word(word))})
        row = {token: position for position, token in enumerate(self.ids)}
        self.tokens = demo_model.Tokens(lambda word: [row[i] for i in ids_of_word(word)], row[start], row[end])


def _is_easy(index: int) -> bool:
    return len(scene(index).things) == 1 and scene(index).style in EASY_STYLES


def pick_scenes(recipe: Recipe, count: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    """picks(step, rng): which of the first `count` scenes make the batch of a step, int (batch,)."""
    easy = np.asarray([i for i in range(min(count, recipe.easy_scenes)) if _is_easy(i)])

    def picks(step, rng):
        return easy[rng.integers(len(easy), size=recipe.batch)] if step < recipe.easy_steps else rng.integers(count, size=recipe.batch)

    return picks


def captions(index: int, picks: np.ndarray, tokens: demo_model.Tokens) -> torch.Tensor:
    """Token ids (batch, 77) of new captions of scenes; a tenth of them empty."""
    rng = np.random.default_rng((SEEDS["denoiser"], index, 1))
    texts = [random_caption(scene(int(i)), rng).text if rng.random() >= world.EMPTY else "" for i in picks]
    return torch.stack([tokens(text) for text in texts])


def train_denoiser(
    unet: torch.nn.Module,
    tower: torch.nn.Module,
    tokens: demo_model.Tokens,
    latents: torch.Tensor,
    loop: Loop,
    recipe: Recipe,
    device: str,
    noisy_share: float = 0.2,
) -> Iterator[Step]:
    """eps-prediction on latents (N, 4, 24, 24) of unit scale, weighted as the demo model's; `noisy_share` of each batch is drawn from the
    noisiest timesteps alone, which decide where things are."""
    alphas, picks_of = demo_model.alphas_cumprod(), pick_scenes(recipe, len(latents))

    def prepare(index):
        rng = np.random.default_rng((SEEDS["denoiser"], index))
        picks = picks_of(index, rng)
        t = torch.from_numpy(demo_model.spread_levels(rng, recipe.batch, noisy_share)).long()
        x0, noise = latents[picks].float(), torch.randn(recipe.batch, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(index))
        a = alphas[t].view(-1, 1, 1, 1)
        return (a.sqrt() * x0 + (1 - a).sqrt() * noise), noise, a, t.float(), captions(index, picks, tokens)

    batches = demo_model.prefetch(prepare, loop.done, loop.steps)

    def loss_of(index):
        noisy, noise, a, t, ids = (part.to(device, non_blocking=True) for part in next(batches))
        with mixed_precision(device), torch.device(device):
            context = demo_model.encode_text(tower, ids)
            eps = unet(noisy.contiguous(memory_format=torch.channels_last), t, context).float()
        return demo_model.denoising_loss(eps, noise, a)

    return loop.run(loss_of)
