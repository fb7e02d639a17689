"""What all trainers of concepts share: how a run goes, its validation images, what is kept of it, and the curve of its losses."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

import comfy.model_management
import comfy.sample
import numpy as np
import torch
from PIL import Image

from ....training.learning import LossChange, batches
from ....training.loop import Diverged, Loop, Step, save_or_warn, saving
from ....training.settings import Settings, Validation
from ..attention.hook import Control, controls_of
from ..gradients import half_precision_scale, run_in_inference_mode
from ..images import as_image, line_chart, stacked, to_pil
from ..latents import finite_images
from ..progress import Preview, ProgressBar, latent_previews, preview_of
from ..saved_tensors import CopyIfNeeded
from .denoiser import Objective, TrainDenoiser
from .images import Images
from .memory import MemoryPlan
from .new_words import NewWord
from .patch_key import base_keys
from .run import Stopped, TrainSampler, run_sampler

Steps = Callable[[Callable[[int], torch.Tensor]], Iterator[Step]]  # of a loss by the index of its batch
Runner = Callable[[Steps], None]  # takes steps, where they can be taken
Show = Callable[[Step, Callable[[], Preview | None]], None]  # a step, and what makes an image to look at meanwhile
WINDOW = 20  # steps whose mean loss is shown while it trains
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The name that the file got, the loss curve (IMAGE) and validation images (IMAGE) or None, of a classifier the chart of its accuracy. Of
    trainers that give a model also the MODEL with the trained weights, or the classifier; of those of a subject their LoRA, what to write in
    a prompt, and the sentences of the subject's images so written (those that name a new word, if there is one). `learned` says whether the loss fell and what may be wrong with it, `missed` which
    validation images could not be sampled, and why."""

    name: str
    curve: torch.Tensor
    images: torch.Tensor | None = None
    model: object = None
    lora: dict[str, torch.Tensor] = field(default_factory=dict)
    word: str = ""
    sentences: tuple[str, ...] = ()
    learned: str = ""
    missed: str = ""


def sampled(model, vae, shape: torch.Size, conditionings: tuple[list, list], look: Validation, seed: int) -> torch.Tensor:
    """Images (B, H, W, 3) on the CPU of a CONDITIONING and its negative, by ComfyUI's own sampling of latents of a shape."""
    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, seed)
    knobs = (look.steps, look.cfg, look.sampler_name, look.scheduler, *conditionings, latent)
    return run_in_inference_mode(lambda: finite_images(vae, comfy.sample.sample(model, noise, *knobs, disable_pbar=True, seed=seed)))[..., :3].cpu()


def loop_of(parameters: dict[str, torch.nn.Parameter], settings: Settings, **own) -> Loop:
    """The loop that settings ask for; `own` arguments of `Loop` come before them."""
    names = ("steps", "learning_rate", "warmup", "average", "optimizer", "schedule", "accumulate")
    return Loop(parameters, **{k: getattr(settings, k) for k in names} | own)


