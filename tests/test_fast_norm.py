"""The fast group norm of the training scripts gives torch's values and gradients."""

import pytest
import torch

from demo.fast_norm import GroupNorm, use_fast_norm


def results(norm, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(2, 64, 6, 5, generator=generator) + 1).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    weight, bias = (torch.randn(64, generator=generator).requires_grad_(True) for _ in range(2))
    out = norm(x, weight, bias)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    return [t.detach().float() for t in (out, x.grad, weight.grad, bias.grad)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_equals_torch(dtype, tolerance):
    mine = results(lambda x, w, b: GroupNorm.apply(x, w, b, 32, 1e-5), dtype)
    torchs = results(lambda x, w, b: torch.nn.functional.group_norm(x.float(), 32, w, b, 1e-5), dtype)
    for a, b in zip(mine, torchs):
        assert (a - b).norm() <= tolerance * b.norm()


def test_network_uses_it():
    network = use_fast_norm(torch.nn.Sequential(torch.nn.GroupNorm(32, 64)))
    x = torch.randn(1, 64, 4, 4).bfloat16()
    assert network(x).dtype == torch.bfloat16
    assert torch.allclose(network(x.float()), torch.nn.functional.group_norm(x.float(), 32))
