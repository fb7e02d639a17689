"""DiffEdit: find what two prompts disagree about in an image, and change only that (arXiv 2210.11427).

The mask is where the predictions under the source and the target prompt differ on the same noised image; the edit is
DDIM from the image's own DDIM encoding, with everything off the mask held on the encoding. All of it in ComfyUI's
sigma space, `model(x, sigma) -> denoised`, so it is the same for eps, v and flow models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

NORMALIZATIONS = ("peak", "mean")
RULES = ("trajectory", "clean mix")
AUTO = -1.0
BINS = 256  # of the histogram for Otsu's threshold
PEAK = 0.99  # the quantile that stands for the largest value, so that one hot pixel does not decide


def probe_percents(start: float, end: float, levels: int) -> list[float]:
    """Percents of the sampling at which to compare the prompts: `levels` spread evenly over [start, end], or its middle."""
    if levels < 1:
        raise ValueError(f"There are {levels} probe levels; give 1 (the paper's) or more, usually 1 to 5.")
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(
            f"The probe runs from start_percent {start} to end_percent {end}; give 0 <= start <= end <= 1, usually 0.3 to 0.7."
        )
    if levels == 1:
        return [(start + end) / 2]
    return [start + (end - start) * i / (levels - 1) for i in range(levels)]


def heat(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """The heat map (B, h, w) of differences of denoised predictions, one tensor (maps, B, C, [frames,] h, w) for each level.

    It is the mean over maps, levels and channels of the absolute difference (paper; of one level the predicted noise gives the same). A
    video gets one map, the largest of its frames.
    """
    found = torch.cat([d.abs().mean(2) for d in levels]).mean(0)
    return found.flatten(1, -3).amax(1) if found.ndim > 3 else found


def _quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The q-quantile of each sample, (B, 1, 1); torch.quantile refuses large images."""
    flat = values.flatten(1)
    rank = min(max(round(q * flat.shape[1]), 1), flat.shape[1])
    return flat.kthvalue(rank).values[:, None, None]


def normalized(found: torch.Tensor, normalization: str = "peak", clamp_ratio: float = 3.0) -> torch.Tensor:
    """A heat map (B, h, w) in [0, 1], each sample by itself; a map without any difference stays 0.

    `mean` is the paper's: 1 at `clamp_ratio` times the mean, so that a threshold of 0.5 keeps what is above
    `clamp_ratio / 2` times the mean, and small things get a mask that is too large. `peak`: 1 at the 99th percentile.
    """
    if not clamp_ratio > 0:
        raise ValueError(f"clamp_ratio is {clamp_ratio}; give a number above 0, 3 in the paper.")
    top = found.mean((1, 2), keepdim=True) * clamp_ratio if normalization == "mean" else _quantile(found, PEAK)
    top = torch.where(top > 0, top, found.amax((1, 2), keepdim=True))  # a thing smaller than a hundredth of the image
    return torch.where(top > 0, found / torch.where(top > 0, top, 1), 0).clamp(0, 1)


def otsu(values: torch.Tensor) -> torch.Tensor:
    """Otsu's threshold of values (B, h, w) in [0, 1]: it parts them into the two most distinct groups. (B, 1, 1)."""
    edges = torch.arange(1, BINS + 1, device=values.device) / BINS
    found = []
    for sample in values:
        counts = torch.histc(sample, BINS, 0, 1)
        below, mass = counts.cumsum(0), (counts * (edges - 0.5 / BINS)).cumsum(0)
        above = below[-1] - below
        apart = mass / below.clamp(min=1) - (mass[-1] - mass) / above.clamp(min=1)
        distinct = below * above * apart**2
        found.append(edges[distinct == distinct.max()].mean())  # the middle of an empty gap
    return torch.stack(found)[:, None, None]


def cut(values: torch.Tensor, threshold: float, soft: bool = False) -> torch.Tensor:
    """A mask (B, h, w) of heat normalized to [0, 1]. Hard: 1 above the threshold. Soft: 0 at half of it, 1 at one and a half times it.

    The threshold -1 is Otsu's, for each image. What has no heat is never in the mask.
    """
    if threshold != AUTO and not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold:g}; give 0 to 1, usually 0.25 to 0.5, or -1 to let Otsu's method choose.")
    at = otsu(values) if threshold == AUTO else values.new_tensor(threshold)
    if not soft:
        return (values > at).to(values)
    return torch.where(values > 0, (values / at.clamp(min=1e-6) - 0.5).clamp(0, 1), 0)


