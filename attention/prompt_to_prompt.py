"""Prompt-to-Prompt: draw a target prompt with the attention maps of a source prompt (arXiv 2208.01626).

Source and targets are rows of one batch that start from the same noise. In cross-attention the probabilities of the target's tokens
are replaced by those of the matching source tokens, in self-attention the target's queries and keys by the source's, which
gives it the source's probabilities. Both while a window of the sampling is open, so it does not matter how often or in which parts the
network is called. The source's rows are never changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from .alignment import Alignment, stretched
from .maps import AT_ONCE


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: `images` of the source, then as many for each of `targets`."""

    images: int
    targets: int

    @property
    def total(self) -> int:
        return self.images * (1 + self.targets)

    @property
    def source(self) -> range:
        return range(self.images)

    def target(self, number: int) -> range:
        return range(self.images * (1 + number), self.images * (2 + number))


@dataclass(frozen=True)
class Window:
    """A part of the sampling, from `start` up to `end` in percent; 1 is the end of all. Empty where both are the same."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(f"The window runs from {self.start} to {self.end}; give 0 <= start <= end <= 1.")

    def __contains__(self, percent: float) -> bool:
        return self.start <= percent < self.end or percent >= self.end == 1.0 > self.start


def probabilities(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention probabilities (B, heads, Nq, Nk), float32, of projected queries and keys (B, N, heads * dim)."""
    q, k = (t.reshape(len(t), t.shape[1], heads, -1).transpose(1, 2).float() for t in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def attended(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What probabilities (B, heads, Nq, Nk) gather from projected values (B, Nk, heads * dim): (B, Nq, heads * dim)."""
    heads = p.shape[1]
    out = p.to(v.dtype) @ v.reshape(len(v), v.shape[1], heads, -1).transpose(1, 2)
    return out.transpose(1, 2).reshape(len(v), p.shape[2], -1)


@dataclass(frozen=True)
class Settings:
    """Which maps of the source are taken over, and when. `alpha` is their share, 1 for all; less lets the target's style through."""

    cross: Window = Window(0.0, 0.8)
    self: Window = Window(0.0, 0.4)
    alpha: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}; give 0 (the target's own attention) to 1 (the source's).")


@dataclass(frozen=True)
class ActiveEdit:
    """An edit of cross-attention at one time. All per column of the target; `strength` in [0, alpha] is how far the edit acts.

    `copies`: the source's probabilities are taken as they are. `conserves`: rows sum to 1 by themselves, before weights. `needs_own`:
    the target's own probabilities are needed.
    """

    mapper: torch.Tensor
    own: torch.Tensor
    weights: torch.Tensor
    strength: torch.Tensor
    copies: bool
    conserves: bool
    needs_own: bool

    @classmethod
    def prepare(cls, edit: Edit, strength: torch.Tensor, device: torch.device) -> ActiveEdit:
        mapper, own, weights = edit.mapper, edit.own, edit.weights
        fully, evenly = bool((strength == 1).all()), bool((strength == strength[0]).all())
        all_mapped = bool(torch.allclose(mapper.sum(1), torch.ones(len(mapper)))) and not own.any()
        same = mapper.shape[0] == mapper.shape[1] and torch.equal(mapper, torch.eye(len(mapper)))
        copies = same and fully and bool((weights == 1).all())
        tensors = (t.to(device) for t in (mapper, own, weights, strength))
        return cls(*tensors, copies, evenly and bool(all_mapped or own.all()), bool(own.any()) or not fully)

    def __call__(self, source: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """The edited probabilities (..., Lt) from the source's (..., Ls) and, where it needs them, the target's own (..., Lt).

        Rows sum to 1 but for the weights, which multiply their columns as in the paper's attention re-weighting.
        """
        p = source @ self.mapper
        if self.needs_own:
            p = self.strength * (p + self.own * target) + (1 - self.strength) * target
        if not self.conserves:
            p = p / p.sum(-1, keepdim=True)
        return p * (1 + self.strength * (self.weights - 1))


def edited_attention(
    source: tuple[torch.Tensor, torch.Tensor], target: tuple[torch.Tensor, torch.Tensor], v: torch.Tensor, edit: ActiveEdit,
    scale: float | None = None, bias: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None), difference: bool = False,
    at_once: int = AT_ONCE,
) -> torch.Tensor:  # fmt: skip
    """What a target's values (B, heads, Nk, D) give under an edit of probabilities: (B, heads, Nq, D).

    `source` and `target` are queries and keys (B, heads, N, D), `bias` is added to the logits of each. `difference`: less what the target's
    own probabilities give. Probabilities exist for a few queries at a time, `at_once` bytes of them.
    """
    step, out = max(1, at_once // (4 * v.shape[0] * v.shape[1] * v.shape[2])), []

    def chunk(qk: tuple[torch.Tensor, torch.Tensor], added: torch.Tensor | None, start: int) -> torch.Tensor:
        q, k = qk
        logits = q[:, :, start : start + step].float() @ k.float().transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        if added is not None:
            logits = logits + (added if added.shape[-2] == 1 else added[..., start : start + step, :])
        return logits.softmax(-1)

    for start in range(0, target[0].shape[2], step):
        own = chunk(target, bias[1], start) if edit.needs_own or difference else None
        p = edit(chunk(source, bias[0], start), own)
        out.append((p - own if difference else p).to(v.dtype) @ v)
    return torch.cat(out, 2)


@dataclass(frozen=True)
class Edit:
    """How a target's cross-attention is made from the source's and its own.

    `mapper` (Ls, Lt), `own` and `weights` (Lt,) as of `Alignment`; `weights` multiply columns, 1 is neutral. `windows` gives some columns
    a window of their own.
    """

    mapper: torch.Tensor
    own: torch.Tensor
    weights: torch.Tensor
    settings: Settings = Settings()
    windows: dict[int, Window] = field(default_factory=dict)

    @classmethod
    def from_alignment(
        cls, alignment: Alignment, settings: Settings = Settings(), weights: dict[int, float] = {}, windows: dict[int, Window] = {}
    ) -> Edit:
        """The edit of an alignment, with more weights and windows for some columns of the target."""
        factors = alignment.factors()
        for column, weight in weights.items():
            factors[column] *= weight
        return cls(alignment.mapper(), alignment.own(), factors, settings, dict(windows))

    def acts(self, percent: float) -> bool:
        """Whether anything is edited at a percent of the sampling."""
        return self.settings.alpha > 0 and (percent in self.settings.cross or any(percent in w for w in self.windows.values()))

    def at_percent(self, percent: float, device: torch.device = torch.device("cpu")) -> ActiveEdit | None:
        """The edit at a percent of the sampling; None where nothing is edited."""
        strength = torch.full_like(self.own, self.settings.alpha if percent in self.settings.cross else 0.0)
        for column, window in self.windows.items():
            strength[column] = self.settings.alpha if percent in window else 0.0
        return ActiveEdit.prepare(self, strength, device) if strength.any() else None

    def repeated(self, source: int, target: int) -> Edit:
        """The same for conditionings that are repeated so many times."""
        length, copies = len(self.own), range(target)
        windows = {column + copy * length: window for column, window in self.windows.items() for copy in copies}
        own, weights = self.own.repeat(target), self.weights.repeat(target)
        return replace(self, mapper=stretched(self.mapper, source, target), own=own, weights=weights, windows=windows)

    def filled(self, length: int) -> Edit:
        """The same for conditionings that were filled up behind to one length; what fills them is hidden from attention."""
        source, target = self.mapper.shape
        return self._padded(F.pad(self.mapper, (0, length - target, 0, length - source)))

    def extended(self, columns: int) -> Edit:
        """The same for conditionings with so many more columns, which keep their places."""
        return self._padded(torch.block_diag(self.mapper, torch.eye(columns)))

    def _padded(self, mapper: torch.Tensor) -> Edit:
        more = mapper.shape[1] - len(self.own)
        return replace(self, mapper=mapper, own=F.pad(self.own, (0, more)), weights=F.pad(self.weights, (0, more), value=1.0))
