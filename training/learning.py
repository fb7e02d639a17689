"""Whether a training learned: its loss on the same samples before and after, where images, prompts, noise and noise levels cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

SAMPLES, SHARE = 32, 10  # samples compared; of the steps at most one in so many
LITTLE = 0.05  # the share of its loss that a training should take away: on the demo model 4 % where a word learned nothing, 13 % where it did


def batches(steps: int, samples: int) -> int:
    """How many of the first batches, of so many `samples` each, are compared: `SAMPLES` in all, fewer in a short training."""
    return min(-(-SAMPLES // samples), steps // SHARE)


@dataclass(frozen=True)
class LossChange:
    """The losses of the same batches before and after a training; at least one."""

    before: Sequence[float]
    after: Sequence[float]

    @property
    def fall(self) -> float:
        """The share of the mean loss that the training took away; below 0 where it rose."""
        return 1 - fmean(self.after) / max(fmean(self.before), 1e-12)

    @property
    def is_chance(self) -> bool:
        """Whether the loss rose, or fell by less than two standard errors of its mean change."""
        changes = [a - b for a, b in zip(self.after, self.before, strict=True)]
        error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
        return fmean(changes) >= -2 * error

    @property
    def is_small(self) -> bool:
        return self.is_chance or self.fall < LITTLE

    def report(self, advice: str) -> str:
        """The losses in a sentence; where they fell by little or not at all, with what to do next."""
        values = f"{fmean(self.before):.4g} before, {fmean(self.after):.4g} after training ({-self.fall:+.1%}), both on the same samples."
        if not self.is_small:
            return f"Loss: {values}"
        return f"The loss {'did not fall' if self.is_chance else 'hardly fell'}: {values} If images do not show what you trained: {advice}"
