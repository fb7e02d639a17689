"""Textual inversion on a MODEL and its CLIP: from pictures to an embedding file that prompts can use at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import comfy.sample
import numpy as np
import torch
from PIL import Image

from ...training.loop import Diverged, Loop, saving
from ...training.objectives import picks
from ...training.textual_inversion import FAMILIAR_SCALE, Concept, Prompts, captions_for, check_placeholder, names, start_rows
from . import embeddings, words
from .pictures import as_image, line_chart, stacked
from .training import Course, Ground, Objective, Pictures, half_precision_scale, pictures_of, run_course, trainable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Word:
    """The new word: how it is written in training, what it starts from, and how its vectors may grow."""

    placeholder: str
    initial_words: str
    vectors: int = 1
    norm: str = "limit"
    norm_limit: float = 1.5


@dataclass(frozen=True)
class Data:
    """What it is learnt from: IMAGE batches, captions (one each, or one text of lines), MASK batches, and what is done to them."""

    images: Sequence[torch.Tensor]
    captions: Sequence[str] = ()
    masks: Sequence[torch.Tensor] = ()
    flip: bool = False
    caption_dropout: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How it is learnt. `learning_rate` is as for SD1.5's word vectors; encoders with larger vectors get it in proportion."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 10
    accumulate: int = 1
    average: float = 0.0


@dataclass(frozen=True)
class Validation:
    """Pictures to look at: `count` of one prompt at the end, and after every `every` steps (0 = at the end alone)."""

    prompt: str
    count: int = 2
    every: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"


@dataclass
class Task:
    """A training of one word, ready to run."""

    model: object
    vae: object
    word: words.NewWord
    prompts: Prompts
    pictures: Pictures
    objective: Objective
    settings: Settings
    validation: Validation
    about: dict[str, str]
    looks: list[torch.Tensor] = field(default_factory=list)

    def loss(self, ground: Ground, index: int) -> torch.Tensor:
        """The loss of batch `index`; each distinct prompt is encoded once."""
        size, seed = self.settings.batch_size, self.settings.seed
        chosen, first = picks(seed, index * size, size, len(self.pictures)), index * size
        texts = [self.prompts.of(p % self.pictures.originals, first + i, seed) for i, p in enumerate(chosen)]
        rows = {text: self.word.encode(text) for text in dict.fromkeys(texts)}
        return ground.loss(self.pictures, chosen, [rows[t] for t in texts], self.objective, seed, first)

    def loop(self) -> Loop:
        concept, s = self.word.concept, self.settings
        rate = s.learning_rate if s.optimizer == "prodigy" else s.learning_rate / FAMILIAR_SCALE
        return Loop(
            concept.parameters,
            steps=s.steps,
            learning_rate=rate,
            warmup=s.warmup,
            average=s.average,
            optimizer=s.optimizer,
            schedule=s.schedule,
            accumulate=s.accumulate,
            loss_scale=half_precision_scale(self.model),
            after_step=concept.control,
            about=self.about,
        )

    def look(self, course: Course) -> None:
        """Samples the validation prompt with the word as it is, by the host's own sampling, and shows the pictures on the node."""
        v = self.validation
        if not v.count:
            return
        with course.loop.averaged():
            positive, negative = self.word.conditioning(v.prompt), self.word.conditioning("")
        latent = torch.zeros(v.count, *self.pictures.latents[0].shape[1:])
        noise = comfy.sample.prepare_noise(latent, self.settings.seed)
        knobs = (v.steps, v.cfg, v.sampler_name, v.scheduler, positive, negative, latent)
        made = self.vae.decode(comfy.sample.sample(self.model, noise, *knobs, disable_pbar=True, seed=self.settings.seed))
        self.looks.append(made.reshape(-1, *made.shape[-3:]).cpu())
        course.preview(_side_by_side(self.looks[-1]))


def _side_by_side(pictures: torch.Tensor) -> Image.Image:
    row = torch.cat(list(pictures[..., :3]), 1)
    return Image.fromarray((row * 255 + 0.5).clamp(0, 255).byte().numpy())


def _digest(pictures: Pictures) -> str:
    """A short name for what is learnt from."""
    found = hashlib.sha256()
    for tensor in (*pictures.latents, *(m for m in pictures.masks if m is not None)):
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()[:12]


@dataclass(frozen=True)
class Learnt:
    """The embedding's name, the loss curve (IMAGE), and the validation pictures (IMAGE) or None."""

    name: str
    curve: torch.Tensor
    pictures: torch.Tensor | None


