"""DreamBooth on a MODEL: adapters, and a new word if asked for, from images of a subject and of its class to a LoRA file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import ClassVar

import torch

from ....guidance.errors import quoted
from ....training.channel_dropout import ChannelDropout
from ....training.dreambooth import Batches, Preservation, class_prompts, instance_prompts
from ....training.loop import Loop
from ....training.settings import Data, Settings, Validation
from ....training.textual_inversion import FAMILIAR_SCALE, Word, captions_for, check_placeholder, names, one_of, with_name, wordings
from .. import gradients
from ..gradients import trainable
from ..prompts import encoded
from . import adapters, class_images, new_words, trainer
from .denoiser import Objective, TrainDenoiser
from .embeddings import EMBEDDINGS
from .images import all_or_none, images_of
from .textual_inversion import check_validation
from .whole_weights import WholeWeights

LONGEST_WORD = 30  # characters of a word in the name of its file

@dataclass(frozen=True)
class Subject:
    """What is trained: the prompt of its images, and the new words in it, of one number of vectors, with their own learning rate."""

    prompt: str = ""
    words: tuple[Word, ...] = ()
    word_rate: float = 0.005


@dataclass(frozen=True)
class Class:
    """The class to preserve: prompts of it, one a line, images of it (IMAGE batches) or how many to sample, and how they count."""

    prompt: str = ""
    images: Sequence[torch.Tensor] = ()
    count: int = 100
    batch: int = 4
    preservation: Preservation = field(default_factory=Preservation)


NO_CLASS = Class(preservation=Preservation(0.0))


@dataclass(kw_only=True)
class Task(trainer.Task):
    """A training of adapters and perhaps a word. `texts` are the sentences of `images`, one or several for each: of the subject first, then
    of the class."""

    clip: object
    adapters: adapters.Adapters
    texts: tuple[tuple[str, ...], ...]
    batches: Batches
    preservation: Preservation
    dropout: ChannelDropout
    rows: dict[str, list] = field(default_factory=dict)  # the sentences that do not change, encoded
    advice: ClassVar[str] = (
        "raise learning_rate or steps. If that is not enough, train more of the model: Train LoRA (DreamBooth) with a higher rank, on more "
        "layers, or all weights."
    )

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        own = {} if self.word is None else {f"word.{k}": p for k, p in self.word.parameters.items()}
        return self.adapters.parameters | own

    @property
    def warning(self) -> str:
        return "" if self.batches.classes else "Trained without class images: other prompts may show it too. Connect Class Images to prevent that."

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.batches.total, *self.images.latents[0].shape[1:]])

    def around(self) -> AbstractContextManager:
        return self.adapters.as_forward_hooks(self.model)

    def loss(self, denoiser: TrainDenoiser, index: int) -> torch.Tensor:
        own, prior = self.batches.indices(index)
        chosen, total = [*own, *(self.batches.instances + p for p in prior)], self.batches.total
        texts = self.sentences(chosen, index * total, denoiser.log_snr(self.objective, self.settings.seed, index * total, total))
        rows = {text: self.row(text) for text in dict.fromkeys(texts)}
        errors = denoiser.errors(self.images, chosen, [rows[text] for text in texts], self.objective, self.settings.seed, index * total)
        return self.preservation.loss(errors, len(own))

    def sentences(self, chosen: Sequence[int], first: int, log_snr: torch.Tensor) -> list[str]:
        """The prompts of images, as samples `first`, `first` + 1, ... at log-SNR (B,): one of theirs, or an empty one
        where it is dropped."""
        draw = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + first + 3) % 2**63)
        keep = self.dropout.keep(log_snr, torch.rand(len(chosen), 1, dtype=torch.float64, generator=draw))[:, 0].tolist()
        which = torch.rand(len(chosen), generator=draw).tolist()
        return [one_of(self.texts[p], w) if kept else "" for p, kept, w in zip(chosen, keep, which)]

    def row(self, text: str) -> list:
        """A sentence as the denoiser takes it, with a graph where it holds the new word."""
        return self.rows[text] if text in self.rows else self.word.encode(text)

    def usual_rows(self, count: int) -> list:
        own = max(1, count * self.batches.size // self.batches.total)
        return [self.row(self.texts[0][0]) for _ in range(own)] + [self.row(self.texts[-1][0])] * (count - own)

    def encode(self) -> None:
        """Encodes once what does not change."""
        every = [text for choices in self.texts for text in choices]
        for text in dict.fromkeys((*every, "") if self.dropout.active else every):
            if self.word is None or not self.word.named(text):
                self.rows[text] = self.conditioning(text)[0]

    def conditioning(self, text: str) -> list:
        if self.word is not None:
            return self.word.conditioning(text)
        return gradients.run_in_inference_mode(encoded, self.clip, text)


def embeddings_of(name: str, placeholders: Sequence[str]) -> list[str]:
    """The names of the words' embeddings: that of the file for one, with the word behind it for several."""
    if len(placeholders) < 2:
        return [name] * len(placeholders)
    plain = [re.sub(r"[^A-Za-z0-9_-]", "", p) for p in placeholders]
    fit = all(0 < len(text) <= LONGEST_WORD for text in plain)
    differ = fit and len({text.casefold() for text in plain}) == len(plain)  # as files where case does not count
    return [f"{name}-{text if differ else i}" for i, text in enumerate(plain, 1)]


