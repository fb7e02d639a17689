"""DreamBooth (arXiv 2208.12242): a subject trained from a few images, while images of its class keep the class as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..guidance.errors import check_choice, quoted
from .objectives import picks
from .textual_inversion import names

RATIOS = ("1:1", "1:2")


@dataclass(frozen=True)
class Preservation:
    """The prior-preservation loss, equation 2: `weight` is its lambda, `ratio` how many class images go with each instance image."""

    weight: float = 1.0
    ratio: int = 1

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"The prior weight is {self.weight}; give 0 (no class images) or more. 1 in the paper.")
        if self.ratio < 1:
            raise ValueError(f"There are {self.ratio} class images for each instance image; give 1 or more. Typical: 1 or 2.")

    def loss(self, errors: torch.Tensor, instances: int) -> torch.Tensor:
        """The mean of the first `instances` errors of (B,), and `weight` times the mean of the others, those of the class, if any."""
        own, prior = errors[:instances].mean(), errors[instances:]
        return own + self.weight * prior.mean() if len(prior) else own


@dataclass(frozen=True)
class Batches:
    """Which images the batches hold: `size` of `instances` images, and `ratio` times as many of `classes` images (0 = none)."""

    size: int
    seed: int
    instances: int
    classes: int = 0
    ratio: int = 1

    @property
    def total(self) -> int:
        """Samples in a batch."""
        return self.size * (1 + (self.ratio if self.classes else 0))

    def indices(self, index: int) -> tuple[list[int], list[int]]:
        """Numbers of the instance and of the class images in batch `index`; each comes again only after all others."""
        count = self.total - self.size
        prior = picks(self.seed + 1, index * count, count, self.classes) if count else []
        return picks(self.seed, index * self.size, self.size, self.instances), prior


def ratio_of(text: str) -> int:
    """Class images for each instance image, of "1:1" or "1:2"."""
    check_choice("ratio", text, RATIOS)
    return int(text.split(":")[1])


def class_prompts(text: str, *placeholders: str) -> tuple[str, ...]:
    """The class prompts of a text, one a line. Raises ValueError on none and on one with a new word, which only the instance has."""
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise ValueError("The class prompt is empty. Say what kind of thing it is, as in 'a photo of a dog', or disconnect Class Images.")
    for line in lines:
        for placeholder in filter(None, placeholders):
            if names(line, placeholder):
                raise ValueError(
                    f"The class prompt {quoted(line)} names {quoted(placeholder)}, which stands for the subject alone. Take it out."
                )
    return lines


def instance_prompts(prompt: str, captions: Sequence[str], images: int) -> tuple[str, ...]:
    """The sentence of each instance image: its caption, or the instance prompt."""
    found = tuple(captions[i].strip() or prompt if captions else prompt for i in range(images))
    if not all(text.strip() for text in found):
        raise ValueError("The instance prompt is empty. Name the subject by a rare word and its class, as in 'a photo of sks dog'.")
    return found