@dataclass(kw_only=True)
class Task:
    """A training ready to run, of a new word too if there is one. `parameters` are the trained weights; `learning_rate` is what the loop gets
    of the settings' own."""

    model: object
    vae: object
    images: Images
    objective: Objective
    settings: Settings
    validation: Validation
    about: dict[str, str]
    word: NewWord | None = None
    looks: list[torch.Tensor] = field(default_factory=list)
    missed: dict[str, list[int]] = field(default_factory=dict)  # after which steps validation images could not be sampled, by the reason
    change: LossChange | None = None
    advice: ClassVar[str] = "raise learning_rate or steps, or train more weights: a higher rank, or all."  # where the loss hardly fell

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        raise NotImplementedError

    @property
    def warning(self) -> str:
        """What else may be wrong with the trained weights."""
        return ""

    @property
    def learning_rate(self) -> float:
        return self.settings.learning_rate

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        """Networks beside the denoiser that gradients pass through."""
        return () if self.word is None else (self.word.clip.cond_stage_model,)

    @property
    def shape(self) -> torch.Size:
        """Of the latents of one batch."""
        return torch.Size([self.settings.batch_size, *self.images.latents[0].shape[1:]])

    @property
    def compared(self) -> int:
        """How many of its first batches are evaluated before and after."""
        return batches(self.settings.steps, self.shape[0])

    def around(self) -> AbstractContextManager:
        """What steps are taken inside of."""
        return nullcontext()

    def after_step(self) -> None:
        """Moves the parameters after each step."""
        if self.word is not None:
            self.word.control()

    def loss(self, denoiser: TrainDenoiser, index: int) -> torch.Tensor:
        """The loss of batch `index`."""
        raise NotImplementedError

    def conditioning(self, text: str) -> list:
        """The CONDITIONING of a prompt with the trained weights as they are."""
        raise NotImplementedError

    def usual_rows(self, count: int) -> list:
        """Conditionings [features, extras] as those of a batch of `count` are."""
        return [self.conditioning(self.validation.prompt)[0]] * count

    def memory_plan(self, loop: Loop) -> MemoryPlan:
        s, largest = self.settings, max((z.shape for z in self.images.latents), key=torch.Size.numel)
        shape, middle = torch.Size([self.shape[0], *largest[1:]]), self.objective.levels.places(torch.tensor([0.5]))
        return MemoryPlan(s.checkpointing, loop, shape, s.batch_size, s.accumulate, self.usual_rows, float(middle), self.modules)

    def runner(self, loop: Loop, show: Show) -> Runner:
        """Takes steps inside ComfyUI's sampling, where all is loaded."""
        start, blocks = self.conditioning(self.validation.prompt), self.memory_plan(loop).blocks
        preview, attempt = latent_previews(self.model), CopyIfNeeded()

        def shown(step: Step, denoised: torch.Tensor) -> None:
            show(step, lambda: preview(denoised))

        def take(steps: Steps) -> None:
            sampler = TrainSampler(lambda denoiser: steps(lambda i: self.loss(denoiser, i)), self.modules, shown, self.around, blocks, attempt)
            try:
                run_sampler(self.model, start, self.shape, sampler)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if loop.done:
                    raise
                raise ValueError(
                    f"{type(self.model.model).__name__} cannot be trained with this ComfyUI: its first step failed ({error}). A part of a model "
                    "that has no derivative cannot be trained through; use another model or another version of ComfyUI."
                ) from error

        return take

    def loop(self, **own) -> Loop:
        own |= dict(loss_scale=half_precision_scale(self.model), after_step=self.after_step, about=self.about)
        return loop_of(self.parameters, self.settings, learning_rate=self.learning_rate, **own)

    def look(self, training: "TrainingRun") -> None:
        """Samples the validation prompt with the trained weights, and shows the images on the node."""
        v = self.validation
        if not v.count:
            return
        with training.loop.averaged():
            conditionings = self.conditioning(v.prompt), self.conditioning("")
            shape = torch.Size([v.count, *self.shape[1:]])
            self.looks.append(sampled(self.model, self.vae, shape, conditionings, v, self.settings.seed))
        training.preview(side_by_side(self.looks[-1]))

    def facts(self, loop: Loop) -> dict[str, str]:
        """What a file says of how it was made."""
        return {**self.about, "steps": str(loop.done), "settings": json.dumps(asdict(self.settings))}

    def result(self, name: str, loop: Loop, **more) -> TrainResult:
        missed = "\n".join(f"No validation images after step {', '.join(map(str, at))}: {why}" for why, at in self.missed.items())
        images = torch.cat(self.looks) if self.looks else None
        learned = "\n".join(filter(None, ("" if self.change is None else self.change.report(self.advice), self.warning)))
        return TrainResult(name=name, curve=loss_curve(loop), images=images, learned=learned, missed=missed, **more)


