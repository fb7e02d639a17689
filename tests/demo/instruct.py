"""An instruction model of the demo world: the demo model, trained to edit an image by an instruction (arXiv 2211.09800).

Its input is the noisy latent and, beside it, the image's latent; the extra channels of the first convolution start at zero, so
that training starts from the demo model itself. Edits come in families of four scenes: one, and the same with one thing in another
color, in another shape, and gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from controlled_diffusion.training.channel_dropout import JointDropout
from controlled_diffusion.training.instruct_pix2pix import DROPOUT
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model
from demo import world

SEED, FAMILIES = 80, 2000
KINDS = ("color", "shape", "remove")


@dataclass(frozen=True)
class Edit:
    """An instruction that turns `before` into `after`; `which` thing of `before` it is about."""

    kind: str
    text: str
    before: world.Scene
    after: world.Scene
    which: int


def _other(rng: np.random.Generator, options, current: str, taken: str = "") -> str:
    left = [o for o in options if o not in (current, taken)]
    return left[int(rng.integers(len(left)))]


def changed(scene: world.Scene, which: int, thing: world.Thing | None) -> world.Scene:
    """The scene with another thing instead of one, or none."""
    things = list(scene.things)
    things[which : which + 1] = [] if thing is None else [thing]
    return replace(scene, things=tuple(things))


def family(index: int, seed: int = SEED) -> tuple[int, tuple[world.Scene, ...]]:
    """The thing that changes, and four scenes: as drawn, in another color, in another shape, and without it."""
    rng = np.random.default_rng((seed, index))
    scene = world.random_scene(rng)
    which = int(rng.integers(len(scene.things)))
    thing = scene.things[which]
    rest = scene.things[1 - which] if len(scene.things) > 1 else None
    recolored = replace(thing, color=_other(rng, world.COLORS, thing.color, rest.color if rest else ""))
    reshaped = replace(thing, shape=_other(rng, world.SHAPES, thing.shape, rest.shape if rest else ""))
    return which, (scene, changed(scene, which, recolored), changed(scene, which, reshaped), changed(scene, which, None))


def _name(rng: np.random.Generator, scene: world.Scene, which: int) -> str:
    """A phrase that means one thing of a scene and no other."""
    thing, others = scene.things[which], [t for i, t in enumerate(scene.things) if i != which]
    names = [f"the {thing.color} {thing.shape}"]
    names += [f"the {thing.shape}"] * all(o.shape != thing.shape for o in others)
    names += [f"the {thing.color} object"] * all(o.color != thing.color for o in others)
    names += ["it", "the object"] * (not others)
    return names[int(rng.integers(len(names)))]


def instruction(rng: np.random.Generator, before: world.Scene, after: world.Scene, which: int, kind: str) -> str:
    """What to say so that `before` becomes `after`."""
    name = _name(rng, before, which)
    if kind == "remove":
        return f"{('remove', 'delete', 'erase')[int(rng.integers(3))]} {name}"
    new = after.things[which]
    wanted = new.color if kind == "color" else f"{'an' if new.shape[0] in 'aeiou' else 'a'} {new.shape}"
    return (f"make {name} {wanted}", f"turn {name} {'into ' * (kind == 'shape')}{wanted}")[int(rng.integers(2))]


PAIRS = ((0, 1, "color"), (1, 0, "color"), (0, 2, "shape"), (2, 0, "shape"), (0, 3, "remove"), (1, 3, "remove"), (2, 3, "remove"))


def edit(rng: np.random.Generator, index: int, seed: int = SEED) -> tuple[Edit, tuple[int, int]]:
    """A random edit within a family, and the places of its two scenes in it; each kind equally often."""
    which, scenes = family(index, seed)
    kind = KINDS[int(rng.integers(len(KINDS)))]
    options = [p for p in PAIRS if p[2] == kind]
    before, after, _ = options[int(rng.integers(len(options)))]
    text = instruction(rng, scenes[before], scenes[after], which, kind)
    return Edit(kind, text, scenes[before], scenes[after], which), (before, after)


def _drawn(rng: np.random.Generator, families: int, count: int, pair_share: float) -> list[int]:
    """Numbers of families, a share of `pair_share` of them of two things, between which an instruction has to choose."""
    picks, pairs = [], rng.random(count) < pair_share
    for pair in pairs:
        pick = int(rng.integers(families))
        while (len(family(pick)[1][0].things) == 2) != pair:
            pick = int(rng.integers(families))
        picks.append(pick)
    return picks


def around(scene: world.Scene, size: int) -> np.ndarray:
    """Where a latent (size, size) shows a thing, or the ground close to it, as 0 and 1."""
    cell = world.SIZE / size
    middles = (np.arange(size) + 0.5) * cell
    near = [np.maximum(abs(middles[:, None] - t.y), abs(middles - t.x)) < 1.1 * t.radius + cell for t in scene.things]
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
    unet: Callable, encode_text: Callable, tokens: demo_model.Tokens, latents: torch.Tensor, image_scale: float, loop: Loop, *,
    batch: int = 24, noisy_share: float = 0.0, pair_share: float = 0.5, focus: float = 0.0,
) -> Iterator[Step]:  # fmt: skip
    """`latents` (families, 4, C, h, w) at unit scale; the image enters times `image_scale`, as ComfyUI gives it: not scaled.

    `unet(x, levels, context) -> eps` takes the noisy latent and the image's, one after the other in the channels. `noisy_share` of
    each batch is drawn from the noisy levels alone, where it is decided which thing changes; `focus` as in `edit_loss`.
    """

    def prepare(index):
        rng = np.random.default_rng((SEED, index, 1))
        picks = _drawn(rng, len(latents), batch, pair_share)
        edits, places = zip(*(edit(rng, i) for i in picks))
        before, after = (torch.stack([latents[i, p[side]] for i, p in zip(picks, places)]).float() for side in (0, 1))
        draw = rng.random(batch)
        kept = JointDropout(DROPOUT).keep(torch.zeros(batch), torch.from_numpy(draw)[:, None])
        image, text = kept.view(-1, 2, 1, 1, 1).unbind(1)
        texts = [e.text if kept else "" for kept, e in zip(text.flatten().tolist(), edits)]
        levels = demo_model.spread_levels(rng, batch, noisy_share)
        where = torch.from_numpy(np.stack([around(e.before, after.shape[-1]) for e in edits]))[:, None]
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
