"""The loop of the demo recipes: Muon for matrices, which needs far fewer steps there, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from controlled_diffusion.training.loop import Loop
from controlled_diffusion.training.optimizers import optimizer


def matrix_view(weight: torch.Tensor) -> torch.nn.Parameter:
    """A weight as a matrix (outputs, inputs * kernel) that shares its memory."""
    flat = weight.detach()
    if flat.ndim == 4 and not flat.is_contiguous():
        flat = flat.permute(0, 2, 3, 1)
    return torch.nn.Parameter(flat.view(flat.shape[0], -1))


class Muon(torch.optim.Optimizer):
    """Muon for `matrices`, weights of linear layers and convolutions, and AdamW for `others`; both keep their moments in `state`."""

    def __init__(self, matrices: Sequence[torch.nn.Parameter], others: Sequence[torch.nn.Parameter]):
        super().__init__([*others, *matrices], {"lr": 0.0})
        self.views = {p: matrix_view(p) for p in matrices}
        muon = torch.optim.Muon(list(self.views.values()), weight_decay=0.0, ns_steps=4, adjust_lr_fn="match_rms_adamw")
        muon.state.update({view: self.state[p] for p, view in self.views.items()})
        self.parts = [muon]
        if others:
            self.parts.append(optimizer("adamw", others))
            self.parts[1].state.update({p: self.state[p] for p in others})

    def step(self) -> None:
        for p, view in self.views.items():
            grad = p.grad
            view.grad = (grad.permute(0, 2, 3, 1) if grad.ndim == 4 and not grad.is_contiguous() else grad).reshape(view.shape)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()


class MuonLoop(Loop):
    """A loop that trains the weights named in `matrices` by Muon."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], *, matrices: Sequence[str], **knobs):
        super().__init__(parameters, **knobs)
        others = [p for k, p in parameters.items() if k not in set(matrices)]
        self.algorithm = Muon([parameters[k] for k in matrices], others)
