"""An IP-Adapter of the demo world, and the small image encoder through which it sees (arXiv 2308.06721).

The encoder is ComfyUI's CLIP Vision network at a small size. It learns to name the one thing of a scene; then it is frozen, as
the denoiser is, and the adapter learns to draw that thing. The reference shows it in another scene: other background, place and
size. So what the image carries is the look of the thing, and the text keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.attention.ip_adapter import Pair, recognize
from controlled_diffusion.training.demo.config import VISION_CONFIG
from controlled_diffusion.training.loop import Loop, Step

from demo import model as demo_model
from demo import world

SEED, TOKENS, SHIFT = 90, 3, 3
LOOKS = {"shape": world.SHAPES, "color": tuple(world.COLORS), "texture": world.TEXTURES}
NAMED = {**LOOKS, "background": tuple(world.BACKGROUNDS), "size": tuple(world.RADII)}  # what the encoder learns to tell


def scene(index: int, seed: int = SEED) -> world.Scene:
    """A scene of one thing; other seeds give held-out sets."""
    return world.random_scene(np.random.default_rng((seed, index)), pair_share=0.0)


def looks(of: world.Scene) -> tuple[str, ...]:
    """What the image has to carry."""
    return tuple(getattr(of.things[0], name) for name in LOOKS)


def labels(scenes: Sequence[world.Scene]) -> torch.Tensor:
    """The place of each fact in its list in NAMED, (N, 5)."""
    rows = [[options.index(s.background if k == "background" else getattr(s.things[0], k)) for k, options in NAMED.items()] for s in scenes]
    return torch.tensor(rows)


def neutral_caption(of: world.Scene, rng: np.random.Generator) -> str:
    """A true caption that names neither color, shape nor texture."""
    noun = ("something", "a thing", "an object", "a picture of something")[int(rng.integers(4))]
    places = dict(left="on the left", right="on the right", top="at the top", bottom="at the bottom", center="in the center")
    where = f" {places[of.layout]}" if rng.random() < 0.6 else ""
    ground = (f" on a {of.background} background", f", {of.background} background", "")[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
    return noun + where + ground


def new_heads() -> dict[str, torch.nn.Parameter]:
    """One linear reading of the embedding for each fact; only used in training."""
    width = VISION_CONFIG["projection_dim"]
    draw = torch.Generator().manual_seed(SEED)
    return {k: torch.nn.Parameter(torch.randn(len(v), width, generator=draw) / width**0.5) for k, v in NAMED.items()}


def naming_loss(embeds: torch.Tensor, heads: dict[str, torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the facts; `embeds` (B, F), `truth` (B, 5)."""
    return sum(F.cross_entropy(embeds @ heads[k].T, truth[:, i]) for i, k in enumerate(NAMED)) / len(NAMED)


def train_encoder(
    embed: Callable, heads: dict[str, torch.Tensor], images: torch.Tensor, truth: torch.Tensor, loop: Loop, *, batch: int
) -> Iterator[Step]:
    """`embed(pixels) -> (B, F)`; `images` (N, 3, h, w) as the encoder takes them, mirrored at random (every look is symmetric) and moved
    by up to `SHIFT` pixels, a batch as one."""

    def loss_of(index):
        rng = np.random.default_rng((SEED, index))
        picks = torch.from_numpy(rng.integers(len(images), size=batch))
        mirrored = torch.from_numpy(rng.random(batch) < 0.5).view(-1, 1, 1, 1)
        seen = images[picks].float().roll(tuple(rng.integers(-SHIFT, SHIFT + 1, size=2).tolist()), (-2, -1))
        return naming_loss(embed(torch.where(mirrored, seen.flip(-1), seen)), heads, truth[picks])

    return loop.run(loss_of)


def spoken(of: world.Scene) -> str:
    """The look of its thing, as captions name it."""
    thing = of.things[0]
    return " ".join(w for w in ("a", thing.texture, thing.color, thing.shape) if w != "plain")


def told(scenes: Sequence[world.Scene], tokens: demo_model.Tokens, encode_text: Callable) -> torch.Tensor:
    """What the text says of each scene's look: its last tokens before the end, (N, TOKENS, width)."""
    texts = {}
    for text in {spoken(s) for s in scenes}:
        ids = tokens(text)
        end = ids.tolist().index(tokens.end)
        texts[text] = encode_text(ids[None])[0, end - TOKENS : end]
    return torch.stack([texts[spoken(s)] for s in scenes])


def start(layers: Sequence[Pair], features: torch.Tensor, words: torch.Tensor, norm: Pair) -> dict[str, torch.nn.Parameter]:
    """Start values by the names of the published base layout, which draw what they see from the first step on.

    Keys and values are the text's, from (to_k, to_v) of each layer, and tokens are the words for what is seen: the projection is the
    best linear map from `features` (N, F) of images to the text's tokens `words` (N, TOKENS, width), whose last norm is `norm`.
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
    """Draws a target, a caption and a reference of the same look, each by its number.

    `neutral` and `empty` are shares of captions that name no look and that say nothing; `no_image` of references left out, as
    in the paper; `noisy` of levels at which shapes are decided.
    """

    def __init__(self, latents: torch.Tensor, features: torch.Tensor, tokens: demo_model.Tokens, batch: int):
        self.latents, self.features, self.tokens, self.batch = latents, features, tokens, batch
        self.neutral, self.empty, self.no_image, self.noisy = 0.6, 0.15, 0.1, 0.5
        self.alike: dict[tuple, list[int]] = {}
        for i in range(len(latents)):
            self.alike.setdefault(looks(scene(i)), []).append(i)

    def __call__(self, index: int) -> Drawn:
        rng = np.random.default_rng((SEED, index, 1))
        picks = [int(i) for i in rng.integers(len(self.latents), size=self.batch)]
        texts = [self._caption(scene(i), rng) for i in picks]
        alike = [self.alike[looks(scene(i))] for i in picks]
        references = [others[int(rng.integers(len(others)))] for others in alike]
        shown = torch.from_numpy(rng.random(self.batch) >= self.no_image)[:, None]
        noisy = int(self.noisy * self.batch)
        levels = np.concatenate([rng.uniform(demo_model.NOISY, 1000, noisy), rng.uniform(0, 1000, self.batch - noisy)])
        return Drawn(
            self.latents[picks].float(),
            torch.stack([self.tokens(t) for t in texts]),
            self.features[references] * shown,
            torch.from_numpy(levels).long(),
        )

    def _caption(self, of: world.Scene, rng: np.random.Generator) -> str:
        draw = rng.random()
        if draw < self.empty:
            return ""
        return neutral_caption(of, rng) if draw < self.empty + self.neutral else world.random_caption(of, rng).text


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
