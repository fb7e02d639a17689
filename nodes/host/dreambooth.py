"""DreamBooth on a MODEL: adapters, and a new word if asked for, from pictures of a subject and of its class to a LoRA file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace

import torch

from ...training.dreambooth import Batches, Preservation, class_prompts, instance_prompts
from ...training.loop import Loop
from ...training.textual_inversion import FAMILIAR_SCALE, captions_for, check_placeholder, names, with_name
from . import adapters, class_pictures, embeddings, gradients, naming, trainers, words
from .textual_inversion import Word, check_validation, new_word
from .trainers import Data, Settings, Validation
from .training import Ground, Objective, Pictures, pictures_of, trainable


@dataclass(frozen=True)
class Subject:
    """What is learnt: the sentence of its pictures, and the new word in it with its own learning rate, or None for known words."""

    prompt: str
    word: Word | None = None
    word_rate: float = 0.005


@dataclass(frozen=True)
class Class:
    """What is kept: sentences of the class, one a line, pictures of it (IMAGE batches) or how many to sample, and how they count."""

    prompt: str = ""
    images: Sequence[torch.Tensor] = ()
    count: int = 0
    batch: int = 4
    preservation: Preservation = field(default_factory=Preservation)


@dataclass(kw_only=True)
class Task(trainers.Task):
    """A training of adapters and perhaps a word. `texts` are the sentences of `pictures`: of the subject first, then of the class."""

    clip: object
    adapters: adapters.Adapters
    word: words.NewWord | None
    texts: tuple[str, ...]
    batches: Batches
    preservation: Preservation
    rows: dict[str, list] = field(default_factory=dict)  # the sentences that do not change, encoded

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        own = {} if self.word is None else {f"word.{k}": p for k, p in self.word.concept.parameters.items()}
        return self.adapters.parameters | own

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        return () if self.word is None else (self.word.clip.cond_stage_model,)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.batches.total, *self.pictures.latents[0].shape[1:]])

    def around(self) -> AbstractContextManager:
        return self.adapters.beside(self.model)

    def after_step(self) -> None:
        if self.word is not None:
            self.word.concept.control()

    def loss(self, ground: Ground, index: int) -> torch.Tensor:
        own, prior = self.batches.of(index)
        chosen, total = [*own, *(self.batches.instances + p for p in prior)], self.batches.total
        rows = {text: self.row(text) for text in dict.fromkeys(self.texts[p] for p in chosen)}
        given = [rows[self.texts[p]] for p in chosen]
        errors = ground.errors(self.pictures, chosen, given, self.objective, self.settings.seed, index * total)
        return self.preservation.loss(errors, len(own))

    def row(self, text: str) -> list:
        """A sentence as the denoiser takes it, with a graph where it holds the new word."""
        return self.rows[text] if text in self.rows else self.word.encode(text)

    def usual_rows(self, count: int) -> list:
        return [self.row(self.texts[0])] * count

    def encode(self) -> None:
        """Encodes once what does not change."""
        for text in dict.fromkeys(self.texts):
            if self.word is None or not names(text, self.word.placeholder):
                self.rows[text] = gradients.ordinary(self.conditioning(text)[0])

    def conditioning(self, text: str) -> list:
        if self.word is not None:
            return self.word.conditioning(text)
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text), show_pbar=False)


@dataclass(frozen=True)
class Learnt:
    """The MODEL with what is learnt on it, the LoRA and its name, what to write in a prompt, the sentences of the subject's pictures so
    written, the loss curve and pictures or None."""

    model: object
    lora: dict[str, torch.Tensor]
    name: str
    word: str
    sentences: tuple[str, ...]
    curve: torch.Tensor
    pictures: torch.Tensor | None


def choose(name: str, if_exists: str, with_word: bool) -> str:
    """The name to save under; see `naming.choose`. With a word, the name of its embedding must be free too."""

    def existing(name: str):
        return adapters.existing(name) or (embeddings.existing(name) if with_word else None)

    return naming.choose(adapters.KIND, name, if_exists, existing)


def learn(
    model,
    clip,
    vae,
    data: Data,
    subject: Subject,
    kept: Class,
    design,
    objective: Objective,
    settings: Settings,
    validation: Validation,
    name: str,
    if_exists: str,
) -> Learnt:
    """Learns a subject and saves it; see `trainers.run`. Nothing that the user gave is changed.

    `design` says what is learnt: `design.adapters(model, seed)` gives the adapters.
    """
    name = choose(name, if_exists, subject.word is not None)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, subject, kept, design, objective, settings, validation)
        return finish(task, model, name, if_exists == "continue")


def finish(task: Task, model, name: str, resume: bool) -> Learnt:
    """Runs a task; the MODEL that it returns is the given one with what is learnt."""
    found: dict[str, torch.Tensor] = {}
    text = task.texts[0]

    def write(loop: Loop) -> str:
        found.update(task.adapters.tensors())
        rows = {} if task.word is None else task.word.concept.tensors()
        facts = {**task.facts(loop), "instance_prompt": text}
        adapters.save(name, found, rows, {**facts, "format": "lora"})
        if rows:
            embeddings.save(name, rows, {**facts, "format": "embedding"})
        return f"{name}.safetensors"

    try:
        loop = trainers.run(task, naming.state_of(adapters.KIND, name), write, resume)
    finally:
        task.adapters.take_off(task.model)
    word = text if task.word is None else f"embedding:{name}"
    pictures = torch.cat(task.looks) if task.looks else None
    sentences = tuple(dict.fromkeys(task.texts[: task.batches.instances]))
    if task.word is not None:
        sentences = tuple(" ".join(with_name(text, task.word.placeholder, word).split()) for text in sentences)
    return Learnt(adapters.patched(model, found), found, name, word, sentences, trainers.loss_curve(loop), pictures)


def prepare(
    model, clip, vae, data: Data, subject: Subject, kept: Class, design, objective: Objective, settings: Settings,
    validation: Validation,
) -> Task:  # fmt: skip
    """Checks everything that the user gave, encodes pictures and sentences, and samples class pictures that are missing."""
    validation = _checked(clip, subject, validation)
    captions = captions_for(data.captions, len(data)) if len(data) else ()
    own = instance_prompts(subject.prompt, captions, len(data))
    active = kept.preservation.weight > 0
    prior = class_prompts(kept.prompt, subject.word.placeholder if subject.word else "") if active else ()
    if active and not (kept.images or kept.count):
        raise ValueError("There are no class pictures. Connect some, set class_count to sample them, or set prior_weight to 0.")
    running, own_clip = trainable(model, clip if subject.word else None)
    learnt = design.adapters(running, settings.seed)
    rate = settings.learning_rate
    pace = subject.word_rate / FAMILIAR_SCALE / rate if rate and settings.optimizer != "prodigy" else 1.0
    word = new_word(own_clip, subject.word, settings.seed, pace) if subject.word else None
    pictures = pictures_of(vae, data.images, data.masks, data.flip)
    texts, count = own * (len(pictures) // max(1, pictures.originals)), len(pictures)
    if active:
        images = kept.images or class_pictures.made(
            model, clip, vae, _order(kept, prior, validation, settings), pictures.latents[0].shape[1:]
        )
        others = pictures_of(vae, images)
        pictures, texts = joined(pictures, others), (*texts, *(prior[i % len(prior)] for i in range(len(others))))
    batches = Batches(settings.batch_size, settings.seed, count, len(pictures) - count, kept.preservation.ratio)
    about = trainers.about(
        settings, objective, pictures, design=asdict(design), texts=texts, prior=asdict(kept.preservation) if active else "none",
        word=asdict(subject.word) if subject.word else "none",
    )  # fmt: skip
    task = Task(
        model=running, vae=vae, pictures=pictures, objective=objective, settings=settings, validation=validation, about=about,
        clip=own_clip or clip, adapters=learnt, word=word, texts=texts, batches=batches, preservation=kept.preservation,
    )  # fmt: skip
    task.encode()
    learnt.put_on(running)
    return task


def _checked(clip, subject: Subject, validation: Validation) -> Validation:
    """The validation as it is to be. Raises ValueError where the new word is no good or stands nowhere."""
    if subject.word is None:
        return validation
    placeholder = subject.word.placeholder
    check_placeholder(placeholder, lambda text: words.is_word(clip, text))
    if not names(subject.prompt, placeholder):
        raise ValueError(f"The instance prompt '{subject.prompt}' lacks the new word. Write {placeholder} where it belongs.")
    return check_validation(validation, placeholder)


def _order(kept: Class, prompts: tuple[str, ...], validation: Validation, settings: Settings) -> class_pictures.Order:
    return class_pictures.Order(prompts, kept.count, kept.batch, validation, settings.seed)


def joined(one: Pictures, other: Pictures) -> Pictures:
    """Both, one after the other; where only some have masks, the others' cover everything."""
    masks = (*one.masks, *other.masks)
    latents = (*one.latents, *other.latents)
    if any(m is not None for m in masks):
        masks = tuple(torch.ones_like(z[:, :1]) if m is None else m for z, m in zip(latents, masks))
    return replace(one, latents=latents, masks=masks)
