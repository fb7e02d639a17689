"""Comparison of results wherever they lie: what a node gives is on the CPU, what a sampler holds is on the model's device."""

import os
from functools import partial

import torch

assert_close = partial(torch.testing.assert_close, check_device=False)


def repeated(one, other) -> bool:
    """Whether two trainings learned the same: on a GPU nearly, where the gradient of attention is a little different each time."""
    if torch.cuda.is_available():
        torch.testing.assert_close(one, other, check_device=False, rtol=1e-2, atol=1e-3)
        return True
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def exact() -> None:
    """Makes a GPU compute in full float32, and the same from the same every time, as a CPU does."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which the next line has no effect on matrix products
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
