"""Training inside ComfyUI's own sampling: its loading, conditionings, patches, hooks and previews, with gradients.

Steps run as a `Sampler`, some at a time; between them images can be sampled. Nothing is trained on the weights that other nodes hold: the
trained weights lie outside of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from PIL import Image

from ....training.loop import Loop, Step
from .. import checkpointing, gradients
from ..gradients import KEY, check_whole
from ..noise_levels import run_noise_scale
from .denoiser import TrainDenoiser

Stopped = comfy.model_management.InterruptProcessingException
Blocks = Callable[[TrainDenoiser], Sequence[torch.nn.Module]]
log = logging.getLogger(__name__)


class TrainSampler(comfy.samplers.Sampler):
    """Takes some steps of a training in one run of ComfyUI's sampling.

    `modules` are further networks that gradients pass through, `around` what steps are taken inside of; `blocks` gives those of the denoiser
    that run again in the backward pass.
    """

    def __init__(
        self,
        steps: Callable[[TrainDenoiser], Iterator[Step]],
        modules: Sequence[torch.nn.Module] = (),
        show: Callable[[Step], None] = lambda step: None,
        around: Callable[[], AbstractContextManager] = nullcontext,
        blocks: Blocks = lambda denoiser: (),
    ):
        self.steps, self.modules, self.show, self.around, self.blocks = steps, modules, show, around, blocks

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        check_whole([model_wrap.model_patcher, *model_wrap.model_patcher.get_additional_models_with_key(KEY)])
        for module in (model_wrap.inner_model, *self.modules):
            gradients.to_normal_tensors(module)
        denoiser = TrainDenoiser(model_wrap, extra_args["model_options"], run_noise_scale(model_wrap))
        gradients.attend_with_derivative(denoiser.options["transformer_options"])
        texts = checkpointing.recomputed(checkpointing.coarse_blocks(self.modules))
        with gradients.differentiable(), self.around(), texts, checkpointing.recomputed(self.blocks(denoiser)):
            for step in self.steps(denoiser):
                self.show(step)
                comfy.model_management.throw_exception_if_processing_interrupted()
        return latent_image


def run_sampler(model, conditioning: list, shape: Sequence[int], sampler: TrainSampler) -> None:
    """One run of ComfyUI's sampling on empty latents; by the conditioning and the shape it estimates its memory."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    guider.sample(torch.zeros(shape), torch.zeros(shape), sampler, torch.ones(1), disable_pbar=True, seed=0)


@dataclass
class TrainingRun:
    """A training of a MODEL, some steps at a time. `start` and `batch` are what `run_sampler` takes; see `TrainSampler` for others."""

    model: object
    start: list
    loop: Loop
    loss_of: Callable[[TrainDenoiser, int], torch.Tensor]
    batch: torch.Size
    modules: Sequence[torch.nn.Module] = ()
    watched: Callable[[Iterator[Step]], Iterator[Step]] = iter  # sees every step, as one that saves does
    around: Callable[[], AbstractContextManager] = nullcontext
    blocks: Blocks = lambda denoiser: ()
    bar: comfy.utils.ProgressBar = field(init=False)

    def __post_init__(self):
        self.bar = comfy.utils.ProgressBar(self.loop.steps)

    def run(self, count: int) -> None:
        """Takes up to `count` more steps. Raises what stops it; the loop then stands at its last good step."""

        def steps(denoiser: TrainDenoiser) -> Iterator[Step]:
            return self.watched(islice(self.loop.run(lambda i: self.loss_of(denoiser, i)), count))

        try:
            run_sampler(self.model, self.start, self.batch, TrainSampler(steps, self.modules, self._show, self.around, self.blocks))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.loop.done:
                raise
            raise ValueError(
                f"{type(self.model.model).__name__} cannot be trained with this ComfyUI: its first step failed ({error}). A part of a model that "
                "has no derivative cannot be trained through; use another model or another version of ComfyUI."
            ) from error

    def run_to_end(self, every: int, look: Callable[[], None]) -> bool:
        """Takes all steps, calling `look` after every `every` (0 = never). False where the user stopped it after a step."""
        loop = self.loop
        try:
            while loop.done < loop.steps:
                rest = loop.steps - loop.done
                self.run(min(rest, every - loop.done % every) if every else rest)
                if every and loop.done % every == 0 and loop.done < loop.steps:
                    look()
        except Stopped:
            if not loop.done:
                raise
            log.info("Training stopped after %d of %d steps; the trained weights are kept.", loop.done, loop.steps)
            return False
        return True

    def _show(self, step: Step, image: Image.Image | None = None) -> None:
        self.bar.update_absolute(step.index, step.total, None if image is None else ("JPEG", image, 512))

    def preview(self, image: Image.Image) -> None:
        """Shows an image on the node."""
        if self.loop.history:
            self._show(self.loop.history[-1], image)
