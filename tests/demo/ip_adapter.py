"""An IP-Adapter of a demo model, and the small image encoder through which it sees (arXiv 2308.06721).

The encoder is ComfyUI's CLIP Vision network at a small size. It learns to name the one thing of a scene, and in some worlds also what
each patch shows; then it is frozen, as the denoiser is, and the adapter learns to draw that thing. The reference shows it in another scene, which is the same only in what the
image has to carry beside the caption (`carried` of the world). So the image carries the look of the thing, and the text keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.attention.ip_adapter import Pair, recognize
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model
from demo.any_world import World

SEED, SHIFT = 90, 3


def labels(world: World, scenes: Sequence) -> torch.Tensor:
    """The place of each fact in its list in `world.facts`, (N, facts)."""
    return torch.tensor([[options.index(fact) for fact, options in zip(world.facts_of(s), world.facts.values())] for s in scenes])


def _heads(sizes: dict[str, int], width: int, seed: int) -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return {k: torch.nn.Parameter(torch.randn(n, width, generator=draw) / width**0.5) for k, n in sizes.items()}


def new_heads(world: World) -> dict[str, torch.nn.Parameter]:
    """One linear reading of the embedding for each fact; only used in training."""
    return _heads({k: len(v) for k, v in world.facts.items()}, world.vision_config["projection_dim"], SEED)


def new_patch_heads(world: World) -> dict[str, torch.nn.Parameter]:
    """The same of a patch's token, for each fact that a patch shows; the last class is a patch that does not show it."""
    sizes = {k: len(world.facts[k]) + 1 for k in (*world.on_thing, *world.on_ground)}
    return _heads(sizes, world.vision_config["hidden_size"], SEED + 1)


