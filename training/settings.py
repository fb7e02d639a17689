"""The settings that all trainers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .augmentation import Augmentation
from .channel_dropout import ChannelDropout


@dataclass(frozen=True)
class Data:
    """The training data: IMAGE batches, captions (one each, or one text of lines), MASK batches, and what is done to them.

    A negative `caption_dropout` is the trainer's own. `fit`: what becomes of images whose sides the VAE cannot take, see
    `nodes.host.latents.FITS`.
    """

    images: Sequence[torch.Tensor] = ()
    captions: Sequence[str] = ()
    masks: Sequence[torch.Tensor] = ()
    flip: bool = False
    caption_dropout: float = -1.0
    clean_caption_dropout: float = -1.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    fit: str = "pad"

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.images)

    @property
    def dropout(self) -> ChannelDropout:
        """How captions are dropped: at `caption_dropout`, at low-noise timesteps at `clean_caption_dropout` unless that is negative."""
        clean = self.clean_caption_dropout
        return ChannelDropout((max(0.0, self.caption_dropout),), None if clean < 0 else (clean,))


@dataclass(frozen=True)
class TrainingOptions:
    """How the optimizer takes its steps, and at which noise levels. A negative `warmup` or `average` is the trainer's own."""

    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = -1
    accumulate: int = 1
    average: float = -1.0
    checkpointing: str = "auto"
    timesteps: str = "auto"
    weighting: str = "own"
    gamma: float = 5.0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        start, end = self.start_percent, self.end_percent
        if not 0.0 <= start < end <= 1.0:
            raise ValueError(
                f"start_percent is {start:g} and end_percent {end:g}; give 0 <= start_percent < end_percent <= 1, 0 and 1 for all noise levels."
            )


@dataclass(frozen=True)
class Settings:
    """How it is trained. The `learning_rate` of word vectors is as for SD1.5's; encoders with larger ones get it in proportion."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    optimizer: str = TrainingOptions.optimizer
    schedule: str = TrainingOptions.schedule
    warmup: int = 10
    accumulate: int = TrainingOptions.accumulate
    average: float = 0.0
    checkpointing: str = TrainingOptions.checkpointing


@dataclass(frozen=True)
class Validation:
    """Images to look at: `count` of one prompt at the end, and after every `every` steps (0 = at the end alone).

    Instruction models have two scales: `cfg` is that of the instruction, `image_scale` that of the image.
    """

    prompt: str = ""
    count: int = 2
    every: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    image_scale: float = 1.5
