"""Attention with its probabilities written out, which the pack's fused attention is compared with."""

import torch
from controlled_diffusion.attention.prompt_to_prompt import Edit


def split_heads(t: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, heads * dim) as (B, heads, N, dim)."""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def probabilities(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads, Nq, Nk), float32, of projected queries and keys (B, N, heads * dim)."""
    q, k = (split_heads(t, heads).float() for t in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def attended(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What probabilities (B, heads, Nq, Nk) gather from projected values (B, Nk, heads * dim): (B, Nq, heads * dim)."""
    return (p.to(v.dtype) @ split_heads(v, p.shape[1])).transpose(1, 2).flatten(2)


def edited(edit: Edit, percent: float, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The target's edited probabilities (..., Lt) from the source's (..., Ls) and its own, as the paper has them."""
    settings = edit.settings
    taken = torch.full_like(edit.own, settings.alpha if percent in settings.cross else 0.0)
    for column, window in edit.windows.items():
        taken[column] = settings.alpha if percent in window else 0.0
    mapper, own, weights, taken = (t.to(source.device) for t in (edit.mapper, edit.own, edit.weights, taken))
    p = taken * (source @ mapper + own * target) + (1 - taken) * target
    return p / p.sum(-1, keepdim=True) * (1 + taken * (weights - 1))