def _grown(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """The largest value within a square of `radius` pixels; one side after the other, so that it is fast."""
    along = F.max_pool2d(mask[:, None], (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(along, (1, 2 * radius + 1), 1, (0, radius))[:, 0]


def dilated(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """A mask (B, H, W), grown by `radius` pixels; shrunk where it is negative."""
    return mask if radius == 0 else _grown(mask, radius) if radius > 0 else -_grown(-mask, -radius)


def opened(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Without specks narrower than 2 `radius` + 1 pixels."""
    return dilated(dilated(mask, -radius), radius)


def closed(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Without gaps and holes narrower than 2 `radius` + 1 pixels. The image's border is no part of a gap."""
    if radius == 0:
        return mask
    around = F.pad(mask, (radius,) * 4)
    return dilated(dilated(around, radius), -radius)[..., radius:-radius, radius:-radius]


def _reached(outside: torch.Tensor, walls: torch.Tensor) -> torch.Tensor:
    """`outside` (B, H, W) spread along each row, up to the next wall."""
    runs = walls.long().cumsum(-1)
    found = outside.new_zeros([*outside.shape[:-1], outside.shape[-1] + 1])
    return found.scatter_reduce(-1, runs, outside, "amax").gather(-1, runs) * (1 - walls)


def _filled(mask: torch.Tensor) -> torch.Tensor:
    """A mask of 0 and 1, with all that it encloses."""
    walls = F.pad(mask, (1,) * 4)
    before, outside = None, F.pad(torch.zeros_like(mask), (1,) * 4, value=1.0)
    while before is None or not torch.equal(before, outside):
        before, outside = outside, _reached(_reached(outside, walls).mT, walls.mT).mT
    return 1 - outside[..., 1:-1, 1:-1]


def filled(mask: torch.Tensor, levels: int = 8) -> torch.Tensor:
    """A mask (B, H, W) without holes, whatever their size; holes of a gray one are filled up to the highest of `levels` that encloses them."""
    if bool(((mask == 0) | (mask == 1)).all()):
        return _filled(mask)
    steps = torch.arange(1, levels + 1) / levels
    return torch.stack([mask, *(at * _filled((mask >= at).to(mask)) for at in steps.tolist())]).amax(0)


def blurred(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """A mask (B, H, W) under a Gaussian of standard deviation `radius` / 2, cut off at `radius` pixels."""
    if radius == 0:
        return mask
    steps = torch.arange(-radius, radius + 1, device=mask.device, dtype=mask.dtype)
    kernel = torch.exp(-0.5 * (steps / (radius / 2)) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(mask[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0].clamp(0, 1)


def resized(found: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A heat map (B, h, w) at the size of an image, smooth and never below 0."""
    if found.shape[-2:] == (height, width):
        return found
    return F.interpolate(found[:, None], (height, width), mode="bicubic", antialias=False)[:, 0].clamp(min=0)


def sharpened(found: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """A heat map at the size of an image with the edges of `pixels`, the difference of the decoded predictions (B, H, W).

    The geometric mean of both: the latent says surely what differs, but in cells; the pixels say where it ends.
    """
    smooth = resized(found, *pixels.shape[-2:])
    return (_relative(smooth) * _relative(pixels)).sqrt()


def _relative(found: torch.Tensor) -> torch.Tensor:
    mean = found.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, found / torch.where(mean > 0, mean, 1), 0)


def cells(mask: torch.Tensor, height: int, width: int, soft: bool = False) -> torch.Tensor:
    """A mask (B, H, W) at a latent's size. Hard: every cell that holds a pixel above 0.5. Soft: the mean of its pixels."""
    if mask.ndim != 3:
        raise ValueError(
            f"The mask differs between {mask.shape[1]} frames of a video, but DiffEdit takes one mask for the whole video. Give one, or edit with "
            "SDEdit Sampler, which takes one for each frame."
        )
    if soft:
        return F.adaptive_avg_pool2d(mask[:, None], (height, width))[:, 0]
    return F.adaptive_max_pool2d((mask[:, None] > 0.5).to(mask), (height, width))[:, 0]


def mixed(inside: torch.Tensor, outside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`inside` where the mask is 1 and `outside` where it is 0, both bit for bit; a blend between."""
    return torch.where(mask >= 1, inside, torch.where(mask <= 0, outside, mask * inside + (1 - mask) * outside))


@torch.no_grad()
def sample_diffedit(
    model: Callable, trajectory: Sequence[torch.Tensor], sigmas: torch.Tensor, mask: torch.Tensor, rule: str = RULES[0],
    extra_args: dict = {}, show: Callable[[torch.Tensor, torch.Tensor], None] = lambda x, denoised: None,
) -> torch.Tensor:  # fmt: skip
    """Deterministic DDIM along falling sigmas that end at 0, changing only the mask (broadcastable, 1 = changes).

    `trajectory[i]` is the encoding at `sigmas[i]`; its last is the image. The rule of the paper (Algorithm 1)
    puts the encoding of the level AFTER the step off the mask. `clean mix` puts the image into the predicted clean
    image off the mask and takes the step from there, which needs no encoding but the first. Where the mask is gray, what differs from that
    path stays, and the step adds its share once. `show(x, denoised)` sees every step.
    """
    if len(trajectory) != len(sigmas):
        raise ValueError(f"The encoding has {len(trajectory)} states for {len(sigmas)} sigmas; encode along the same sigmas.")
    x, path, clean = trajectory[0], trajectory[0], trajectory[-1]
    for i, (now, goal) in enumerate(zip(sigmas, sigmas[1:])):
        denoised, changed = model(x, now * x.new_ones([len(x)]), **extra_args), x - path
        if rule == "clean mix":
            denoised = mixed(denoised, clean + changed, mask)
        show(x, denoised)
        x, path = (each + (goal - now) * (each - aim) / now for each, aim in ((x, denoised), (path, clean)))
        if rule == "trajectory":
            path = trajectory[i + 1]
            x = mixed(x, path + changed, mask)
    return torch.where(mask <= 0, clean, x)


@dataclass(frozen=True)
class Cut:
    """How a mask is made of a heat map. Radii are shares of the image's shorter side, so that they mean the same at every size.

    `close` -1 is 1.5 cells of the latent, as wide as gaps between cells of heat are, and then holes of any size: where a new shape covers the
    old one, their common middle has no heat. Nothing with the paper's normalization.
    """

    normalization: str = NORMALIZATIONS[0]
    clamp_ratio: float = 3.0
    threshold: float = 0.3
    soft: bool = False
    close: float = AUTO
    open: float = 0.0
    dilate: float = 0.0
    blur: float = 0.0

    def __post_init__(self):
        for name in ("close", "open", "dilate", "blur"):
            value, least = getattr(self, name), {"dilate": -0.5, "close": AUTO}.get(name, 0.0)
            if not least <= value <= 0.5:
                raise ValueError(f"{name} is {value:g}; give a share of the image's shorter side, {least:g} to 0.5, usually 0 to 0.05.")

    def radius(self, name: str, size: Sequence[int], cell: float) -> int:
        """A radius in pixels of an image of `size` whose latent has cells of `cell` pixels."""
        share = getattr(self, name)
        if name == "close" and share < 0:
            return 0 if self.normalization == "mean" else round(1.5 * cell)
        return round(share * min(size))

    def mask(self, found: torch.Tensor, cell: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(mask, heat in [0, 1]) of a heat map (B, H, W) in pixels, of a latent with cells of `cell` pixels."""
        shown = normalized(found, self.normalization, self.clamp_ratio)
        mask = closed(cut(shown, self.threshold, self.soft), self.radius("close", shown.shape[-2:], cell))
        if self.close < 0 and self.normalization != "mean":
            mask = filled(mask)
        return self.grown(opened(mask, self.radius("open", mask.shape[-2:], cell)), cell), shown

    def grown(self, mask: torch.Tensor, cell: float) -> torch.Tensor:
        """A mask (B, H, W) after `dilate` and `blur`."""
        mask = dilated(mask, self.radius("dilate", mask.shape[-2:], cell))
        return blurred(mask, self.radius("blur", mask.shape[-2:], cell))
