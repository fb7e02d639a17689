"""InstructPix2Pix: from pairs of images and instructions to a model that follows them (arXiv 2211.09800).

This file knows tensors: how the image's channels are added to a denoiser, what of it is trained, and which generated pairs are worth
learning from.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..guidance.errors import check_choice, quoted
from .channel_dropout import ChannelDropout, JointDropout, rate_for

FIRST = "input_blocks.0.0.weight"  # of the convolution that takes the noisy latent, in UNets as Stable Diffusion names their weights
DROPOUT = 0.05  # of the image alone, of both, and of the instruction alone
WHAT = ("attention", "every layer", "all weights")
DROPPED = ("jointly", "independently")
_NAME = r"([^\s{}=|,]+)"  # of words to choose, in any script
_ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)\.weight$")


def widened(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """A convolution's weight (out, in, kh, kw) with more input channels, all zero: what comes in there changes nothing yet."""
    if weight.shape[1] > inputs:
        raise ValueError(f"The convolution takes {weight.shape[1]} channels already and cannot be widened to {inputs}.")
    wide = weight.new_zeros(weight.shape[0], inputs, *weight.shape[2:])
    wide[:, : weight.shape[1]] = weight
    return wide


class Whole(torch.nn.Module):
    """What is added to a weight: a difference of its shape, zero at first."""

    def __init__(self, shape: torch.Size, device: torch.device | None = None):
        super().__init__()
        self.diff = torch.nn.Parameter(torch.zeros(shape, device=device))

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight.float() + self.diff).to(weight.dtype)


class LowRank(torch.nn.Module):
    """What is added to a weight: up @ down * alpha / rank, zero at first (LoRA, arXiv 2106.09685, section 4.1).

    A convolution's weight (out, in, kh, kw) counts as a matrix (out, in * kh * kw). A rank larger than the matrix raises ValueError.
    """

    def __init__(self, shape: torch.Size, rank: int, alpha: float, generator: torch.Generator, device: torch.device | None = None):
        super().__init__()
        rows, columns = shape[0], math.prod(shape[1:])
        if not 1 <= rank <= _most(shape):
            raise ValueError(f"The rank is {rank}, but a layer of {rows} x {columns} has ranks from 1 to {_most(shape)}; typical: 8–64.")
        down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        self.down = torch.nn.Parameter(down.to(device))
        self.up = torch.nn.Parameter(torch.zeros(rows, rank, device=device))
        self.scale = alpha / rank

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight.float() + (self.up @ self.down * self.scale).view(weight.shape)).to(weight.dtype)


def added_weights(
    shapes: dict[str, torch.Size], what: str, rank: int, alpha: float, seed: int, device: torch.device | None = None
) -> dict[str, torch.nn.Module]:
    """The trained weights, by the name of the weight that each is added to.

    The first convolution as a whole, always; and of the others, by `what`: "attention" and "every layer" get a LoRA, of projections of
    attention or of all matrices and convolutions, those that lack the rank at their own; "all weights" are trained themselves. A rank that no
    layer has raises ValueError.
    """
    check_choice("train", what, WHAT)
    generator = torch.Generator().manual_seed(seed % 2**63)
    made: dict[str, torch.nn.Module] = {FIRST: Whole(shapes[FIRST], device)}
    others = {k: s for k, s in shapes.items() if k != FIRST}
    if what == "all weights":
        return made | {k: Whole(s, device) for k, s in others.items()}
    chosen = {k: s for k, s in others.items() if (_ATTENTION.search(k) if what == "attention" else len(s) >= 2)}
    largest = max(map(_most, chosen.values()), default=rank)
    if rank > largest:
        raise ValueError(f"The rank is {rank}, but the layers have ranks from 1 to {largest} at most; typical: 8–64.")
    for name, shape in chosen.items():
        own = rank if what == "attention" else min(rank, _most(shape))
        made[name] = LowRank(shape, own, alpha * own / rank, generator, device)
    return made


def _most(shape: torch.Size) -> int:
    """The largest rank that a weight can have."""
    return min(shape[0], math.prod(shape[1:]))


def dropout_of(kind: str, share: float, clean_image: float = -1.0, clean_text: float = -1.0) -> ChannelDropout | JointDropout:
    """The dropout of (image, instruction).

    "jointly": the image alone, both, and the instruction alone in a `share` of the samples each, as in the paper. "independently": each by
    itself, at the rate at which both are missing in a `share` of the samples; at low noise at rates of its own unless these are negative.
    """
    check_choice("channel_dropout", kind, DROPPED)
    clean = clean_image, clean_text
    if kind == "jointly":
        if max(clean) >= 0:
            raise ValueError(
                f"Dropout rates at low noise are given ({clean_image:g}, {clean_text:g}), which need image and "
                "instruction dropped separately. Choose 'independently', or set both to -1."
            )
        return JointDropout(share)
    rate = rate_for(share, 2)
    return ChannelDropout((rate, rate), tuple(rate if c < 0 else c for c in clean) if max(clean) >= 0 else None)


@dataclass(frozen=True)
class Draw:
    """How a candidate pair is drawn: the seed of its noises, the share of the sampling in which self-attention is shared, and cfg."""

    seed: int
    share: float
    cfg: float