def learn(
    model,
    clip,
    vae,
    data: Data,
    word: Word,
    templates: tuple[str, ...],
    objective: Objective,
    settings: Settings,
    validation: Validation,
    name: str,
    if_exists: str,
) -> Learnt:
    """Learns a word and saves it; see `run`. Nothing that the user gave is changed."""
    name = embeddings.choose(name, if_exists)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, word, templates, objective, settings, validation)
        loop = run(task, name, resume=if_exists == "continue")
        return Learnt(name, loss_curve(loop), torch.cat(task.looks) if task.looks else None)


def prepare(
    model, clip, vae, data: Data, word: Word, templates: tuple[str, ...], objective: Objective, settings: Settings, validation: Validation
) -> Task:
    """Checks everything that the user gave, and encodes the pictures."""
    check_placeholder(word.placeholder, lambda text: words.is_word(clip, text))
    if validation.count and not names(validation.prompt.replace("{}", word.placeholder), word.placeholder):
        raise ValueError(
            f"The validation prompt '{validation.prompt}' lacks the new word. Write {word.placeholder} or {{}} where it belongs, or set "
            "validation_count to 0."
        )
    count = sum(len(batch) for batch in data.images)
    prompts = Prompts(templates, word.placeholder, captions_for(data.captions, count) if count else (), data.caption_dropout)
    model, clip = trainable(model, clip)
    found = words.encoders(clip)
    generator = torch.Generator().manual_seed(settings.seed % 2**63)
    starts = {e.key: start_rows(words.initial_rows(e, word.initial_words).cpu(), word.vectors, generator) for e in found}
    concept = Concept(starts, words.vocabularies(found), word.norm, word.norm_limit)
    pictures = pictures_of(vae, data.images, data.masks, data.flip)
    asked = {**asdict(settings), **asdict(objective), "word": asdict(word), "prompts": asdict(prompts)}
    fixed = {k: str(asked[k]) for k in ("batch_size", "seed", "optimizer", "accumulate", "weighting", "levels", "word", "prompts")}
    about = {**fixed, "pictures": _digest(pictures), "encoders": ", ".join(concept.parameters)}
    shown = Validation(**{**asdict(validation), "prompt": validation.prompt.replace("{}", word.placeholder)})
    new = words.NewWord(clip, word.placeholder, concept, word.vectors)
    return Task(model, vae, new, prompts, pictures, objective, settings, shown, about)


def run(task: Task, name: str, resume: bool = False) -> Loop:
    """Learns the word and writes it as embedding `name`, with the state of the training beside the host's outputs.

    A stop by the user keeps and writes what is learnt; so does an error, which then goes on.
    """
    loop, state = task.loop(), embeddings.state_of(name)
    state.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        loop.restore(state)
    course = Course(
        task.model,
        task.word.conditioning(task.prompts.of(0, 0, task.settings.seed)),
        loop,
        task.loss,
        torch.Size([task.settings.batch_size, *task.pictures.latents[0].shape[1:]]),
        (task.word.clip.cond_stage_model,),
        lambda steps: saving(loop, steps, state),
    )

    def look() -> None:
        loop.save(state)
        task.look(course)

    try:
        if run_course(course, task.validation.every, look):
            task.look(course)
    except Diverged as error:
        if not loop.done:
            raise
        _keep(task, loop, name)
        raise Diverged(f"{error} The word as it was then is saved: embedding:{name}") from error
    except Exception:
        if loop.done:
            _keep(task, loop, name)
            log.warning("The word as learnt in %d of %d steps is saved: embedding:%s", loop.done, loop.steps, name)
        raise
    _keep(task, loop, name)
    return loop


def _keep(task: Task, loop: Loop, name: str) -> None:
    """Writes the embedding and the state of the training."""
    loop.save(embeddings.state_of(name))
    with loop.averaged():
        rows = task.word.concept.tensors()
    facts = {**task.about, "steps": str(loop.done), "settings": json.dumps(asdict(task.settings)), "format": "embedding"}
    embeddings.save(name, rows, facts)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    return [float(np.mean(values[max(0, i + 1 - window) : i + 1])) for i in range(len(values))]


def loss_curve(loop: Loop) -> torch.Tensor:
    """Loss and learning rate of every step; an IMAGE."""
    index, losses = [s.index for s in loop.history], [s.loss for s in loop.history]
    window = max(2, len(losses) // 20)
    lines = {"loss": list(zip(index, losses)), f"mean of {window} steps": list(zip(index, smoothed(losses, window)))}
    charts = [
        line_chart(lines, f"loss of {loop.done} of {loop.steps} steps", "step", (768, 384)),
        line_chart({"rate": [(s.index, s.learning_rate) for s in loop.history]}, "learning rate of the loop", "step", (768, 220)),
    ]
    return as_image(stacked(charts))
