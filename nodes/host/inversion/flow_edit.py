"""FlowEdit and FlowAlign inside ComfyUI's sampling, and the mask of what FlowEdit would change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ....guidance.diffedit import heat, mixed
from ....inversion.flow_edit import flow_edit, step_counts
from ..guidance.diffedit import MaskedImage, MaskTarget, group_of, seeds_of
from ..latents import check_latent_channels
from ..noise_levels import levels
from ..sampling import TwoPrompts, run


class Copies:
    """A derivative of several noised copies of a batch, (copies * B, ...), evaluated as many together as fit the memory."""

    def __init__(self, derivative: Callable[[torch.Tensor, float], torch.Tensor], guider: TwoPrompts, batch: int, group: int):
        self.derivative, self.guider, self.batch, self.group = derivative, guider, batch, group

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([self._of(part, sigma) for part in x.split(self.group * self.batch)])

    @property
    def denoised(self) -> torch.Tensor:
        return self.derivative.denoised

    def _of(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.guider.copies = len(x) // self.batch
        return self.derivative(x, sigma)


def _sides(guider: TwoPrompts, derivative, source_cfg: float, latent: torch.Tensor, copies: int) -> list[Copies]:
    """The derivatives under source and target of that many noised copies of a latent."""

    def source(x, sigma):
        with guider.under_source(source_cfg):
            return derivative(x, sigma)

    group = group_of(guider, latent, copies)
    return [Copies(each, guider, len(latent), group) for each in (source, derivative)]


class FlowEdit(MaskedImage):
    """An image, the mask of what may change, and an edit of it without inversion."""

    def run(self, guider: TwoPrompts, sigmas: Sequence[float], source_cfg: float, **knobs) -> torch.Tensor:
        """The edited latent; where the mask is 0, the original's bit for bit. `knobs` are those of `flow_edit`."""
        check_latent_channels(guider.model_patcher, self.latent)
        steps = len(sigmas) - 1
        n_max, _ = step_counts(steps, knobs["n_max"], knobs["n_min"])
        if n_max == 0:
            return self.latent

        def loop(guider, derivative, clean, show):
            sampling = guider.inner_model.model_sampling
            mask = self.mask.to(clean)

            def noised(sigma, noise, x0):
                return sampling.noise_scaling(torch.tensor([sigma]).to(x0), noise.expand_as(x0), x0)

            def within(inside, outside):
                return mixed(inside, outside, mask)

            source, target = _sides(guider, derivative, source_cfg, clean, knobs["n_avg"])
            return flow_edit(source, target, clean, sigmas, noised, within=within, show=show, **knobs)

        return self.keep_outside(run(guider, self.latent.float(), sigmas[steps - n_max :], loop, {"Editing": n_max}).latent)


@dataclass(frozen=True)
class EditPath:
    """Two prompts compared along FlowEdit's path: how far a short edit without guidance moves each cell, in the middle half of its steps.

    Every step of `steps` averages `maps` noises. What is decoded is the image and the edit.
    """

    steps: int = 5
    maps: int = 4
    seed: int = 0
    refine: bool = True

    def compared(self, target: MaskTarget, guider: TwoPrompts) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        sigmas = levels(target.model, "simple", self.steps, 0.0)
        loop, phases = partial(self._states, target, sigmas), {"Comparing the prompts": self.steps}
        states = run(guider, target.latent, sigmas, loop, phases, seed=self.seed).result
        first, last = (round(share * self.steps) for share in (0.25, 0.75))
        return heat([(states[last] - states[first])[None]]), [torch.stack([states[0], states[-1]])]

    def _states(self, target: MaskTarget, sigmas: Sequence[float], guider: TwoPrompts, derivative, latent: torch.Tensor, show) -> list:
        """The states (B, ...) from the image to the edit."""
        seeds, states = seeds_of(self.seed, self.steps * self.maps), [latent]

        def noised(sigma, noise, x0):
            return target.noised(guider, x0, torch.tensor(sigma).to(x0), [seeds.pop()])

        def keep(x, denoised):
            states.append(x)
            show(x, denoised)

        source, edited = _sides(guider, derivative, guider.cfg, latent, self.maps)
        flow_edit(source, edited, latent, sigmas, noised, n_max=1.0, n_avg=self.maps, show=keep)
        return states
