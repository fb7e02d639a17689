"""Group normalization that trains several times as fast as torch's in bfloat16 on a CPU, where that takes a fifth of a step."""

from functools import partial

import torch


def _summed(pixels: torch.Tensor, height: int) -> torch.Tensor:
    """Sums (B, C), float32, over the pixels (B, H * W, C) of each channel: by rows in the dtype of the pixels, which takes no copy of them."""
    return pixels.unflatten(1, (height, -1)).sum(2).sum(1, dtype=torch.float32)


def _per_channel(of_groups: torch.Tensor, width: int) -> torch.Tensor:
    """Values of groups (B, G) for each of their channels, (B, G * width)."""
    return of_groups.repeat_interleave(width, 1)


class GroupNorm(torch.autograd.Function):
    """torch.nn.functional.group_norm of (B, C, H, W) in channels_last; statistics of rows in the dtype of the input, all else of them in float32."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups: int, eps: float):
        batch, channels, height, width = x.shape
        share, pixels = channels // groups, x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        count = height * width * share
        total, squares = (_summed(part, height).view(batch, groups, -1).sum(2) for part in (pixels, pixels * pixels))
        mean = total / count
        scale = ((squares / count - mean * mean).clamp(min=0) + eps).rsqrt()
        mean, scale = _per_channel(mean, share), _per_channel(scale, share)
        factor = scale * weight
        offset = bias - mean * factor
        out = torch.addcmul(offset[:, None].to(x.dtype), pixels, factor[:, None].to(x.dtype))
        ctx.save_for_backward(pixels, weight, mean, scale)
        ctx.groups, ctx.shape = groups, x.shape
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient):
        pixels, weight, mean, scale = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        share, dtype = channels // ctx.groups, pixels.dtype
        out = gradient.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        of_bias = _summed(out, height)
        of_weight = (_summed(out * pixels, height) - mean * of_bias) * scale
        shift, slope = (_mean_of_groups(part * weight, ctx.groups, height * width * share, share) for part in (of_bias, of_weight))
        first, second = scale * weight, -scale * scale * slope
        third = -scale * shift - mean * second
        fixed = torch.addcmul(third[:, None].to(dtype), pixels, second[:, None].to(dtype))
        of_pixels = torch.addcmul(fixed, out.to(dtype), first[:, None].to(dtype))
        return of_pixels.view(batch, height, width, channels).permute(0, 3, 1, 2), of_weight.sum(0), of_bias.sum(0), None, None


def _mean_of_groups(values: torch.Tensor, groups: int, count: int, share: int) -> torch.Tensor:
    """Sums (B, C) of channels to the mean of their group over `count` values, (B, C)."""
    return _per_channel(values.view(len(values), groups, -1).sum(2) / count, share)


def _forward(module: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    if x.ndim != 4 or x.dtype != torch.bfloat16:
        return torch.nn.functional.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
    return GroupNorm.apply(x, module.weight, module.bias, module.num_groups, module.eps)


def use_fast_norm(network: torch.nn.Module) -> torch.nn.Module:
    """Lets the group norms of this one network run as above."""
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = partial(_forward, module)
    return network
