"""An instruction model: a demo model, trained to edit an image by an instruction (arXiv 2211.09800).

Its input is the noisy latent and, beside it, the image's latent; the extra channels of the first convolution start at zero, so
that training starts from the demo model itself. Edits come in families of scenes: one, and the same with one change each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from controlled_diffusion.training.channel_dropout import JointDropout
from controlled_diffusion.training.instruct_pix2pix import DROPOUT
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model
from demo.any_world import Edit, World

SEED = 80


def edit(world: World, rng: np.random.Generator, index: int, seed: int = SEED) -> tuple[Edit, tuple[int, int]]:
    """A random edit within a family, and the places of its two scenes in it; each kind that there is equally often."""
    which, scenes = world.family(index, seed)
    pairs = world.pairs(scenes)
    kinds = [kind for kind in world.kinds if any(kind == p[2] for p in pairs)]
    kind = kinds[int(rng.integers(len(kinds)))]
    options = [p for p in pairs if p[2] == kind]
    before, after, _ = options[int(rng.integers(len(options)))]
    text = world.instruction(rng, scenes[before], scenes[after], which, kind)
    return Edit(kind, text, scenes[before], scenes[after], which), (before, after)


def _drawn(rng: np.random.Generator, of_two: list[bool], count: int, pair_share: float) -> list[int]:
    """Numbers of families, a share of `pair_share` of them of two things, between which an instruction has to choose; `of_two` says which
    are."""
    picks, pairs = [], rng.random(count) < pair_share
    for pair in pairs:
        pick = int(rng.integers(len(of_two)))
        while of_two[pick] != pair:
            pick = int(rng.integers(len(of_two)))
        picks.append(pick)
    return picks


def around(world: World, scene) -> np.ndarray:
    """Where a latent shows a thing, or the ground close to it, as 0 and 1."""
    cell = world.size / world.latent
    middles = (np.arange(world.latent) + 0.5) * cell
    near = [np.maximum(abs(middles[:, None] - y), abs(middles - x)) < 1.1 * r + cell for x, y, r in world.spots(scene)]
    return np.any(near, 0).astype(np.float32)


def edit_loss(eps: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, told: torch.Tensor, where: torch.Tensor, focus: float):
    """Error of predicted noise (B, C, h, w), `1 + focus` times where there is something to edit, `where` (B, 1, h, w).

    On the clean image it weighs SNR^(1/2), as in the demo model's own training, but SNR^(1/4) in rows that are `told` (B, 1, 1, 1) what
    to edit and how: there the result is decided at any noise, and what the noisy levels get wrong no later step mends.
    """
    snr = alpha_bar / (1 - alpha_bar)
    weight = (1 + focus * where) * snr.clamp(max=5.0) ** (0.5 - 0.25 * told.float()) / snr
    return (weight * (eps - noise).square()).mean() / (1 + focus * where.mean())


def train_instruct(
    world: World, unet: Callable, encode_text: Callable, tokens: demo_model.Tokens, latents: torch.Tensor, image_scale: float, loop: Loop, *,
    batch: int = 24, noisy_share: float = 0.0, pair_share: float = 0.5, focus: float = 0.0,
) -> Iterator[Step]:  # fmt: skip
    """`latents` (families, variants, C, h, w) at unit scale; the image enters times `image_scale`, as ComfyUI gives it: not scaled.

    `unet(x, levels, context) -> eps` takes the noisy latent and the image's, one after the other in the channels. `noisy_share` of
    each batch is drawn from the noisy levels alone, where it is decided which thing changes; `focus` as in `edit_loss`.
    """
    of_two = [len(world.family(i, SEED)[1][0].things) == 2 for i in range(len(latents))]
    if (pair_share > 0 and not any(of_two)) or (pair_share < 1 and all(of_two)):
        raise ValueError(f"pair_share is {pair_share}, but {sum(of_two)} of {len(of_two)} families have two things. Take more families.")

    def prepare(index):
        rng = np.random.default_rng((SEED, index, 1))
        picks = _drawn(rng, of_two, batch, pair_share)
        edits, places = zip(*(edit(world, rng, i) for i in picks))
        before, after = (torch.stack([latents[i, p[side]] for i, p in zip(picks, places)]).float() for side in (0, 1))
        draw = rng.random(batch)
        kept = JointDropout(DROPOUT).keep(torch.zeros(batch), torch.from_numpy(draw)[:, None])
        image, text = kept.view(-1, 2, 1, 1, 1).unbind(1)
        texts = [e.text if kept else "" for kept, e in zip(text.flatten().tolist(), edits)]
        levels = demo_model.spread_levels(rng, batch, noisy_share)
        where = torch.from_numpy(np.stack([around(world, e.before) for e in edits]))[:, None]
        ids = torch.stack([tokens(t) for t in texts])
        return after, before * image_scale * image, image & text, where, ids, torch.from_numpy(levels).long()

    batches = demo_model.prefetch(prepare, loop.done, loop.steps)

    def loss_of(index):
        x0, shown, told, where, ids, t = next(batches)
        noisy, noise, a = demo_model.noised(x0, t, index)
        seen = torch.cat([noisy, shown], 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            eps = unet(seen, t.float(), encode_text(ids)).float()
        return edit_loss(eps, noise, a, told, where, focus)

    return loop.run(loss_of)
