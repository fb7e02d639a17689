"""Lets an edit use the values of its source's attention for the first steps, as DirectEdit does (arXiv 2605.02417)."""

from __future__ import annotations

from dataclasses import dataclass

from ....attention.layers import Block, Place
from ....attention.prompt_to_prompt import Rows, Window
from ..conditionings import marked
from .dit import Dit, dit_of
from .hook import Control, ControlRun, install
from .unet import is_unet, unet_places


@dataclass(frozen=True)
class SharedValues(Control):
    """The control: rows of targets gather the source's values in self-attention, or the image's in joint attention, while `window` is open."""

    node = "Inversion Sampler"
    rows: Rows
    window: Window
    places: tuple[Place, ...] = ()  # of a UNet
    dit: Dit | None = None

    def begin(self, scale, noise):
        return SharedValuesRun(self, scale)


class SharedValuesRun(ControlRun):
    """Shared values during one run."""

    control: SharedValues

    def __init__(self, control, scale):
        super().__init__(control, scale)
        self.places, self.dit = control.places, control.dit

    @property
    def acts(self) -> bool:
        return not self.reached or self.percent in self.control.window

    def wants(self, kind: str, place: Place | Block) -> bool:
        return kind != "cross" and self.percent in self.control.window

    def share_qk(self, call, first: int, tokens: int) -> None:
        rows = self.control.rows
        call.value_row[first : first + rows.total] = [first + row for row in rows.source] * (1 + rows.targets)


def with_shared_values(model, positive: list, images: int, branches: int, end: float) -> tuple:
    """(model, positive) under which the rows of all branches but the first use its values up to a percent of the sampling."""
    network = dict(places=unet_places(model)) if is_unet(model) else dict(dit=dit_of(model))
    control = SharedValues(rows=Rows(images, branches - 1), window=Window(0.0, end), **network)
    return install(model, control), marked(positive, control.token, branches)