def learn(
    model, clip, vae, data: Data, subject: Subject, prior: Class, design, objective: Objective, settings: Settings, validation: Validation,
    name: str, if_exists: str,
) -> trainer.TrainResult:  # fmt: skip
    """Trains a subject and saves it; see `trainer.run`. Nothing that the user gave is changed.

    `design` says which weights are trained: `design.adapters(model, seed)` gives the adapters.
    """

    def embedding(name: str):
        return next(filter(None, map(EMBEDDINGS.taken, embeddings_of(name, [w.placeholder for w in subject.words]))), None)

    name = design.home.folder.choose(name, if_exists, embedding)  # those of its words' embeddings must be free too
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, subject, prior, design, objective, settings, validation)
        return finish(task, model, name, if_exists == "continue")


def finish(task: Task, model, name: str, resume: bool) -> trainer.TrainResult:
    """Runs a task; the MODEL that it returns is the given one with the trained weights."""
    found: dict[str, torch.Tensor] = {}
    text, concepts = task.texts[0][0], {} if task.word is None else task.word.concepts
    named = dict(zip(concepts, embeddings_of(name, list(concepts))))

    def write(loop: Loop) -> str:
        found.update(task.adapters.tensors())
        rows = {named[p]: concept.tensors() for p, concept in concepts.items()}
        facts = {**task.facts(loop), "instance_prompt": text}
        task.adapters.save(model, name, found, rows, facts)
        for word, own in rows.items():
            EMBEDDINGS.save(word, own, {**facts, "format": "embedding"})
        return f"{name}.safetensors"

    try:
        loop = trainer.run(task, task.adapters.folder.state(name), write, resume)
    finally:
        task.adapters.take_off(task.model)
    word = " ".join(f"embedding:{n}" for n in named.values()) or text
    texts = [text for choices in task.texts[: task.batches.instances] for text in choices]
    sentences = tuple(_written(text, named) for text in (by_turns(texts, list(named)) if named else dict.fromkeys(texts)))
    return task.result(name, loop, model=adapters.patched(model, found), lora=found, word=word, sentences=sentences)


def by_turns(texts: Sequence[str], placeholders: Sequence[str]) -> list[str]:
    """The texts that name one of the words, each once: the first of every word, the second of every word, and so on."""
    own = [[text for text in dict.fromkeys(texts) if names(text, placeholder)] for placeholder in placeholders]
    return list(dict.fromkeys(text for turn in zip_longest(*own) for text in turn if text is not None))


def _written(text: str, named: dict[str, str]) -> str:
    """A sentence with the names of the words' files instead of their placeholders."""
    for placeholder, name in named.items():
        text = " ".join(with_name(text, placeholder, f"embedding:{name}").split())
    return text


