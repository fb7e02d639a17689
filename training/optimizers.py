"""Optimisers by name; AdamW and its kin are torch's, Prodigy is here (arXiv 2306.06101)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

SCHEDULES = ("cosine", "linear", "constant")


class Prodigy(torch.optim.Optimizer):
    """Adam that finds its own step size (arXiv 2306.06101, algorithm 4): `d` grows towards the distance to the solution.

    The learning rate multiplies what it finds: 1 is neutral. All parameters share one `d`, which is kept in the state of each, so that
    a saved state holds everything.
    """

    def __init__(self, params, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, first: float = 1e-6):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, first=first))

    def _start(self, p: torch.Tensor, first: float) -> dict:
        state = self.state[p]
        if not state:
            state |= {k: torch.zeros_like(p) for k in ("mean", "square", "derivative")}
            state |= {"origin": p.detach().clone(), "d": p.new_tensor(first), "gain": p.new_zeros(()), "step": torch.zeros(())}
        return state

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(group, parameters, [self._start(p, group["first"]) for p in parameters])
        return loss

    def _step(self, group: dict, parameters: list[torch.Tensor], states: list[dict]) -> None:
        (beta1, beta2), lr, d = group["betas"], group["lr"], float(states[0]["d"])
        count = float(states[0]["step"]) + 1
        gamma, keep = lr * math.sqrt(1 - beta2**count) / (1 - beta1**count), math.sqrt(beta2)
        moved = sum(float((p.grad * (s["origin"] - p)).sum()) for p, s in zip(parameters, states))
        gain = keep * float(states[0]["gain"]) + (1 - keep) * gamma * d**2 * moved
        for p, s in zip(parameters, states):
            s["derivative"].mul_(keep).add_(p.grad, alpha=(1 - keep) * gamma * d**2)
            s["mean"].lerp_(d * p.grad, 1 - beta1)
            s["square"].lerp_((d * p.grad).square(), 1 - beta2)
        span = sum(float(s["derivative"].abs().sum()) for s in states)
        grown = max(d, gain / span) if span > 0 else d
        for p, s in zip(parameters, states):
            p.sub_(s["mean"] / (s["square"].sqrt() + d * group["eps"]), alpha=gamma * d)
            s["d"].fill_(grown)
            s["gain"].fill_(gain)
            s["step"].fill_(count)


def _adamw(parameters, decay):
    return torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=decay)


def _sgd(parameters, decay):
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, weight_decay=decay)


def _adafactor(parameters, decay):
    return torch.optim.Adafactor(parameters, eps=(None, 1.0), weight_decay=decay)  # rates as AdamW's, not shares of weights that start at 0


def _prodigy(parameters, decay):
    return Prodigy(parameters)


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd, "adafactor": _adafactor, "prodigy": _prodigy}
NUMBERS = {"adamw": 2, "sgd": 1, "adafactor": 0, "prodigy": 4}  # what each keeps beside a weight


def optimizer(name: str, parameters: Iterable[torch.Tensor], weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """An optimiser over `parameters`; the loop sets its learning rate. Prodigy takes no weight decay."""
    if name not in OPTIMIZERS:
        raise ValueError(f"There is no optimizer '{name}'; choose one of {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name](list(parameters), weight_decay)


def warm_cosine(index: int, total: int, warmup: int) -> float:
    """Factor of the learning rate at 0-based step `index`: linear rise over `warmup`, then a cosine to zero."""
    return rate_factor("cosine", index, total, warmup)


def rate_factor(schedule: str, index: int, total: int, warmup: int) -> float:
    """Factor of the learning rate at 0-based step `index`: a linear rise over `warmup` steps, then 1 throughout ("constant"), or a
    way down to zero at `total` along a line or a cosine."""
    if schedule not in SCHEDULES:
        raise ValueError(f"There is no schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}.")
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(1, total - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[schedule]
