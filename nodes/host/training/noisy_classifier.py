"""Training a noisy classifier on images: latents of a model's own format, and a file that the loader reads."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import comfy.model_management
import comfy.utils
import torch

from ....guidance.classifier import LabelledClassifier, NoisyClassifier, as_images
from ....training import settings
from ....training.augmentation import Augmentation
from ....training.loop import Loop, saving
from ....training.noisy_classifier import LOG_SNR, accuracy, held_out, initialize, targets_of, train_noisy_classifier
from ....training.textual_inversion import captions_for
from ..guidance import classifier
from ..images import as_image, line_chart
from . import memory
from .images import images_of, split_images
from .memory import GB, PassMemory, estimate, pass_memory
from .run import Stopped
from .trainer import digest, loop_of, loss_curve

SIZES = {"small": (32, 64, 128), "medium": (64, 128, 256), "large": (128, 256, 512)}


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    kind: str
    size: str
    held_out: float = 0.1
    average: float = 0.99
    flip: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    warmup: int = 50


@dataclass(frozen=True)
class TrainResult:
    """The classifier, its file's name, the losses, and (log-SNR, accuracy) on the images `judged_on`."""

    classifier: LabelledClassifier
    name: str
    loop: Loop
    accuracy: list[tuple[float, float]]
    judged_on: str


def _latents(model, vae, images: Sequence[torch.Tensor], **changes) -> list[torch.Tensor]:
    """Images and what `changes` make of them, each as the model sees it when clean, (1, C, h, w) of about unit variance, on the CPU."""
    return [model.get_model_object("latent_format").process_in(z) for z in images_of(vae, images, **changes).latents]


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
    """What to train on, with changed copies, and what to test on, as it is; with nothing held out the images are both."""
    separate = split_images(images, "images")
    own, judged = held_out(len(separate), settings.held_out, settings.seed)
    changes = dict(flip=settings.flip, augmentation=settings.augmentation, seed=settings.seed)
    trained = _latents(model, vae, [separate[i] for i in own], **changes)
    unseen = len(own) < len(separate)
    both = _of_one_size(trained + (_latents(model, vae, [separate[i] for i in judged]) if unseen else []))
    shown = _Sample(both[: len(trained)], targets[own].repeat(len(trained) // len(own), 1))
    return shown, _Sample(both[len(trained) :] if unseen else both[: len(own)], targets[judged])


def learn(model, vae, images: Sequence[torch.Tensor], labels: Sequence[str], settings: Settings, name: str, if_exists: str) -> TrainResult:
    """Trains a classifier of the labels, one text an image, and saves it; a stop by the user keeps the trained weights."""
    count = sum(len(batch) for batch in images)
    given = captions_for(labels, count, "labels") if count else ()
    known, targets = targets_of(given, settings.kind) if count else ((), None)
    name = classifier.CLASSIFIERS.choose(name, if_exists)
    path = classifier.CLASSIFIERS.place(name)
    with torch.inference_mode(False), torch.no_grad():
        shown, judged = _samples(model, vae, images, targets, settings)
        device = comfy.model_management.get_torch_device()
        with torch.random.fork_rng(devices=[]):  # whose layers draw start values of their own
            network = NoisyClassifier(shown.latents.shape[1], len(known), SIZES[settings.size])
        network = initialize(network, settings.seed % 2**63).to(device)
        loop = _loop(network, settings, known, shown.latents)
        state = classifier.CLASSIFIERS.state(name)
        state.parent.mkdir(parents=True, exist_ok=True)
        if if_exists == "continue":
            loop.restore(state)
        made = LabelledClassifier(
            network.requires_grad_(False), known, type(model.get_model_object("latent_format")).__name__, settings.kind
        )

        def keep() -> None:
            with loop.averaged():
                classifier.save(made, path)
            loop.save(state)  # after what the user wants, should the disk be full

        with torch.enable_grad():
            network.train().requires_grad_(True)
            _check_room(network, shown.latents, settings.batch_size, loop.to_come())
            knobs = dict(kind=settings.kind, batch=settings.batch_size, seed=settings.seed)
            _take(saving(loop, train_noisy_classifier(network, shown.latents, shown.targets, loop, **knobs), state), loop, keep)
        network.eval().requires_grad_(False)
        with loop.averaged():
            rows = accuracy(network, judged.latents, judged.targets, settings.kind)
        seen = len(judged.targets)
        where = "images held out" if seen < count else "the training images"
        return TrainResult(classifier.read(path), name, loop, rows, f"{seen} {where}")


def _check_room(network: NoisyClassifier, latents: torch.Tensor, batch: int, learning: int) -> None:
    """Refuses a batch that memory cannot hold with what autograd keeps of it, after ComfyUI has unloaded other models."""
    device = next(network.parameters()).device

    def measure(count: int) -> PassMemory:
        with pass_memory((), network.parameters()) as found:
            network(torch.zeros(count, *latents.shape[1:], device=device), torch.zeros(count, device=device))
            return found()

    one, needed = (m.plain + learning for m in estimate(measure, batch))
    if needed > memory.get_free_memory(device) and device.type != "cpu":
        comfy.model_management.free_memory(needed, device)
    if needed > (room := memory.get_free_memory(device)):
        fits = int(1 + (room - one) * (batch - 1) / (needed - one)) if room >= one else 0
        less = f"Set batch_size to {fits} or less, take" if fits else "Take"
        raise ValueError(
            f"A batch of {batch} needs about {needed / GB:.2f} GB of memory, and {room / GB:.2f} GB are free. {less} smaller images or a smaller "
            "network, or close what else uses the memory."
        )


def _loop(network: NoisyClassifier, settings: Settings, labels: Sequence[str], latents: torch.Tensor) -> Loop:
    free = ("steps", "learning_rate", "schedule", "warmup", "checkpointing")
    fixed = {k: str(v) for k, v in asdict(settings).items() if k not in free}
    about = {**fixed, "labels": ", ".join(labels), "images": digest([latents])}
    return loop_of(dict(network.named_parameters()), settings, warmup=min(settings.warmup, settings.steps // 10), about=about)


def _take(steps, loop: Loop, keep: Callable[[], None]) -> None:
    """Takes the steps with ComfyUI's progress bar; saves at the end, when the user stops it, and before an error goes on."""
    bar = comfy.utils.ProgressBar(loop.steps)
    try:
        for step in steps:
            bar.update_absolute(step.index, step.total)
            comfy.model_management.throw_exception_if_processing_interrupted()
    except Stopped:
        if not loop.done:
            raise
    except Exception:
        if loop.done:
            keep()
        raise
    keep()


def charts(result: TrainResult) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses and learning rate, accuracy over the noise); two IMAGEs."""
    chance = 1 / len(result.classifier.labels) if result.classifier.kind == "exclusive" else 0.5
    lines = {"chance": [(level, chance) for level in LOG_SNR]}
    title = f"accuracy on {result.judged_on}"
    if result.accuracy:
        lines = {"accuracy": result.accuracy, **lines}
    else:
        title = f"no {title}: there is no label that some of them have and some lack"
    return loss_curve(result.loop), as_image(line_chart(lines, title, "log SNR: noise on the left, clean on the right"))