def draws(
    seed: int, pair: PromptPair, count: int, share: tuple[float, float] = (0.1, 0.9), cfg: tuple[float, float] = (7.5, 15.0)
) -> list[Draw]:
    """The candidates of a prompt pair, uniform in both ranges: section 3.1.2 of the paper, and its code for the cfg.

    They depend on the pair itself, not on its place in a list.
    """
    for name, (low, high) in (("share", share), ("cfg", cfg)):
        if not low <= high:
            raise ValueError(f"The {name} runs from {low:g} to {high:g}; the first must not be larger.")
    rng = np.random.default_rng((seed, zlib.crc32(repr(pair).encode())))
    return [Draw(int(rng.integers(2**48)), float(rng.uniform(*share)), float(rng.uniform(*cfg))) for _ in range(count)]


@dataclass(frozen=True)
class Likeness:
    """What CLIP says of pairs, (B,) each, as cosines: of the two images; of how images and captions change; and the lower one of each
    image with its caption."""

    images: torch.Tensor
    direction: torch.Tensor
    captions: torch.Tensor


def likeness(before: torch.Tensor, after: torch.Tensor, text_before: torch.Tensor, text_after: torch.Tensor) -> Likeness:
    """From CLIP embeddings of images (B, D) and captions (D,) or (B, D). The direction is that of arXiv 2108.00946, equation 3."""
    before, after, text_before, text_after = (F.normalize(e.float(), dim=-1) for e in (before, after, text_before, text_after))
    direction = F.cosine_similarity(after - before, (text_after - text_before).expand_as(before), dim=-1)
    captions = torch.minimum((before * text_before).sum(-1), (after * text_after).sum(-1))
    return Likeness((before * after).sum(-1), direction, captions)


@dataclass(frozen=True)
class Filter:
    """What makes a candidate worth keeping: images alike, changed as the captions say, and like their captions."""

    images: float = 0.7
    direction: float = 0.2
    captions: float = 0.2

    def best(self, found: Likeness, top: int) -> list[int]:
        """The candidates to keep, at most `top`, the one whose direction fits best first."""
        good = (found.images >= self.images) & (found.direction >= self.direction) & (found.captions >= self.captions)
        return sorted(good.nonzero().flatten().tolist(), key=lambda i: -float(found.direction[i]))[:top]


@dataclass(frozen=True)
class PlainFilter:
    """The same without CLIP: something has changed, but not everything.

    A pixel has changed where a color differs by more than `threshold`; the share of them has to be in [least, most].
    """

    least: float = 0.01
    most: float = 0.5
    threshold: float = 0.1

    def changed(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The share of pixels that differ, (B,), of images (B, H, W, C) in [0, 1]."""
        return ((before - after).abs().amax(-1) > self.threshold).float().flatten(1).mean(1)

    def best(self, changed: torch.Tensor, top: int) -> list[int]:
        """The candidates to keep, at most `top`, the one that changed least first."""
        good = ((changed >= self.least) & (changed <= self.most)).nonzero().flatten().tolist()
        return sorted(good, key=lambda i: float(changed[i]))[:top]


@dataclass(frozen=True)
class PromptPair:
    """Captions before and after an edit, and the instruction that leads from one to the other."""

    before: str
    after: str
    instruction: str


@dataclass(frozen=True)
class Shard:
    """The part of all prompt pairs that one of `count` servers draws. A pair belongs to one shard by itself, whatever else is in the list."""

    number: int = 1
    count: int = 1

    def __post_init__(self):
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shard is {self.number} of {self.count}; give a number from 1 to shards.")

    def __contains__(self, pair: PromptPair) -> bool:
        return zlib.crc32(repr(pair).encode()) % self.count == self.number - 1

    @property
    def suffix(self) -> str:
        """What names of its files end with."""
        return "" if self.count == 1 else f"-{self.number}of{self.count}"


def prompt_pairs(text: str) -> list[PromptPair]:
    """Pairs from lines `caption => caption after | instruction`; empty lines and those that begin with # are left out.

    A line may hold `{x}` where a line before says `x = one, two, three`; it then means every choice. One name is one choice in a
    line, and two names never choose the same word. A line that lacks a part raises ValueError with its number.
    """
    words, pairs = {}, []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if "=>" not in line and (named := re.fullmatch(rf"{_NAME}\s*=\s*(.+)", line)):
            words[named[1]] = [w.strip() for w in named[2].split(",") if w.strip()]
            continue
        pairs += [_pair(filled, number) for filled in _filled(line, words, number)]
    if not pairs:
        raise ValueError("There is no prompt pair. Write one a line: a red circle => a blue circle | make it blue")
    return list(dict.fromkeys(pairs))


def _filled(line: str, words: dict[str, list[str]], number: int) -> list[str]:
    """A line with every choice of the words that it names; choices of different names are never the same word."""
    names = list(dict.fromkeys(re.findall(rf"\{{{_NAME}\}}", line)))
    unknown = [n for n in names if n not in words]
    if unknown:
        raise ValueError(f"Line {number} names {{{unknown[0]}}}, which no line defines. Write one before it: {unknown[0]} = one, two")
    filled: list[dict[str, str]] = [{}]
    for name in names:
        filled = [{**f, name: w} for f in filled for w in words[name] if w not in f.values()]
    return [re.sub(rf"\{{{_NAME}\}}", lambda m, f=f: f[m[1]], line) for f in filled]


def _pair(line: str, number: int) -> PromptPair:
    found = re.fullmatch(r"(.+?)=>(.+)\|(.+)", line)
    parts = [p.strip() for p in found.groups()] if found else []
    if not parts or not all(parts):
        raise ValueError(
            f"Line {number} is no prompt pair: {quoted(line)}. Write: caption => caption after the edit | instruction, "
            "as in 'a red circle => a blue circle | make it blue'."
        )
    return PromptPair(*parts)
