"""What all trainers of concepts share: how a run goes, its validation images, what is kept of it, and the curve of its losses."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import comfy.sample
import numpy as np
import torch
from PIL import Image

from ....training.loop import Diverged, Loop, saving
from ....training.settings import Settings, Validation
from ..gradients import half_precision_scale, run_in_inference_mode
from ..images import as_image, line_chart, stacked, to_pil
from ..latents import decoded
from .denoiser import Objective, TrainDenoiser
from .images import Images
from .memory import MemoryPlan
from .run import Stopped, TrainingRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The name that the file got, the loss curve (IMAGE) and validation images (IMAGE) or None.

    Of trainers that give a model also the MODEL with the trained weights; of those of a subject their LoRA, what to write in a prompt, and the
    sentences of the subject's images so written (those that name a new word, if there is one).
    """

    name: str
    curve: torch.Tensor
    images: torch.Tensor | None = None
    model: object = None
    lora: dict[str, torch.Tensor] = field(default_factory=dict)
    word: str = ""
    sentences: tuple[str, ...] = ()


def sampled(model, vae, shape: torch.Size, conditionings: tuple[list, list], look: Validation, seed: int) -> torch.Tensor:
    """Images (B, H, W, 3) on the CPU of a CONDITIONING and its negative, by ComfyUI's own sampling of latents of a shape."""
    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, seed)
    knobs = (look.steps, look.cfg, look.sampler_name, look.scheduler, *conditionings, latent)
    return run_in_inference_mode(lambda: decoded(vae, comfy.sample.sample(model, noise, *knobs, disable_pbar=True, seed=seed)))[..., :3].cpu()


@dataclass(kw_only=True)
class Task:
    """A training ready to run. `parameters` are the trained weights; `learning_rate` is what the loop gets of the settings' own."""

    model: object
    vae: object
    images: Images
    objective: Objective
    settings: Settings
    validation: Validation
    about: dict[str, str]
    looks: list[torch.Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        return self.settings.learning_rate

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        """Networks beside the denoiser that gradients pass through."""
        return ()

    @property
    def shape(self) -> torch.Size:
        """Of the latents of one batch."""
        return torch.Size([self.settings.batch_size, *self.images.latents[0].shape[1:]])

    def around(self) -> AbstractContextManager:
        """What steps are taken inside of."""
        return nullcontext()

    def after_step(self) -> None:
        """Moves the parameters after each step."""

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
        return MemoryPlan(s.checkpointing, loop, shape, s.batch_size, self.usual_rows, float(middle), self.modules)

    def loop(self) -> Loop:
        s = self.settings
        return Loop(
            self.parameters, steps=s.steps, learning_rate=self.learning_rate, warmup=s.warmup, average=s.average, optimizer=s.optimizer,
            schedule=s.schedule, accumulate=s.accumulate, loss_scale=half_precision_scale(self.model), after_step=self.after_step, about=self.about,
        )  # fmt: skip

    def look(self, training: TrainingRun) -> None:
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
        return TrainResult(name=name, curve=loss_curve(loop), images=torch.cat(self.looks) if self.looks else None, **more)


def run(task: Task, state: Path, write: Callable[[Loop], str], resume: bool = False) -> Loop:
    """Trains; `write` saves the trained weights and says where. The state of the training is kept in a file of its own.

    A stop by the user keeps and writes the trained weights; so does an error, which then goes on. The last validation images are made when all
    is written.
    """
    loop = task.loop()
    state.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        loop.restore(state)
    start = task.conditioning(task.validation.prompt)
    training = TrainingRun(
        task.model, start, loop, task.loss, task.shape, task.modules, lambda steps: saving(loop, steps, state), task.around,
        task.memory_plan(loop).blocks,
    )  # fmt: skip

    def keep() -> str:
        with loop.averaged():
            written = write(loop)
        loop.save(state)  # after what the user wants, should the disk be full
        return written

    def look() -> None:
        loop.save(state)
        task.look(training)

    try:
        whole = training.run_to_end(task.validation.every, look)
    except Diverged as error:
        if not loop.done:
            raise
        raise Diverged(f"{error} They are saved: {keep()}") from error
    except Exception:
        if loop.done:
            log.warning("The weights after %d of %d steps are saved: %s", loop.done, loop.steps, keep())
        raise
    keep()
    if whole:
        try:
            task.look(training)
        except Stopped:
            log.info("The training is done and saved; its last validation images were stopped.")
    return loop


def side_by_side(images: torch.Tensor) -> Image.Image:
    return to_pil(torch.cat(list(images[..., :3]), 1))


def digest(tensors: Sequence[torch.Tensor]) -> str:
    """A short name for the tensors that a training learns from."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(np.ascontiguousarray(tensor.float().cpu().numpy()).tobytes())
    return found.hexdigest()[:12]


def about(settings: Settings, objective: Objective, images: Images, **more) -> dict[str, str]:
    """What must be the same for a training to be continued."""
    asked = {**asdict(settings), **asdict(objective)}
    fixed = {k: str(asked[k]) for k in ("batch_size", "seed", "optimizer", "accumulate", "weighting", "levels")}
    shown = digest([*images.latents, *(m for m in images.masks if m is not None)])
    return {**fixed, **{k: str(v) for k, v in more.items()}, "images": shown}


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
