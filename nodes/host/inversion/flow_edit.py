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


def _under_source(guider: TwoPrompts, derivative, cfg: float) -> Callable[[torch.Tensor, float], torch.Tensor]:
    def source(x, sigma):
        with guider.under_source(cfg):
            return derivative(x, sigma)

    return source


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

            source = _under_source(guider, derivative, source_cfg)
            return flow_edit(source, derivative, clean, sigmas, noised, within=within, show=show, **knobs)

        return self.keep_outside(run(guider, self.latent.float(), sigmas[steps - n_max :], loop, {"Editing": n_max}).latent)


class Averaged:
    """The mean derivative of several maps, x (maps, B, ...) -> (B, ...); `group` of them are evaluated together."""

    def __init__(self, derivative: Callable[[torch.Tensor, float], torch.Tensor], guider: TwoPrompts, group: int):
        self.derivative, self.guider, self.group = derivative, guider, group

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([self._of(maps, sigma) for maps in x.split(self.group)]).mean(0)

    @property
    def denoised(self) -> torch.Tensor:
        return self.derivative.denoised

    def _of(self, maps: torch.Tensor, sigma: float) -> torch.Tensor:
        self.guider.copies = len(maps)
        return self.derivative(maps.flatten(0, 1), sigma).unflatten(0, maps.shape[:2])


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
        seeds, group, states = seeds_of(self.seed, self.steps * self.maps), group_of(guider, latent, self.maps), [latent]

        def noised(sigma, noise, x0):
            own = [seeds.pop() for _ in range(self.maps)]
            return target.noised(guider, x0, torch.tensor(sigma).to(x0), own).unflatten(0, (self.maps, -1))

        def keep(x, denoised):
            states.append(x)
            show(x, denoised[: len(x)])

        source, edited = (Averaged(each, guider, group) for each in (_under_source(guider, derivative, guider.cfg), derivative))
        flow_edit(source, edited, latent, sigmas, noised, n_max=1.0, show=keep)
        return states
