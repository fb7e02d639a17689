"""Drawn numbers and refusals, which most tests in torch alone need."""

import pytest
import torch


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal noise; float32 can hold it in any precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def refused(message: str, call, *values, **options) -> None:
    """Claims that the call with these values is a ValueError whose text matches `message`."""
    with pytest.raises(ValueError, match=message):
        call(*values, **options)
