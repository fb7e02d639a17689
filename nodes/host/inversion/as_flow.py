"""An eps or v model as a flow model: the same network and the same trajectories in other coordinates.

With x = (1 - s) x0 + s n, x / (1 - s) is x0 + sigma n with sigma = s / (1 - s), which is what the network was trained on. So every
evaluation of the flow model is one of the original model; nothing is approximated.
"""

from __future__ import annotations

import comfy.model_sampling
import torch

from ..model_tag import kind_of
from ..noise_levels import is_flow
from ..progress import keep


class AsFlow(comfy.model_sampling.CONST, torch.nn.Module):
    """ComfyUI's flow model sampling around that of an eps or v model, with levels from sigma_min to sigma_max, below 1.

    The network was not trained above sigma_max; there it is evaluated at sigma_max.
    """

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.__dict__["base"] = base  # not as a submodule: ComfyUI would look for its buffers here after this is removed
        self.top = float(self.sigma_max)

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        """Buffers that ComfyUI puts back go to the sampling that this one replaces."""
        self.base.register_buffer(name, tensor, persistent)

    @staticmethod
    def level(sigma):
        """s of a sigma of the original model."""
        return sigma / (1 + sigma)

    @property
    def sigmas(self) -> torch.Tensor:
        return self.level(self.base.sigmas)

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.level(self.base.sigma_min)

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.level(self.base.sigma_max)

    def clamped(self, s: torch.Tensor) -> torch.Tensor:
        """s, at most sigma_max."""
        return s.clamp(max=self.top)

    def original(self, s: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sigma, x) of the original model; s (B,), x (B, ...)."""
        clean = 1 - self.clamped(s)
        return (1 - clean) / clean, x / comfy.model_sampling.reshape_sigma(clean, x.ndim)

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.base.calculate_input(*self.original(sigma, noise))

    def calculate_denoised(self, sigma: torch.Tensor, model_output: torch.Tensor, model_input: torch.Tensor) -> torch.Tensor:
        level, x = self.original(sigma, model_input)
        return self.base.calculate_denoised(level, model_output, x)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        s = self.clamped(sigma)
        return self.base.timestep(s / (1 - s))

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return self.level(self.base.sigma(timestep))

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 if percent <= 0.0 else self.level(self.base.percent_to_sigma(percent))


def as_flow(model):
    """A clone of a MODEL that is a flow model; a flow model as it is, of which the node says so. Raises ValueError for models that predict
    neither eps nor v."""
    base, kind = model.get_model_object("model_sampling"), kind_of(model)
    if is_flow(base):
        keep(f"nothing changed: {kind} is a flow model already")
        return model
    if not isinstance(base, comfy.model_sampling.EPS) or isinstance(base, comfy.model_sampling.X0):
        raise ValueError(f"The model is {kind}, but only models that predict eps or v can become flow models. Connect one of these.")
    patched = model.clone()
    patched.add_object_patch("model_sampling", AsFlow(base))
    return patched