def naming_loss(embeds: torch.Tensor, heads: dict[str, torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the facts; `embeds` (B, F), `truth` (B, facts)."""
    return sum(F.cross_entropy(embeds @ head.T, truth[:, i]) for i, head in enumerate(heads.values())) / len(heads)


@dataclass(frozen=True)
class Patches:
    """What the encoder learns of each patch: where the thing of an image is, (N, 1, h, w) as shares of a pixel, the heads of
    `new_patch_heads`, and the weight of their loss beside that of the whole image."""

    masks: torch.Tensor
    heads: dict[str, torch.Tensor]
    weight: float


def patch_truth(world: World, masks: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """The class of each patch, by the majority of its pixels: `masks` (B, 1, h, w), `truth` (B, facts) to int (B, patches) a fact."""
    covered = F.avg_pool2d(masks, world.vision_config["patch_size"]).flatten(1) >= 0.5
    found = {}
    for i, (fact, options) in enumerate(world.facts.items()):
        if fact in world.on_thing or fact in world.on_ground:
            found[fact] = torch.where(covered == (fact in world.on_thing), truth[:, i, None], len(options))
    return found


def patch_loss(tokens: torch.Tensor, heads: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy over facts and patches; `tokens` (B, patches, W)."""
    return sum(F.cross_entropy((tokens @ heads[k].T).flatten(0, 1), classes.flatten()) for k, classes in truth.items()) / len(truth)


@dataclass(frozen=True)
class Words:
    """What the encoder learns to tell: the text's tokens for each image, (N, all their channels), which are to be a linear map of the
    embedding, the head of that map, (channels, F), and the weight of its squared error. The adapter begins with that map."""

    told: torch.Tensor
    head: torch.Tensor
    weight: float

    @classmethod
    def of(cls, words: torch.Tensor, norm: Pair, width: int, weight: float) -> Words:
        """From `told`, (N, tokens, channels), and the (scale, shift) of the text's last norm; told is their deviation from the mean. `weight` is
        that of the share of their variance which is not told."""
        scale, shift = (t.detach() for t in norm)
        plain = ((words - shift) / scale).flatten(1)
        (head,) = _heads({"words": plain.shape[1]}, width, SEED + 2).values()
        apart = plain - plain.mean(0)
        return cls(apart, head, weight / float(apart.var()))

    def loss(self, embeds: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """What the embeddings (B, F) of the images `picks` do not tell."""
        return self.weight * F.mse_loss(embeds @ self.head.T, self.told[picks])


def train_encoder(
    world: World, see: Callable, heads: dict[str, torch.Tensor], images: torch.Tensor, truth: torch.Tensor, loop: Loop, *, batch: int,
    patches: Patches | None = None, words: Words | None = None,
) -> Iterator[Step]:
    """`see(pixels) -> embeddings (B, F), tokens of patches (B, patches, W)`; `images` (N, 3, h, w) as the encoder takes them, mirrored at
    random (every look is symmetric) and moved by up to `SHIFT` pixels, a batch as one."""

    def loss_of(index):
        rng = np.random.default_rng((SEED, index))
        picks = torch.from_numpy(rng.integers(len(images), size=batch))
        mirrored = torch.from_numpy(rng.random(batch) < 0.5).view(-1, 1, 1, 1)
        shift = tuple(rng.integers(-SHIFT, SHIFT + 1, size=2).tolist())

        def moved(maps):
            maps = maps[picks].float().roll(shift, (-2, -1))
            return torch.where(mirrored, maps.flip(-1), maps)

        embeds, tokens = see(moved(images))
        loss = naming_loss(embeds, heads, truth[picks])
        if words is not None:
            loss = loss + words.loss(embeds, picks)
        if patches is None:
            return loss
        return loss + patches.weight * patch_loss(tokens, patches.heads, patch_truth(world, moved(patches.masks), truth[picks]))

    return loop.run(loss_of)  # fmt: skip


def told(world: World, scenes: Sequence, tokens: demo_model.Tokens, encode_text: Callable) -> torch.Tensor:
    """What the text says of each scene's look: the last tokens of its parts, so many of each as `world.slots` says, (N, sum, width)."""
    words = {}
    for parts in {world.spoken(s) for s in scenes}:
        ends = [tokens(" ".join(parts[: i + 1])).tolist().index(tokens.end) for i in range(len(parts))]
        places = [place for end, count in zip(ends, world.slots) for place in range(end - count, end)]
        words[parts] = encode_text(tokens(" ".join(parts))[None])[0, places]
    return torch.stack([words[world.spoken(s)] for s in scenes])


def start(layers: Sequence[Pair], features: torch.Tensor, words: torch.Tensor, norm: Pair) -> dict[str, torch.nn.Parameter]:
    """Start values by the names of the published base layout, which draw what they see from the first step on.

    Keys and values are the text's, from (to_k, to_v) of each layer, and tokens are the words for what is seen: the projection is the
    best linear map from `features` (N, F) of images to the text's tokens `words` (N, tokens, width), whose last norm is `norm`.
    """
    scale, shift = (t.detach() for t in norm)
    seen = torch.cat([features, torch.ones(len(features), 1)], 1)
    found = torch.linalg.lstsq(seen, ((words - shift) / scale).flatten(1)).solution.T
    parts = {
        "image_proj.proj.weight": found[:, :-1],
        "image_proj.proj.bias": found[:, -1],
        "image_proj.norm.weight": scale,
        "image_proj.norm.bias": shift,
    }
    for i, pair in enumerate(layers):
        parts |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": weight.detach() for part, weight in zip("kv", pair)}
    return {k: torch.nn.Parameter(v.clone()) for k, v in parts.items()}


@dataclass(frozen=True)
class Drawn:
    """A batch: latents (B, C, h, w), token ids (B, 77), image features (B, F) with zeros for no image, and noise levels (B,)."""

    latents: torch.Tensor
    ids: torch.Tensor
    features: torch.Tensor
    levels: torch.Tensor


class Batches:
    """Draws a target, a caption, and a reference of the same look as far as the caption leaves it to the image, each by its number.

    `neutral` and `empty` are shares of captions that name no look and that say nothing; `no_image` of references left out, as
    in the paper; `noisy` of levels at which shapes are decided.
    """

    def __init__(self, world: World, latents: torch.Tensor, features: torch.Tensor, tokens: demo_model.Tokens, batch: int):
        self.world, self.latents, self.features, self.tokens, self.batch = world, latents, features, tokens, batch
        self.neutral, self.empty, self.no_image, self.noisy = 0.6, 0.15, 0.1, 0.5
        self.alike: dict[tuple, list[int]] = {}
        for i in range(len(features)):
            for look in world.looks(world.single(i, SEED)):
                self.alike.setdefault(look, []).append(i)

    def __call__(self, index: int) -> Drawn:
        rng = np.random.default_rng((SEED, index, 1))
        picks = [int(i) for i in rng.integers(len(self.latents), size=self.batch)]
        scenes = [self.world.single(i, SEED) for i in picks]
        captions = [self._caption(s, rng) for s in scenes]
        alike = [self.alike[self.world.carried(s, c)] for s, c in zip(scenes, captions)]
        references = [others[int(rng.integers(len(others)))] for others in alike]
        shown = torch.from_numpy(rng.random(self.batch) >= self.no_image)[:, None]
        noisy = int(self.noisy * self.batch)
        levels = np.concatenate([rng.uniform(demo_model.NOISY, 1000, noisy), rng.uniform(0, 1000, self.batch - noisy)])
        return Drawn(
            self.latents[picks].float(),
            torch.stack([self.tokens(c.text) for c in captions]),
            self.features[references] * shown,
            torch.from_numpy(levels).long(),
        )

    def _caption(self, scene, rng: np.random.Generator):
        draw = rng.random()
        if draw < self.empty:
            return self.world.no_caption
        return self.world.neutral_caption(scene, rng) if draw < self.empty + self.neutral else self.world.caption(scene, rng)


def train_adapter(predict: Callable, encode_text: Callable, parts: dict[str, torch.Tensor], draw: Batches, loop: Loop) -> Iterator[Step]:
    """`predict(noisy, levels, context, pairs) -> eps` is the frozen denoiser that sees the image's keys and values, one pair a
    layer, at weight 1; `encode_text(ids) -> context`."""
    adapter = recognize(parts, "The adapter in training")
    batches = demo_model.prefetch(draw, loop.done, loop.steps)

    def loss_of(index):
        drawn = next(batches)
        noisy, noise, a = demo_model.noised(drawn.latents, drawn.levels, index)
        with torch.autocast("cpu", torch.bfloat16):
            eps = predict(noisy, drawn.levels.float(), encode_text(drawn.ids), adapter.keys_values(drawn.features)).float()
        return demo_model.denoising_loss(eps, noise, a)

    return loop.run(loss_of)
