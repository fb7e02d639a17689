"""Lets an edit use the values of its source's attention for the first steps, as DirectEdit does (arXiv 2605.02417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....attention.prompt_to_prompt import Rows, Window
from ..conditionings import marked
from .hook import NONE, Control, ControlRun, install, network_of


class SharedValuesRun(ControlRun):
    """Shared values during one run."""

    control: SharedValues

    def wanted(self, kind: str) -> frozenset:
        return self.all_layers if kind != "cross" and self.percent in self.control.window else NONE

    def share_qk(self, call, first: int, tokens: int) -> None:
        rows = self.control.rows
        call.value_row[first : first + rows.total] = [first + row for row in rows.source] * (1 + rows.targets)


@dataclass(frozen=True)
class SharedValues(Control):
    """The control: rows of targets gather the source's values in self-attention, or the image's in joint attention, while `window` is open."""

    node: ClassVar = "Inversion Sampler"
    run: ClassVar = SharedValuesRun
    rows: Rows
    window: Window


def with_shared_values(model, positive: list, images: int, branches: int, end: float) -> tuple:
    """(model, positive) under which the rows of all branches but the first use its values up to a percent of the sampling."""
    control = SharedValues(Rows(images, branches - 1), Window(0.0, end), **network_of(model))
    return install(model, control), marked(positive, control.token, branches)
