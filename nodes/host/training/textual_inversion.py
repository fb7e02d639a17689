"""Textual inversion on a MODEL and its CLIP: from images to an embedding file that prompts can use at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch

from ....guidance.errors import quoted
from ....training.channel_dropout import ChannelDropout
from ....training.loop import Loop
from ....training.objectives import picks
from ....training.settings import Data, Settings, Validation
from ....training.textual_inversion import FAMILIAR_SCALE, Prompts, Word, captions_for, check_placeholder, names
from ..gradients import trainable
from . import new_words, trainer
from .denoiser import Objective, TrainDenoiser
from .embeddings import EMBEDDINGS
from .images import images_of


@dataclass(kw_only=True)
class Task(trainer.Task):
    """A training of one word."""

    prompts: Prompts
    dropout: ChannelDropout
    advice: ClassVar[str] = (
        "raise vectors, learning_rate or steps, or set norm to 'free'. A word can only call up what the model draws for some prompt; the rest "
        "needs Train Keys and Values (Custom Diffusion) or Train LoRA (DreamBooth)."
    )

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.word.parameters

    @property
    def learning_rate(self) -> float:
        return self.settings.learning_rate / FAMILIAR_SCALE

    def loss(self, denoiser: TrainDenoiser, index: int) -> torch.Tensor:
        """The loss of batch `index`; each distinct prompt is encoded once."""
        size, seed = self.settings.batch_size, self.settings.seed
        chosen, first = picks(seed, index * size, size, len(self.images)), index * size
        rates = self.dropout.rate(denoiser.log_snr(self.objective, seed, first, size))[:, 0].tolist()
        prompts = [self.prompts.sentence(p % self.images.originals, first + i, seed, rates[i]) for i, p in enumerate(chosen)]
        texts = [self.images.with_hint(p, text) for p, text in zip(chosen, prompts)]
        rows = {text: self.word.encode(text) for text in dict.fromkeys(texts)}
        return denoiser.errors(self.images, chosen, [rows[t] for t in texts], self.objective, seed, first).mean()

    def conditioning(self, text: str) -> list:
        return self.word.conditioning(text)

    def usual_rows(self, count: int) -> list:
        return [self.word.encode(self.prompts.sentence(0, 0, self.settings.seed)) for _ in range(count)]


def learn(
    model, clip, vae, data: Data, word: Word, templates: tuple[str, ...], objective: Objective, settings: Settings, validation: Validation,
    name: str, if_exists: str,
) -> trainer.TrainResult:  # fmt: skip
    """Trains a word and saves it; see `trainer.run`. Nothing that the user gave is changed."""
    name = EMBEDDINGS.choose(name, if_exists)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, word, templates, objective, settings, validation)
        return task.result(name, run(task, name, resume=if_exists == "continue"))


def check_validation(validation: Validation, placeholder: str) -> Validation:
    """The same with the placeholder in the prompt where {} is. Raises ValueError where images are asked for that would not show it."""
    prompt = validation.prompt.replace("{}", placeholder)
    if validation.count and not names(prompt, placeholder):
        raise ValueError(
            f"The validation prompt {quoted(validation.prompt)} lacks the new word. Write {quoted(placeholder)} or {{}} where it belongs, or set "
            "count of Validation Options to 0."
        )
    return replace(validation, prompt=prompt)


def prepare(
    model, clip, vae, data: Data, word: Word, templates: tuple[str, ...], objective: Objective, settings: Settings, validation: Validation
) -> Task:
    """Checks everything that the user gave, and encodes the images."""
    trainer.check_model(model)
    check_placeholder(word.placeholder, lambda text: new_words.is_word(clip, text))
    shown = check_validation(validation, word.placeholder)
    captions = captions_for(data.captions, len(data)) if len(data) else ()
    prompts = Prompts(templates, word.placeholder, captions)
    running, own_clip = trainable(model, clip)
    new = new_words.start(own_clip, [word], settings.seed)
    images = images_of(vae, data, settings.seed)
    about = trainer.about(
        settings, objective, images, model, clip, word=asdict(word), prompts=asdict(prompts), dropout=data.dropout,
        encoders=", ".join(new.parameters),
    )  # fmt: skip
    return Task(
        model=running, vae=vae, images=images, objective=objective, settings=settings, validation=shown, about=about, word=new,
        prompts=prompts, dropout=data.dropout,
    )  # fmt: skip


def run(task: Task, name: str, resume: bool = False) -> Loop:
    """Learns the word and writes it as embedding `name`."""

    def write(loop: Loop) -> str:
        (concept,) = task.word.concepts.values()
        EMBEDDINGS.save(name, concept.tensors(), {**task.facts(loop), "format": "embedding"})
        return f"embedding:{name}"

    return trainer.run(task, EMBEDDINGS.state(name), write, resume)