def prepare(
    model, clip, vae, data: Data, subject: Subject, prior: Class, design, objective: Objective, settings: Settings, validation: Validation
) -> Task:
    """Checks everything that the user gave, encodes images and sentences, and samples class images that are missing."""
    trainer.check_model(model)
    if not len(data):
        raise ValueError("There are no images of the subject. Connect an IMAGE batch, or a node that loads a folder of images.")
    captions = captions_for(data.captions, len(data))
    own = [wordings(text) for text in instance_prompts(subject.prompt, captions, len(data))]
    validation = _checked(clip, subject, validation, [text for choices in own for text in choices])
    active = prior.preservation.weight > 0
    class_texts = class_prompts(prior.prompt, *(w.placeholder for w in subject.words)) if active else ()
    if active and not (prior.images or prior.count):
        raise ValueError("There are no class images. Connect some to Class Images, set its class_count to sample them, or disconnect it.")
    running, own_clip = trainable(model, clip if subject.words else None)
    if isinstance(design, WholeWeights):
        design.check(running, settings.optimizer, settings.average)
    layers = design.adapters(running, settings.seed)
    rate = settings.learning_rate
    pace = subject.word_rate / FAMILIAR_SCALE / rate if rate else 1.0
    word = new_words.start(own_clip, subject.words, settings.seed, pace) if subject.words else None
    images = images_of(vae, data, settings.seed)
    texts, count = tuple(tuple(images.with_hint(p, t) for t in own[p % images.originals]) for p in range(len(images))), len(images)
    if active:
        class_batches = prior.images or class_images.made(
            model, clip, vae, class_images.Order(class_texts, prior.count, prior.batch, validation), images.latents[0].shape[1:]
        )
        others = images_of(vae, Data(class_batches, fit=data.fit))
        latents = (*images.latents, *others.latents)
        images = replace(images, latents=latents, masks=all_or_none(latents, (*images.masks, *others.masks)))
        texts += tuple((class_texts[i % len(class_texts)],) for i in range(len(others)))
    batches = Batches(settings.batch_size, settings.seed, count, len(images) - count, prior.preservation.ratio)
    about = trainer.about(
        settings, objective, images, model, clip, design=asdict(design), texts=texts, prior=asdict(prior.preservation) if active else "none",
        words=[asdict(word) for word in subject.words], dropout=data.dropout,
    )  # fmt: skip
    task = Task(
        model=running, vae=vae, images=images, objective=objective, settings=settings, validation=validation, about=about,
        clip=own_clip or clip, adapters=layers, word=word, texts=texts, batches=batches, preservation=prior.preservation,
        dropout=data.dropout,
    )  # fmt: skip
    task.encode()
    layers.put_on(running)
    return task


def _checked(clip, subject: Subject, validation: Validation, texts: Sequence[str]) -> Validation:
    """The validation with its prompt filled in. Raises ValueError on a new word that cannot be used or that no text names."""
    placeholders = [w.placeholder for w in subject.words]
    if not placeholders:
        return validation
    for placeholder in placeholders:
        check_placeholder(placeholder, lambda text: new_words.is_word(clip, text))
        if placeholders.count(placeholder) > 1:
            raise ValueError(f"The placeholder {quoted(placeholder)} stands for two concepts. Give each a word of its own.")
    if len(placeholders) == 1 and not names(subject.prompt, placeholders[0]):
        raise ValueError(
            f"The instance prompt {quoted(subject.prompt)} lacks the new word. Write {quoted(placeholders[0])} where it belongs."
        )
    for placeholder in placeholders:
        if not any(names(text, placeholder) for text in texts):
            raise ValueError(
                f"No sentence names {quoted(placeholder)}, so it would not be trained. Write it in the captions of the images that show it, as in "
                f"{quoted(f'{texts[0]}, {placeholder}')}, or leave the captions out."
            )
    return check_validation(validation, next((p for p in placeholders if names(validation.prompt, p)), placeholders[0]))
