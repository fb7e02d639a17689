"""Training inside the host's own sampling: its loading, conditionings, patches, hooks and previews, with gradients.

Steps run as a `Sampler` of the host, some at a time; between them images can be sampled. Nothing is trained on the weights that other
nodes hold: what is learnt lies outside of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from PIL import Image

from ....training.loop import Loop, Step
from .. import checkpointing, gradients
from ..gradients import KEY, check_whole
from ..noise_levels import run_noise_scale
from .denoiser import Ground

Stopped = comfy.model_management.InterruptProcessingException
log = logging.getLogger(__name__)




































class Lesson(comfy.samplers.Sampler):
    """Takes some steps of a training in one run of the host's sampling. `blocks` gives those that run again in the backward pass."""

    def __init__(
        self,
        steps: Callable[[Ground], Iterator[Step]],
        modules: Sequence[torch.nn.Module],
        show: Callable[[Step], None],
        mutations: bool = True,
        around: Callable[[], AbstractContextManager] = nullcontext,
        blocks: Callable[[Ground], Sequence[torch.nn.Module]] = lambda ground: (),
    ):
        self.steps, self.modules, self.show, self.mutations, self.around, self.blocks = steps, modules, show, mutations, around, blocks

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        check_whole([model_wrap.model_patcher, *model_wrap.model_patcher.get_additional_models_with_key(KEY)])
        for module in (model_wrap.inner_model, *self.modules):
            gradients.to_normal_tensors(module)
        ground = Ground(model_wrap, extra_args["model_options"], run_noise_scale(model_wrap))
        gradients.attend_with_derivative(ground.options["transformer_options"])
        norms = gradients.norms_keep_their_inputs(() if self.mutations else self.modules)
        texts = checkpointing.recomputed(checkpointing.coarse_blocks(self.modules))
        with gradients.differentiable(self.mutations), norms, self.around(), texts, checkpointing.recomputed(self.blocks(ground)):
            for step in self.steps(ground):
                self.show(step)
                comfy.model_management.throw_exception_if_processing_interrupted()
        return latent_image










@dataclass
class Course:
    """A training of a MODEL, some steps at a time.

    `start` is a CONDITIONING by which the host estimates its memory. `modules` are further networks that gradients pass through.
    """

    model: object
    start: list
    loop: Loop
    loss_of: Callable[[Ground, int], torch.Tensor]
    batch: torch.Size
    modules: Sequence[torch.nn.Module] = ()
    watched: Callable[[Iterator[Step]], Iterator[Step]] = iter  # sees every step, as one that saves does
    around: Callable[[], AbstractContextManager] = nullcontext  # what steps are taken inside of
    mutations: bool = False  # whether the networks change in place what autograd saves; found out when they do
    blocks: Callable[[Ground], Sequence[torch.nn.Module]] = lambda ground: ()  # of the denoiser, that run again in the backward pass
    bar: comfy.utils.ProgressBar = field(init=False)

    def __post_init__(self):
        self.bar = comfy.utils.ProgressBar(self.loop.steps)

    def run(self, count: int) -> None:
        """Takes up to `count` more steps. Raises what stops it; the loop then stands at its last good step."""
        goal = self.loop.done + count
        try:
            return self._run(count)
        except RuntimeError as error:
            if gradients.without_derivative(error):
                name = type(self.model.model).__name__
                raise ValueError(f"{name} cannot be trained with this ComfyUI: a part of it has no derivative ({error}).") from error
            if self.mutations or not gradients.mutated(error):
                raise
        self.mutations = True  # out here, as the error holds the graph of its step
        self._run(goal - self.loop.done)

    def _run(self, count: int) -> None:
        def steps(ground: Ground) -> Iterator[Step]:
            return self.watched(islice(self.loop.run(lambda i: self.loss_of(ground, i)), count))

        lesson = Lesson(steps, self.modules, self._show, self.mutations, self.around, self.blocks)
        guider = comfy.samplers.CFGGuider(self.model)
        guider.inner_set_conds({"positive": self.start})
        blank = torch.zeros(self.batch)
        guider.sample(blank, blank, lesson, torch.ones(1), disable_pbar=True, seed=0)

    def _show(self, step: Step, image: Image.Image | None = None) -> None:
        self.bar.update_absolute(step.index, step.total, None if image is None else ("JPEG", image, 512))

    def preview(self, image: Image.Image) -> None:
        """Shows an image on the node."""
        if self.loop.history:
            self._show(self.loop.history[-1], image)


def run_course(course: Course, every: int, look: Callable[[], None]) -> bool:
    """Runs a course to its end, calling `look` after every `every` steps (0 = never). False where the user stopped it after a step."""
    loop = course.loop
    try:
        while loop.done < loop.steps:
            rest = loop.steps - loop.done
            course.run(min(rest, every - loop.done % every) if every else rest)
            if every and loop.done % every == 0 and loop.done < loop.steps:
                look()
    except Stopped:
        if not loop.done:
            raise
        log.info("Training stopped after %d of %d steps; what is learnt is kept.", loop.done, loop.steps)
        return False
    return True


__all__ = ["Course", "Ground", "Objective", "Images", "levels", "picks", "images_of", "run_course", "trainable"]
