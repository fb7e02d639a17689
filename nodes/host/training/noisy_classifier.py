"""Training a noisy classifier on images: latents of a model's own format, and a file that the loader reads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import comfy.model_management
import torch

from ....guidance.classifier import LabeledClassifier, NoisyClassifier, as_images
from ....training import settings
from ....training.augmentation import Augmentation
from ....training.loop import Loop
from ....training.noisy_classifier import (
    LOG_SNR,
    accuracy,
    batch_loss,
    begin_at_shares,
    held_out,
    initialize,
    shares_as_logits,
    targets_of,
)
from ....training.settings import Data, Validation
from ....training.textual_inversion import captions_for
from ..guidance import classifier
from ..images import as_image, line_chart
from ..latents import latent_space
from . import trainer
from .images import images_of, split_images
from .memory import GB, PassMemory, estimate, free_after_unloading, pass_memory

SIZES = {"small": (32, 64, 128), "medium": (64, 128, 256), "large": (128, 256, 512)}


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    kind: str
    size: str
    held_out: float = 0.1
    average: float = 0.99
    flip: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    fit: str = Data.fit
    warmup: int = 50


def _latents(model, vae, data: Data, seed: int) -> list[torch.Tensor]:
    """Images and what is made of them, each as the model sees it when clean, (1, C, h, w) of about unit variance, on the CPU."""
    return [model.get_model_object("latent_format").process_in(z) for z in images_of(vae, data, seed).latents]


def _of_one_size(latents: Sequence[torch.Tensor]) -> torch.Tensor:
    """All together, (N, C, h, w)."""
    shapes = {tuple(z.shape[-2:]) for z in latents}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w} x {h}" for h, w in shapes))
        raise ValueError(f"The images have several sizes (latents of {sizes}). Scale and crop them to one, as Upscale Image does.")
    return as_images(torch.cat(list(latents)))


@dataclass(frozen=True)
class _Sample:
    """Latents (N, C, h, w) with their targets (N, labels)."""

    latents: torch.Tensor
    targets: torch.Tensor


def _samples(model, vae, images: Sequence[torch.Tensor], targets: torch.Tensor, settings: Settings) -> tuple[_Sample, _Sample]:
    """What to train on, with changed copies, and what to test on, as it is, of single images; with nothing held out they are both."""
    own, judged = held_out(len(images), settings.held_out, settings.seed)
    plain, seed = Data(fit=settings.fit), settings.seed
    changed = replace(plain, images=[images[i] for i in own], flip=settings.flip, augmentation=settings.augmentation)
    trained = _latents(model, vae, changed, seed)
    unseen = len(own) < len(images)
    both = _of_one_size(trained + (_latents(model, vae, replace(plain, images=[images[i] for i in judged]), seed) if unseen else []))
    shown = _Sample(both[: len(trained)], targets[own].repeat(len(trained) // len(own), 1))
    return shown, _Sample(both[len(trained) :] if unseen else both[: len(own)], targets[judged])


@dataclass(frozen=True)
class Task:
    """A training of one classifier, for `trainer.run`: of `shown`, judged on `judged`, which are `judged_on`."""

    classifier: LabeledClassifier
    settings: Settings
    shown: _Sample
    judged: _Sample
    judged_on: str
    validation: ClassVar = Validation("", count=0)
    compared: ClassVar = 0  # batches: its chart of accuracy says what was learned

    def loop(self) -> Loop:
        s, free = self.settings, ("steps", "learning_rate", "schedule", "warmup", "checkpointing")
        fixed = {k: str(v) for k, v in asdict(s).items() if k not in free}
        shown = {name: trainer.digest([getattr(self.shown, name)]) for name in ("latents", "targets")}
        about = {**fixed, "labels": ", ".join(self.classifier.labels), "images": shown["latents"], "labels of each image": shown["targets"]}
        return trainer.loop_of(dict(self.classifier.network.named_parameters()), s, warmup=min(s.warmup, s.steps // 10), about=about)

    def runner(self, loop: Loop, show: trainer.Show) -> trainer.Runner:
        network, s = self.classifier.network, self.settings
        _check_room(network, self.shown.latents, s.batch_size, loop.to_come())

        def loss(index: int) -> torch.Tensor:
            return batch_loss(network, self.shown.latents, self.shown.targets, index, kind=s.kind, batch=s.batch_size, seed=s.seed)

        def take(steps: trainer.Steps) -> None:
            with torch.enable_grad():
                for step in steps(loss):
                    show(step, lambda: None)
                    comfy.model_management.throw_exception_if_processing_interrupted()

        return take

    def look(self, training: trainer.TrainingRun) -> None:
        """Shows nothing on the way."""

    def accuracy(self) -> list[tuple[float, float]]:
        """(log-SNR, accuracy) on the images `judged_on`."""
        known = shares_as_logits(self.shown.targets, self.settings.kind)
        return accuracy(self.classifier.network, self.judged.latents, self.judged.targets, self.settings.kind, known)


def prepare(model, vae, images: Sequence[torch.Tensor], labels: Sequence[str], settings: Settings) -> Task:
    """Checks everything that the user gave, one text of labels an image, and encodes the images."""
    separate = split_images(images, "images")
    known, targets = targets_of(captions_for(labels, len(separate), "labels"), settings.kind)
    shown, judged = _samples(model, vae, separate, targets, settings)
    with torch.random.fork_rng(devices=[]):  # whose layers draw start values of their own
        network = NoisyClassifier(shown.latents.shape[1], len(known), SIZES[settings.size])
    network = begin_at_shares(initialize(network, settings.seed % 2**63), shown.targets, settings.kind)
    network = network.to(comfy.model_management.get_torch_device())
    made = LabeledClassifier(network, known, latent_space(model), settings.kind)
    seen = len(judged.targets)
    return Task(made, settings, shown, judged, f"{seen} {'images held out' if seen < len(separate) else 'the training images'}")


def learn(
    model, vae, images: Sequence[torch.Tensor], labels: Sequence[str], settings: Settings, name: str, if_exists: str
) -> trainer.TrainResult:
    """Trains a classifier of the labels, one text an image, and saves it; see `trainer.run`."""
    name = classifier.CLASSIFIERS.choose(name, if_exists)
    path = classifier.CLASSIFIERS.place(name)
    with torch.inference_mode(False), torch.no_grad():
        task = prepare(model, vae, images, labels, settings)

        def write(loop: Loop) -> str:
            classifier.save(task.classifier, path)
            return str(path)

        loop = trainer.run(task, classifier.CLASSIFIERS.state(name), write, resume=if_exists == "continue")
        with loop.averaged():
            chart = _chart(task, task.accuracy())
        return trainer.TrainResult(name=name, model=classifier.read(path), curve=trainer.loss_curve(loop), images=chart)


def _check_room(network: NoisyClassifier, latents: torch.Tensor, batch: int, learning: int) -> None:
    """Refuses a batch that memory cannot hold with what autograd keeps of it, after ComfyUI has unloaded other models."""
    device = next(network.parameters()).device

    def measure(count: int) -> PassMemory:
        with torch.enable_grad(), pass_memory((), network.parameters()) as found:
            network(torch.zeros(count, *latents.shape[1:], device=device), torch.zeros(count, device=device))
            return found()

    one, needed = (m.plain + learning for m in estimate(measure, batch))
    if needed > (room := free_after_unloading(device, needed)):
        fits = int(1 + (room - one) * (batch - 1) / (needed - one)) if room >= one else 0
        less = f"Set batch_size to {fits} or less, take" if fits else "Take"
        raise ValueError(
            f"A batch of {batch} needs about {needed / GB:.2f} GB of memory, and {room / GB:.2f} GB are free. {less} smaller images or a smaller "
            "network, or close what else uses the memory."
        )


def _chart(task: Task, rows: list[tuple[float, float]]) -> torch.Tensor:
    """Accuracy over the noise; an IMAGE."""
    chance = 1 / len(task.classifier.labels) if task.settings.kind == "exclusive" else 0.5
    lines = {"chance": [(level, chance) for level in LOG_SNR]}
    title = f"accuracy on {task.judged_on}"
    if rows:
        lines = {"accuracy": rows, **lines}
    else:
        title = f"no {title}: there is no label that some of them have and some lack"
    return as_image(line_chart(lines, title, "log SNR: noise on the left, clean on the right"))
