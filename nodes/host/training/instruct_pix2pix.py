"""Training a model to follow edit instructions: pairs of images and instructions to a ComfyUI InstructPix2Pix model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch

from ....guidance.instruct_pix2pix import Scales
from ....training import settings
from ....training.augmentation import Variant
from ....training.channel_dropout import ChannelDropout, JointDropout, draws
from ....training.instruct_pix2pix import DROPOUT, added_weights, dropout_of
from ....training.loop import Loop
from ....training.objectives import picks
from ....training.textual_inversion import captions_for
from ..gradients import run_in_inference_mode, trainable
from ..guidance.instruct_pix2pix import CONCAT, InstructPix2Pix, SourceImage
from ..latents import decoded, finite_images
from ..prompts import encoded
from . import instruct_models, trainer
from .denoiser import Objective, TrainDenoiser
from .images import Images, encoded_variants, images_of
from .memory import check_numbers
from .pair_folder import OnDisk
from .trainer import TrainingRun, side_by_side
from .whole_weights import check_fine


@dataclass(frozen=True)
class Data:
    """Training data: IMAGE batches before and after, an instruction each (or one text of lines), whether to mirror all, and `fit` as of
    `training.settings.Data`."""

    before: Sequence[torch.Tensor]
    after: Sequence[torch.Tensor]
    instructions: Sequence[str]
    flip: bool = False
    fit: str = settings.Data.fit


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """What is trained, and how. A LoRA acts at `alpha` / `rank`; 0 = the rank, so that it acts in full."""

    train: str
    rank: int = 16
    alpha: float = 0.0
    dropout: float = DROPOUT
    channel_dropout: str = "jointly"
    clean_image_dropout: float = -1.0
    clean_instruction_dropout: float = -1.0

    @property
    def kept(self) -> ChannelDropout | JointDropout:
        """What is left out, of image and instruction."""
        return dropout_of(self.channel_dropout, self.dropout, self.clean_image_dropout, self.clean_instruction_dropout)


@dataclass(frozen=True)
class Examples:
    """What the model is shown: images before the edit, and conditionings [features, extras] of each instruction and of none."""

    before: Images
    positive: tuple[list, ...]
    negative: list

    def row(self, number: int, image: bool, text: bool) -> list:
        """What the model is shown of a pair: the image or an empty one, with the instruction or without."""
        features, extras = self.positive[number % len(self.positive)] if text else self.negative
        shown = self.before.latents[number]
        return [features, {**extras, CONCAT: shown if image else torch.zeros_like(shown)}]

    def digest(self) -> str:
        """A short name for the training data."""
        return trainer.digest([*self.before.latents, *(features for features, _ in self.positive)])


@dataclass(kw_only=True)
class Task(trainer.Task):
    """A training of one instruction model. `added`: what is added to each weight, by its name."""

    examples: Examples
    added: dict[str, torch.nn.Module]

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"{name}|{k}": p for name, module in self.added.items() for k, p in module.named_parameters()}

    def conditioning(self, text: str) -> list:
        return [self.examples.negative]

    def usual_rows(self, count: int) -> list:
        return [self.examples.row(0, True, True)] * count

    def loss(self, denoiser: TrainDenoiser, index: int) -> torch.Tensor:
        s, first = self.settings, index * self.settings.batch_size
        chosen = picks(s.seed, first, s.batch_size, len(self.images))
        log_snr = denoiser.log_snr(self.objective, s.seed, first, s.batch_size)
        kept = s.kept.keep(log_snr, draws(s.seed, first, s.batch_size, 2)).tolist()
        rows = [self.examples.row(number, *shown) for number, shown in zip(chosen, kept)]
        return denoiser.errors(self.images, chosen, rows, self.objective, s.seed, first).mean()

    def weights(self) -> dict[str, torch.Tensor]:
        """The denoiser with the trained weights, on the CPU: made weight by weight, so that there is no second one beside the model."""
        own, device = self.model.model.diffusion_model.state_dict(), self.model.load_device
        return {k: (self.added[k](w.to(device)) if k in self.added else w).cpu() for k, w in own.items()}

    def look(self, training: TrainingRun) -> None:
        """Edits the first images by their instructions, with the model as it is, and shows each beside the image before."""
        v, examples = self.validation, self.examples
        size = examples.before.latents[0].shape
        chosen = [i for i in range(len(examples.positive)) if examples.before.latents[i].shape == size][: v.count]
        made = []
        for i in chosen:
            with training.loop.averaged():
                made.append(run_in_inference_mode(self._edited, i))
            made.insert(-1, run_in_inference_mode(decoded, self.vae, examples.before.latents[i]))
        if made:
            self.looks.append(torch.cat([m.cpu() for m in made]))
            training.preview(side_by_side(self.looks[-1]))

    def _edited(self, number: int) -> torch.Tensor:
        v, model, (negative, positive) = self.validation, self.model, (self.examples.negative, self.examples.positive[number])
        image = SourceImage(model, [positive], {"samples": self.examples.before.latents[number]})
        guider = InstructPix2Pix(model, image.conditions(model, [positive], [negative]), Scales(v.cfg, v.image_scale))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), v.scheduler, v.steps)
        empty = image.latent()["samples"]
        noise = comfy.sample.prepare_noise(empty, self.settings.seed)
        sampler = comfy.samplers.sampler_object(v.sampler_name)
        return finite_images(self.vae, guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=self.settings.seed))


def learn(
    model, clip, vae, data: Data, objective: Objective, settings: Settings, validation: settings.Validation, name: str, if_exists: str
) -> trainer.TrainResult:
    """Trains an instruction model and saves it; a stop by the user keeps the trained weights. Nothing that the user gave is changed."""
    instruct_models.kind_of(model)
    name = instruct_models.MODELS.choose(name, if_exists)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, clip, vae, data, objective, settings, validation)

        def write(loop: Loop) -> str:
            return str(instruct_models.save(task.model, task.weights(), name, {**task.facts(loop), "format": "instruct pix2pix"}))

        loop = trainer.run(task, instruct_models.MODELS.state(name), write, resume=if_exists == "continue")
        return task.result(name, loop, model=instruct_models.load(model, str(instruct_models.MODELS.place(name))))


def _images(vae, images: Sequence[torch.Tensor], data: Data) -> Images:
    """`images_of`; those of a folder are read one by one, so that their latents alone are held."""
    if not isinstance(images, OnDisk):
        return images_of(vae, settings.Data(images, flip=data.flip, fit=data.fit))
    sides = (False, True)[: 1 + data.flip]
    shown = (Variant(p.flip(2) if mirrored else p, None) for mirrored in sides for p in images)
    return encoded_variants(vae, shown, len(images) * len(sides), data.fit, len(images))


def examples_of(clip, vae, data: Data) -> tuple[Examples, Images]:
    """What is shown, and the images after: encoded once, and checked whether they belong together."""
    before, after = (_images(vae, images, data) for images in (data.before, data.after))
    if len(before) != len(after):
        raise ValueError(f"There are {before.originals} images before and {after.originals} after an edit; give as many of each, in pairs.")
    for number, (a, b) in enumerate(zip(before.latents, after.latents), 1):
        if a.shape != b.shape:
            sizes = [" x ".join(str(n) for n in z.shape[:-3:-1]) for z in (a, b)]
            raise ValueError(f"The images of pair {number} have latents of {sizes[0]} and {sizes[1]}; give both images one size.")
    texts = captions_for(data.instructions, before.originals)
    if not texts or not all(t.strip() for t in texts):
        raise ValueError("An instruction is missing. Give one for each pair, as a list or one a line, such as 'make it blue'.")
    known = {text: run_in_inference_mode(encoded, clip, text)[0] for text in dict.fromkeys((*texts, ""))}
    return Examples(before, tuple(known[t] for t in texts), known[""]), after


def prepare(model, clip, vae, data: Data, objective: Objective, settings: Settings, validation: settings.Validation) -> Task:
    """Checks everything that the user gave, encodes the pairs, and makes a copy of the model with room for the image."""
    trainer.check_model(model)
    check_fine(model)
    dropout = settings.kept  # refused before anything is encoded
    examples, after = examples_of(clip, vae, data)
    own, _ = trainable(instruct_models.with_room(model))
    shapes = {k: w.shape for k, w in own.model.diffusion_model.state_dict().items()}
    asked = settings.train, settings.rank, settings.alpha or float(settings.rank)
    numbers = sum(p.numel() for m in added_weights(shapes, *asked, settings.seed, torch.device("meta")).values() for p in m.parameters())
    check_numbers(numbers, settings.optimizer, settings.average, own.load_device, "Train a LoRA ('attention'), or lower the rank.")
    added = added_weights(shapes, *asked, settings.seed, own.load_device)
    for name, module in added.items():
        own.add_weight_wrapper(instruct_models.PREFIX + name, module)
    about = trainer.about(settings, objective, after, model, clip, what=asked, dropout=dropout, shown=examples.digest())
    return Task(
        model=own, vae=vae, images=after, objective=objective, settings=settings, validation=validation, about=about, examples=examples,
        added=added,
    )  # fmt: skip
