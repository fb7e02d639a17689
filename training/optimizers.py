"""Optimizers of torch by name, and schedules of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch

from ..guidance.errors import check_choice

SCHEDULES = ("cosine", "linear", "constant")


OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.0),
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "adafactor": partial(torch.optim.Adafactor, eps=(None, 1.0)),  # rates as AdamW's, not shares of weights that start at 0
}
MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}, {"step", "row_var", "col_var"}, {"step", "variance"})  # of one weight
NUMBERS = {"adamw": 2, "sgd": 1, "adafactor": 0}  # what each keeps beside a weight


def optimizer(name: str, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """An optimizer over `parameters`; the loop sets its learning rate."""
    check_choice("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](list(parameters))


def rate_factor(schedule: str, index: int, total: int, warmup: int) -> float:
    """Factor of the learning rate at 0-based step `index`: a linear rise over `warmup` steps, then 1 throughout ("constant"), or down to zero
    at `total` along a line or a cosine."""
    check_choice("schedule", schedule, SCHEDULES)
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(1, total - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[schedule]
