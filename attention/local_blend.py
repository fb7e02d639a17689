"""Local blend of Prompt-to-Prompt (arXiv 2208.01626, section 4): change only where the attention of some words is.

The maps of the words are summed over layers and the noise levels so far; where the sum is high in the source's or in the target's
map, the target may differ from the source.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .prompt import Columns
from .prompt_to_prompt import Rows, Window

Pair = tuple[Columns, Columns]
NEARLY_ALL = 0.9  # of the image
FLAT = 0.05  # least range of a map that says where its words are, as a share of its largest value


def blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps (B, 1, h, w) under a Gaussian of 7 x 7 cells, which at an edge counts the cells there are."""
    line = torch.exp(-0.5 * (torch.arange(-3, 4, device=maps.device, dtype=maps.dtype) / sigma) ** 2)
    kernel = (line[:, None] * line)[None, None]
    return F.conv2d(maps, kernel, padding=3) / F.conv2d(torch.ones_like(maps), kernel, padding=3)


def cut(maps: torch.Tensor, size: tuple[int, int], threshold: float, spread: int, blur: float = 0.0) -> torch.Tensor:
    """Where maps (B, h, w) are above a share of their own range, from their least to their largest value, at another size: bool (B, H, W).

    They are blurred by `blur` cells, and then widened by `spread` cells on each side. A flat map is nowhere above, as it does not say where
    its words are; at a threshold of 0 everything is.
    """
    smooth = blurred(maps[:, None], blur) if blur else maps[:, None]
    low, high = smooth.amin((1, 2, 3)).view(-1, 1, 1), smooth.amax((1, 2, 3)).view(-1, 1, 1)
    wide = F.interpolate(F.max_pool2d(smooth, 2 * spread + 1, 1, spread), size, mode="bilinear")[:, 0]
    if threshold == 0:
        return wide > 0
    return (wide > low + threshold * (high - low)) & (high - low > FLAT * high)


@dataclass(frozen=True)
class LocalBlend:
    """Where targets may differ from the source. `edited` and `protected` hold, for each target, the columns of the words in the source
    and in the target.

    A target without edited words may differ everywhere but on its protected. `threshold` is a share of a map's range; `start`
    and `end` are percents of the sampling, outside which everything may differ; `spread` is how many cells of the maps the places of
    the edited words are widened by, `blur` how many all maps are blurred by.
    """

    edited: tuple[Pair, ...]
    protected: tuple[Pair, ...]
    threshold: float = 0.3
    start: float = 0.2
    end: float = 1.0
    spread: int = 1
    blur: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"The blend threshold is {self.threshold}; give 0 (everywhere) to 1 (nowhere), 0.3 in the paper.")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"start_percent is {self.start:g}, but end_percent is {self.end:g}: give percents of the sampling, the start at most the end."
            )
        if self.spread < 0:
            raise ValueError(f"The blend's spread is {self.spread} cells; give 0 or more, 1 in the paper.")

    def acts(self, percent: float) -> bool:
        return percent in Window(self.start, self.end)

    @property
    def empty(self) -> bool:
        return not any(columns for pair in (*self.edited, *self.protected) for columns in pair)


