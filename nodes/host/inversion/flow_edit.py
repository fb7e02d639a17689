"""FlowEdit and FlowAlign inside ComfyUI's sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....guidance.diffedit import mixed
from ....inversion.flow_edit import flow_edit, step_counts
from ..guidance.diffedit import MaskedImage
from ..latents import check_latent_channels
from ..sampling import TwoPrompts, run


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

            def source(x, sigma):
                with guider.under_source(source_cfg):
                    return derivative(x, sigma)

            def noised(sigma, noise, x0):
                return sampling.noise_scaling(torch.tensor([sigma]).to(x0), noise.expand_as(x0), x0)

            def within(inside, outside):
                return mixed(inside, outside, mask)

            return flow_edit(source, derivative, clean, sigmas, noised, within=within, show=show, **knobs)

        return self.keep_outside(run(guider, self.latent.float(), sigmas[steps - n_max :], loop, {"Editing": n_max}).latent)
