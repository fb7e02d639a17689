"""The settings that all trainers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .augmentation import Augmentation
from .channel_dropout import ChannelDropout


@dataclass(frozen=True)
class Data:
    """The training data: IMAGE batches, captions (one each, or one text of lines), MASK batches, and what is done to them."""

    images: Sequence[torch.Tensor]
    captions: Sequence[str] = ()
    masks: Sequence[torch.Tensor] = ()
    flip: bool = False
    caption_dropout: float = 0.0
    clean_caption_dropout: float = -1.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.images)

    @property
    def dropout(self) -> ChannelDropout:
        """How captions are dropped: at `caption_dropout`, at low-noise timesteps at `clean_caption_dropout` unless that is negative."""
        clean = self.clean_caption_dropout
        return ChannelDropout((self.caption_dropout,), None if clean < 0 else (clean,))


@dataclass(frozen=True)
class Settings:
    """How it is trained. The `learning_rate` of word vectors is as for SD1.5's; encoders with larger ones get it in proportion."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 10
    accumulate: int = 1
    average: float = 0.0
    checkpointing: str = "auto"


@dataclass(frozen=True)
class Validation:
    """Images to look at: `count` of one prompt at the end, and after every `every` steps (0 = at the end alone)."""

    prompt: str
    count: int = 2
    every: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