class TrainingRun:
    """A task on its way: its steps, some at a time, with the progress bar, the state file, validation images and the trained weights' file.
    `write` saves the trained weights and says where."""

    def __init__(self, task: Task, state: Path, write: Callable[[Loop], str], resume: bool = False):
        self.task, self.state, self.write, self.loop = task, state, write, task.loop()
        if resume:
            self.loop.restore(state)
        self.progress, self.looks = ProgressBar({"Training": self.loop.steps}, done=self.loop.done), []
        self.runner = task.runner(self.loop, partial(_show, self.progress, self.loop.history, self.looks))

    def finish(self) -> None:
        """Takes all steps. A stop by the user keeps and writes the trained weights; so does an error, which then goes on. The last validation
        images are made when all is written."""
        loop = self.loop
        try:
            if not loop.done:
                loop.before = self._losses(self.task.compared)
            while loop.done < loop.steps:
                self._steps()
        except Stopped:
            if not loop.done:
                raise
            log.info("Training stopped after %d of %d steps; the trained weights are kept.", loop.done, loop.steps)
            self._keep()
            return
        except Diverged as error:
            if not loop.done:
                raise
            raise Diverged(f"{error} They are saved: {self._keep()}") from error
        except Exception:
            if loop.done:
                log.warning("The weights after %d of %d steps are saved: %s", loop.done, loop.steps, self._keep())
            raise
        self._keep()
        try:
            self._compare()
            self._look()
        except Stopped:
            log.info("The training is done and saved; its last validation images were stopped.")

    def _compare(self) -> None:
        """Notes whether the loss of the first batches fell."""
        if not self.loop.before:
            return
        with self.loop.averaged():
            self.task.change = LossChange(self.loop.before, self._losses(len(self.loop.before)))
        log.log(logging.WARNING if self.task.change.is_small else logging.INFO, self.task.change.report(self.task.advice))

    def _losses(self, count: int) -> list[float]:
        """The losses of the first `count` batches with the weights as they are."""
        found: list[float] = []

        def evaluate(loss: Callable[[int], torch.Tensor]) -> Iterator[Step]:
            for index in range(count):
                comfy.model_management.throw_exception_if_processing_interrupted()
                with torch.no_grad():
                    found.append(float(loss(index)))
            return iter(())

        if count:
            self.runner(evaluate)
        return found

    def _steps(self) -> None:
        """Takes the steps up to the next validation images, and makes those unless they are the last."""
        loop, every = self.loop, self.task.validation.every
        rest = loop.steps - loop.done
        self.take(min(rest, every - loop.done % every) if every else rest)
        if every and loop.done % every == 0 and loop.done < loop.steps:
            save_or_warn(loop, self.state)
            self._look()

    def _look(self) -> None:
        """Makes validation images. Where they cannot be sampled the training goes on, and the reason is noted."""
        try:
            with self.progress.meanwhile("Sampling validation images"):
                self.task.look(self)
        except Stopped:
            raise
        except Exception as error:
            log.warning("The validation images after step %d could not be sampled; the training goes on.", self.loop.done, exc_info=error)
            self.task.missed.setdefault(f"{type(error).__name__}: {error}", []).append(self.loop.done)

    def take(self, count: int) -> None:
        """Takes up to `count` more steps. Raises what stops it; the loop then stands at its last good step."""
        end = self.loop.done + count
        self.runner(lambda loss: saving(self.loop, islice(self.loop.run(loss), end - self.loop.done), self.state))

    def _keep(self) -> str:
        with self.loop.averaged():
            written = self.write(self.loop)
        save_or_warn(self.loop, self.state)  # after what the user wants, should the disk be full
        return written

    def preview(self, image: Image.Image) -> None:
        """Shows validation images on the node, from now on instead of predictions of training images."""
        self.looks[:] = [image]
        self.progress.show(preview_of(image))


def _show(progress: ProgressBar, history: Sequence[Step], looks: Sequence[Image.Image], step: Step, preview: Callable) -> None:
    """On the node. Not a method of the run, whose steps hold it: a circle would keep the model in memory after the training."""

    def facts() -> str:
        last = [s.loss for s in history[-WINDOW:]]
        return f"loss {np.mean(last):.3g} (mean of {len(last)} steps)"

    progress.advance(step.index - progress.done, facts, lambda: None if looks else preview())


def run(task: Task, state: Path, write: Callable[[Loop], str], resume: bool = False) -> Loop:
    """Trains a task to its end; see `TrainingRun`."""
    training = TrainingRun(task, state, write, resume)
    training.finish()
    return training.loop


def side_by_side(images: torch.Tensor) -> Image.Image:
    return to_pil(torch.cat(list(images[..., :3]), 1))


def check_model(model) -> None:
    """Refuses a MODEL with a control of the pack: it acts on the conditionings that its node gives, and on no prompt of a training."""
    for control in controls_of(model, Control):
        raise ValueError(
            f"The model comes from {control.node}, which acts on the 'positive' of that node alone and cannot be trained through. Connect the "
            "model from before the node."
        )


def digest(tensors: Sequence[torch.Tensor]) -> str:
    """A short name for the tensors that a training learns from."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(np.ascontiguousarray(tensor.float().cpu().numpy()).tobytes())
    return found.hexdigest()[:12]


def about(settings: Settings, objective: Objective, images: Images, model, clip, **more) -> dict[str, str]:
    """What must be the same for a training to be continued; `model` and `clip` as they were given."""
    asked = {**asdict(settings), **asdict(objective)}
    fixed = {k: str(asked[k]) for k in ("batch_size", "seed", "optimizer", "accumulate", "weighting", "gamma", "levels")}
    shown = digest([*images.latents, *(m for m in images.masks if m is not None)])
    return {**fixed, **{k: str(v) for k, v in more.items()}, "images": shown, **base_keys(model, clip)}


def loss_curve(loop: Loop) -> torch.Tensor:
    """Loss and learning rate of every step; an IMAGE."""
    index, losses = [s.index for s in loop.history], [s.loss for s in loop.history]
    window = max(2, len(losses) // 20)
    means = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(len(losses))]
    lines = {"loss": list(zip(index, losses)), f"mean of {window} steps": list(zip(index, means))}
    charts = [
        line_chart(lines, f"loss of {loop.done} of {loop.steps} steps", "step", (768, 384)),
        line_chart({"rate": [(s.index, s.learning_rate) for s in loop.history]}, "learning rate of the loop", "step", (768, 220)),
    ]
    return as_image(stacked(charts))
