"""Concept Sliders on a MODEL: a LoRA trained at strength 1 and at -1, from a pair of prompts or from images of both ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch

from ....training.dreambooth import Batches, Preservation
from ....training.loop import Loop
from ....training.objectives import picks
from ....training.settings import Data, Settings, Validation
from ....training.slider import PromptSet, prompt_sets, target
from ....training.textual_inversion import captions_for, wordings
from ..gradients import trainable
from . import adapters, class_images, dreambooth, trainer
from .denoiser import Objective, TrainDenoiser
from .images import Images, all_or_none, images_of

STRENGTHS = (-1.0, 0.0, 1.0)  # of validation images
LEARN = ("prompts", "image pairs")
BATCH = 4  # images that the model samples at a time


@dataclass(frozen=True)
class Slider:
    """What is trained: of "prompts", a positive and a negative one with attributes to preserve and eta, `guidance`; of "image pairs", IMAGE
    batches `before`, of strength -1, and `after`, of strength 1.

    Without images for a pair of prompts the model samples `count` of `resolution` pixels a side.
    """

    learn: str = LEARN[0]
    positive: str = ""
    negative: str = ""
    preserve: tuple[str, ...] = ()
    guidance: float = 4.0
    count: int = 48
    resolution: int = 512
    before: Sequence[torch.Tensor] = ()
    after: Sequence[torch.Tensor] = ()

    def __str__(self) -> str:
        return self.learn


@dataclass(kw_only=True)
class Task(dreambooth.Task):
    """A training of a slider. Each step has two parts, the same samples at strength 1 and at -1."""

    @property
    def warning(self) -> str:
        return ""

    def loop(self) -> Loop:
        return super().loop(accumulate=2 * self.settings.accumulate)

    @contextmanager
    def around(self) -> Iterator[None]:
        with super().around():
            try:
                yield
            finally:
                self.adapters.act_at(1.0)

    def look(self, training: trainer.TrainingRun) -> None:
        """The validation images at each strength."""
        try:
            for strength in STRENGTHS:
                self.adapters.act_at(strength)
                super().look(training)
        finally:
            self.adapters.act_at(1.0)

    def loss(self, denoiser: TrainDenoiser, index: int) -> torch.Tensor:
        pair, strength = index // 2, 1.0 - 2.0 * (index % 2)
        self.adapters.act_at(strength)
        return self.errors(denoiser, self.batches.indices(pair)[0], pair * self.batches.total, strength).mean()

    def errors(self, denoiser: TrainDenoiser, chosen: Sequence[int], first: int, strength: float) -> torch.Tensor:
        """The losses (B,) of images at a strength, as samples `first`, `first` + 1, ... of the training."""
        raise NotImplementedError


@dataclass(kw_only=True)
class PromptTask(Task):
    """From a pair of prompts. Of images that the model sampled each three are those of a set; given ones take the sets by turns."""

    texts: tuple[PromptSet, ...]
    eta: float
    given: bool

    def errors(self, denoiser, chosen, first, strength):
        turns = picks(self.settings.seed + 2, first, len(chosen), len(self.texts)) if self.given else [i % self.images.originals // 3 for i in chosen]
        asked = [self.texts[i % len(self.texts)] for i in turns]

        def goal(x: torch.Tensor, sigma: torch.Tensor, part: Sequence[int]) -> torch.Tensor:
            every = zip(*(asked[i] for i in part))
            self.adapters.act_at(0.0)
            with torch.no_grad():  # one after the other: no more memory than the pass that is trained
                found = [denoiser.denoised(x, sigma, [self.rows[text] for text in texts]) for texts in every]
            self.adapters.act_at(strength)
            return target(*found, strength * self.eta)

        rows = [self.rows[prompts.neutral] for prompts in asked]
        return denoiser.errors(self.images, chosen, rows, self.objective, self.settings.seed, first, goal)


@dataclass(kw_only=True)
class ImageTask(Task):
    """From images of strength 1, and behind them those of strength -1 in the same order."""

    def errors(self, denoiser, chosen, first, strength):
        texts = self.sentences(chosen, first, denoiser.log_snr(self.objective, self.settings.seed, first, len(chosen)))
        shown = [i if strength > 0 else i + self.batches.instances for i in chosen]
        return denoiser.errors(self.images, shown, [self.rows[t] for t in texts], self.objective, self.settings.seed, first)


def learn(
    model, clip, vae, data: Data, prompt: str, slider: Slider, design: adapters.Design, objective: Objective, settings: Settings,
    validation: Validation, name: str, if_exists: str,
) -> trainer.TrainResult:  # fmt: skip
    """Trains a slider and saves it; see `trainer.run`. Nothing that the user gave is changed."""
    name = design.home.folder.choose(name, if_exists)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, prompt, slider, design, objective, settings, validation)
        return dreambooth.finish(task, model, name, if_exists == "continue")


def prepare(
    model, clip, vae, data: Data, prompt: str, slider: Slider, design: adapters.Design, objective: Objective, settings: Settings,
    validation: Validation,
) -> Task:  # fmt: skip
    """Checks everything that the user gave, encodes images and prompts, and samples images where a pair of prompts has none."""
    trainer.check_model(model)
    running, _ = trainable(model, None)
    layers = design.adapters(running, settings.seed)
    if slider.learn == LEARN[1]:
        data = replace(data, images=slider.after)
        kind, own, images = ImageTask, {}, _both(vae, data, slider.before, settings.seed)
        count, texts = len(images) // 2, _captions(data, prompt, images)
    else:
        texts = prompt_sets(prompt, slider.positive, slider.negative, slider.preserve)
        kind, own = PromptTask, dict(eta=slider.guidance, given=len(data) > 0)
        if not own["given"]:
            data = replace(data, images=_sampled(model, clip, vae, slider, texts, validation))
        images = images_of(vae, data, settings.seed)
        count = len(images)
        validation = replace(validation, prompt=texts[0].neutral) if validation.prompt == prompt else validation
    about = trainer.about(settings, objective, images, model, clip, design=asdict(design), texts=texts, dropout=data.dropout, slider=own)
    task = kind(
        model=running, vae=vae, images=images, objective=objective, settings=settings, validation=validation, about=about, clip=clip,
        adapters=layers, texts=texts, batches=Batches(settings.batch_size, settings.seed, count), preservation=Preservation(0.0),
        dropout=data.dropout, **own,
    )  # fmt: skip
    task.encode()
    layers.put_on(running)
    return task


def _sampled(model, clip, vae, slider: Slider, sets: Sequence[PromptSet], validation: Validation) -> list[torch.Tensor]:
    """Images of each prompt of each set, which the model samples by turns and which stay on disk for the next run.

    Those of both ends are there because samples come close to them while the slider acts.
    """
    blank = images_of(vae, Data([torch.zeros(1, slider.resolution, slider.resolution, 3)], fit="scale")).latents[0]
    order = class_images.Order(tuple(text for prompts in sets for text in prompts), slider.count, BATCH, validation)
    return class_images.made(model, clip, vae, order, blank.shape[1:])


def _both(vae, data: Data, before: Sequence[torch.Tensor], seed: int) -> Images:
    """The images of strength 1, then those of strength -1, changed alike."""
    ends = [images_of(vae, replace(data, images=images), seed) for images in (data.images, before)]
    counts = [end.originals for end in ends]
    if counts[0] != counts[1]:
        raise ValueError(f"There are {counts[1]} images before and {counts[0]} after. Give one after for each before, in the same order.")
    for number, pair in enumerate(zip(*(end.latents for end in ends)), 1):
        if pair[0].shape != pair[1].shape:
            raise ValueError(f"Images before and after of pair {number} differ in size. Give pairs of the same size.")
    latents = (*ends[0].latents, *ends[1].latents)
    masks = all_or_none(latents, (*ends[0].masks, *ends[1].masks))
    return replace(ends[0], latents=latents, masks=masks, hints=ends[0].hints * 2)


def _captions(data: Data, prompt: str, images: Images) -> tuple[tuple[str, ...], ...]:
    """The sentences of each pair: its caption, or the prompt."""
    given = captions_for(data.captions, len(data)) or (prompt,) * len(data)
    return tuple(tuple(images.with_hint(i, text) for text in wordings(given[i % images.originals])) for i in range(len(images) // 2))
