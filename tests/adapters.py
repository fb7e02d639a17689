"""Random IP-Adapters with the names and shapes of the published files."""

import torch

SD15 = dict(text=768, widths=[320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280])
SDXL = dict(text=2048, widths=[640] * 4 + [1280] * 50 + [640] * 6 + [1280] * 10)


def drawn(shape: tuple, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=draw) / shape[-1] ** 0.5


def norm(name: str, width: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width, generator=draw), f"{name}.bias": 0.1 * torch.randn(width, generator=draw)}


def linear(name: str, inputs: int, outputs: int, draw: torch.Generator, bias: bool = True) -> dict[str, torch.Tensor]:
    made = {f"{name}.weight": drawn((outputs, inputs), draw)}
    return made | ({f"{name}.bias": 0.1 * torch.randn(outputs, generator=draw)} if bias else {})


def base(features: int, text: int, draw: torch.Generator, tokens: int = 4) -> dict[str, torch.Tensor]:
    return linear("proj", features, tokens * text, draw) | norm("norm", text, draw)


def full(features: int, text: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
    return linear("proj.0", features, features, draw) | linear("proj.2", features, text, draw) | norm("proj.3", text, draw)


def plus(features: int, text: int, draw: torch.Generator, width: int = 128, depth: int = 4, tokens: int = 16) -> dict[str, torch.Tensor]:
    """`width` is 768 in the SD1.5 files and 1280 in those of SDXL; heads have a width of 64 in both."""
    made = {"latents": drawn((1, tokens, width), draw)}
    made |= linear("proj_in", features, width, draw) | linear("proj_out", width, text, draw) | norm("norm_out", text, draw)
    for i in range(depth):
        attend, feed = f"layers.{i}.0", f"layers.{i}.1"
        made |= norm(f"{attend}.norm1", width, draw) | norm(f"{attend}.norm2", width, draw) | norm(f"{feed}.0", width, draw)
        made |= linear(f"{attend}.to_q", width, width, draw, False) | linear(f"{attend}.to_kv", width, 2 * width, draw, False)
        made |= linear(f"{attend}.to_out", width, width, draw, False)
        made |= linear(f"{feed}.1", width, 4 * width, draw, False) | linear(f"{feed}.3", 4 * width, width, draw, False)
    return made


PROJECTIONS = {"base": base, "plus": plus, "full": full}


def published(kind: str, features: int, text: int, widths: list[int], seed: int = 0, **shape) -> dict[str, torch.Tensor]:
    """The tensors of a file: an image projection, and keys and values for layers of these widths, at odd numbers."""
    draw = torch.Generator().manual_seed(seed)
    made = {f"image_proj.{k}": v for k, v in PROJECTIONS[kind](features, text, draw, **shape).items()}
    for i, width in enumerate(widths):
        made |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": drawn((width, text), draw) for part in "kv"}
    return made


def parted(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The same as the `diffusers` package takes it."""
    return {p: {k.removeprefix(f"{p}."): v for k, v in weights.items() if k.startswith(p)} for p in ("image_proj", "ip_adapter")}
