"""Training inside ComfyUI's own sampling: its loading, conditionings, patches, hooks and previews, with gradients.

Steps run as a `Sampler`, some at a time; between them images can be sampled. Nothing is trained on the weights that other nodes hold: the
trained weights lie outside of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import comfy.model_management
import comfy.samplers
import torch

from ....training.loop import Step
from .. import checkpointing, gradients
from ..evaluation_order import AnyOrderSampler
from ..gradients import KEY, check_whole
from ..noise_levels import run_noise_scale
from ..saved_tensors import CopyIfNeeded
from .denoiser import TrainDenoiser

Stopped = comfy.model_management.InterruptProcessingException
Blocks = Callable[[TrainDenoiser], Sequence[torch.nn.Module]]
Show = Callable[[Step, torch.Tensor | None], None]  # a step, and the denoiser's last prediction (1, C, ...)


class TrainSampler(AnyOrderSampler):
    """Takes some steps of a training in one run of ComfyUI's sampling.

    `modules` are further networks that gradients pass through, `around` what steps are taken inside of; `blocks` gives those of the denoiser
    that run again in the backward pass. Where the network changes in place what autograd has saved, `attempt` asks for `steps` once more.
    """

    apart = True

    def __init__(
        self, steps: Callable[[TrainDenoiser], Iterator[Step]], modules: Sequence[torch.nn.Module] = (),
        show: Show = lambda step, denoised: None, around: Callable[[], AbstractContextManager] = nullcontext,
        blocks: Blocks = lambda denoiser: (), attempt: CopyIfNeeded | None = None,
    ):  # fmt: skip
        self.steps, self.modules, self.show, self.around, self.blocks = steps, modules, show, around, blocks
        self.attempt = CopyIfNeeded() if attempt is None else attempt

    def evaluate(self, guider, sigmas, extra_args, callback, latent_image, denoise_mask):
        check_whole([guider.model_patcher, *guider.model_patcher.get_additional_models_with_key(KEY)])
        for module in (guider.inner_model, *self.modules):
            gradients.to_normal_tensors(module)
        denoiser = TrainDenoiser(guider, extra_args["model_options"], run_noise_scale(guider))
        gradients.attend_with_derivative(denoiser.options["transformer_options"])
        texts = checkpointing.recomputed(checkpointing.coarse_blocks(self.modules))
        with gradients.differentiable(copies=False), self.around(), texts, checkpointing.recomputed(self.blocks(denoiser)):
            for step in self.attempt(lambda: self.steps(denoiser)):
                self.show(step, denoiser.latest)
                comfy.model_management.throw_exception_if_processing_interrupted()
        return latent_image


def run_sampler(model, conditioning: list, shape: Sequence[int], sampler: TrainSampler) -> None:
    """One run of ComfyUI's sampling on empty latents; by the conditioning and the shape it estimates its memory. What other nodes add to the
    guidance finds a negative too, as in any sampling; nothing is trained on it."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.sample(torch.zeros(shape), torch.zeros(shape), sampler, torch.ones(1), disable_pbar=True, seed=0)