@dataclass
class Blending:
    """A local blend during one run. A noise level that is evaluated again, as second-order samplers do, counts once."""

    blend: LocalBlend
    rows: Rows
    level: float | None = None
    before: torch.Tensor | None = None  # (rows, 2 * targets, h, w), for the words of `words`: of all earlier levels
    now: torch.Tensor | None = None
    masks: list[tuple[float, torch.Tensor]] = field(default_factory=list)  # (percent, mask) of every level that was blended
    known: torch.Tensor | None = None  # the mask of the maps so far

    def words(self, branch: int) -> list[Columns]:
        """The words whose maps in the source (branch 0) or a target (1, 2, ...) count for each target: the edited of all, then the protected."""
        pairs = [(n, pair) for words in (self.blend.edited, self.blend.protected) for n, pair in enumerate(words, 1)]
        return [pair[branch > 0] if branch in (0, n) else () for n, pair in pairs]

    def on_level(self, level: float) -> None:
        """Before a prediction at a noise level."""
        if level != self.level:
            self.before, self.now = self.sums, None
        elif self.now is not None:
            self.now, self.known = None, None
        self.level = level

    def add(self, maps: torch.Tensor) -> None:
        """Adds the maps (rows, 2 * targets, h, w) of one layer."""
        self.now, self.known = maps if self.now is None else self.now + maps, None

    @property
    def sums(self) -> torch.Tensor | None:
        found = [s for s in (self.before, self.now) if s is not None]
        return sum(found[1:], found[0]) if found else None

    def mask(self, size: tuple[int, int]) -> torch.Tensor | None:
        """Where each row of a target may differ from its source: bool (targets * images, H, W); None while nothing is known."""
        sums = self.sums
        if self.known is None and sums is not None:
            edited, protected = sums.unflatten(0, (-1, self.rows.images)).unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4, 5)
            mask = self._places(edited, size, self.blend.spread)
            for target, pair in enumerate(self.blend.edited):
                if not any(pair):
                    mask[target] = True
            if any(any(pair) for pair in self.blend.protected):
                mask &= ~self._places(protected, size, 0)
            self.known = mask.flatten(0, 1)
        return self.known

    def _places(self, maps: torch.Tensor, size: tuple[int, int], spread: int) -> torch.Tensor:
        """Where words are in any branch: bool (targets, images, H, W) of maps (branches, targets, images, h, w)."""
        found = cut(maps.flatten(0, 2), size, self.blend.threshold, spread, self.blend.blur)
        return found.unflatten(0, maps.shape[:3]).any(0)

    def note(self, percent: float, mask: torch.Tensor) -> None:
        """Keeps the mask of a noise level."""
        if self.masks and self.masks[-1][0] == percent:
            self.masks.pop()
        self.masks.append((percent, mask))

    def end(self) -> None:
        """The run is over: masks are kept on the CPU, and maps for a further part of the same sampling."""
        self.known = None
        self.before, self.now = (None if maps is None else maps.cpu() for maps in (self.before, self.now))
        self.masks = [(percent, mask.cpu()) for percent, mask in self.masks]

    def follow(self, earlier: Blending, device: torch.device) -> None:
        """Goes on with the maps of an earlier part of the same sampling."""
        self.before, self.now = (None if maps is None else maps.to(device) for maps in (earlier.before, earlier.now))
        self.level = earlier.level

    def blended(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Latents (rows, C, [frames,] H, W) with the source's instead of the targets' off the mask."""
        source, targets = x[: self.rows.images], x[self.rows.images :]
        mask = mask.reshape(self.rows.targets, -1, *[1] * (x.ndim - 3), *mask.shape[-2:])
        mixed = torch.where(mask, targets.unflatten(0, (self.rows.targets, -1)), source)
        return torch.cat([source, mixed.flatten(0, 1)])


def coverages(mask: torch.Tensor, blend: LocalBlend, rows: Rows) -> list[tuple[str, str]]:
    """(how much of it may differ, a warning where that is nearly all or nothing) of each edited image; `mask` (targets * images, H, W)."""
    shares = mask.float().mean((1, 2)).tolist()
    named = [any(blend.edited[i // rows.images]) for i in range(len(shares))]
    return [(f"edit {i + 1}: {100 * share:.0f} % of the image may differ", _warning(share, named[i])) for i, share in enumerate(shares)]


def _warning(share: float, named: bool) -> str:
    if named and share >= NEARLY_ALL:
        return "Warning: the blend keeps almost nothing. Raise the threshold, or name the thing that changes (its noun)."
    if share == 0:
        return "Warning: the edit equals the source. Lower the threshold, or name the thing that changes (its noun)."
    return ""
