"""Shows on the running node how far a long task is: a text below its widgets, and outside of sampling ComfyUI's progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate

import comfy.utils
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

INTERVAL = 0.5  # seconds between two texts
Preview = tuple[str, Image.Image, int]  # as ComfyUI's progress bar takes it: format, image, longer side


@dataclass
class NodeText:
    """What a node shows while it runs and after: ComfyUI keeps one text for it, so here lines that stay stand above the newest progress."""

    lines: list[str] = field(default_factory=list)
    progress: str = ""

    def show(self) -> None:
        """Without a server nobody reads it."""
        server, context = getattr(PromptServer, "instance", None), get_executing_context()
        if server is not None and context is not None:
            server.send_progress_text("\n".join(filter(None, (*self.lines, self.progress))), context.node_id, server.client_id)


_text: ContextVar[NodeText | None] = ContextVar("text of the running node", default=None)


@contextmanager
def node_text() -> Iterator[NodeText]:
    """Inside, the running node has a text of its own, which `say` and `keep` add to."""
    token = _text.set(NodeText())
    try:
        yield _text.get()
    finally:
        _text.reset(token)


def say(progress: str) -> None:
    """Writes on the running node, instead of the last progress."""
    text = _text.get() or NodeText()
    text.progress = progress
    text.show()


def keep(*lines: str) -> None:
    """Writes lines on the running node that stay; empty ones, and those that stand there already, are left out."""
    text = _text.get() or NodeText()
    new = [line for line in dict.fromkeys(lines) if line and line not in text.lines]
    if new:
        text.lines += new
        text.show()


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    units, name = (whole, "min") if whole < 3600 else (whole // 60, "h")
    return f"{units // 60}:{units % 60:02} {name}"


def preview_of(image: Image.Image) -> Preview:
    return "JPEG", image, 512


def latent_previews(model) -> Callable[[torch.Tensor], Preview | None]:
    """ComfyUI's preview of a latent in the MODEL's own space, by the method that the user has set; None where that is no method."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    @torch.no_grad()
    def preview(latent: torch.Tensor) -> Preview | None:
        return previewer and previewer.decode_latent_to_preview_image("JPEG", latent)

    return preview


class Progress:
    """A task of steps in phases, {name: steps}.

    A step gets a text where the last text is half a second old, or a phase ends. `spent` counts evaluations of the network for one image.
    Evaluations and time that are left of a phase follow from its steps after the first, before which a model may have been loaded.
    """

    def __init__(self, phases: Mapping[str, int], spent: Callable[[], float] | None = None, done: int = 0):
        self.phases, self.spent, self.done, self.total = dict(phases), spent, done, sum(phases.values())
        self.text, self.told, self.began = "", -math.inf, time.monotonic()
        self.start: tuple[int, float, float] | None = None  # of a phase: steps, time and evaluations at its first text

    def advance(self, steps: int = 1, facts: Callable[[], str] = str) -> bool:
        """Counts steps. `facts`, numbers to show, is asked only where a text is due. Says whether it was."""
        self.done, now = min(self.done + steps, self.total), time.monotonic()
        name, taken, of = self._phase()
        if now - self.told < INTERVAL and taken < of:
            return False
        self.told, lines = now, [f"{name}: {taken} of {of}", ", ".join(filter(None, (facts(), self._cost(taken, of, now))))]
        self.text = "\n".join(filter(None, lines))
        say(self.text)
        return True

    @contextmanager
    def meanwhile(self, what: str) -> Iterator[None]:
        """Inside, the text also says what else is done."""
        say(f"{self.text}\n{what}".strip())
        try:
            yield
        finally:
            say(self.text)

    def _phase(self) -> tuple[str, int, int]:
        """(name, steps taken, all steps) of the phase that the last step belongs to."""
        name, end = next(found for found in zip(self.phases, accumulate(self.phases.values())) if self.done <= found[1])
        return name, self.done - end + self.phases[name], self.phases[name]

    def _cost(self, taken: int, of: int, now: float) -> str:
        """What a phase still costs, or after the last of all steps what they did."""
        spent = self.spent() if self.spent else 0.0
        first, at, before = self.start = self.start or (taken, now, spent)
        if self.done == self.total:
            return f"{self._evaluations(spent)}{duration(now - self.began)} taken"
        if taken == of:
            self.start = None
        if taken in (first, of):
            return ""
        ahead = (of - taken) / (taken - first)
        return f"{self._evaluations((spent - before) * ahead)}{duration((now - at) * ahead)} left"

    def _evaluations(self, count: float) -> str:
        return f"{round(count)} evaluation{'s' * (round(count) != 1)} and " if self.spent else ""


class ProgressBar(Progress):
    """The same with ComfyUI's progress bar and an image on the node, for a task that is no sampling."""

    def __init__(self, phases: Mapping[str, int], done: int = 0):
        super().__init__(phases, done=done)
        self.bar = comfy.utils.ProgressBar(self.total)

    def advance(self, steps: int = 1, facts: Callable[[], str] = str, preview: Callable[[], Preview | None] = lambda: None) -> bool:
        """`preview` is asked only where a text is due."""
        due = super().advance(steps, facts)
        self.show(preview() if due else None)
        return due

    def show(self, preview: Preview | None) -> None:
        """Shows an image, if there is one, where the bar stands."""
        self.bar.update_absolute(self.done, self.total, preview)
