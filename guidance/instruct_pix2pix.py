"""InstructPix2Pix guidance: one scale for the image that is edited, one for the instruction.

`D = D(0,0) + s_I (D(I,0) - D(0,0)) + s_T (D(I,T) - D(I,0))` on denoised predictions: nothing, the image alone, and
the image with the instruction (arXiv 2211.09800, equation 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .multi_cfg import Channel
from .schedules import ALWAYS, NoiseScale, Schedule, Span


def coefficients(text_scale: float, image_scale: float) -> dict[str, float]:
    """What each prediction counts in equation 3. They add up to 1; one that counts 0 need not be evaluated."""
    counts = {"nothing": (1.0, image_scale), "image": (image_scale, text_scale), "edit": (text_scale, 0.0)}
    return {name: 0.0 if math.isclose(a, b, abs_tol=1e-9) else a - b for name, (a, b) in counts.items()}


@dataclass(frozen=True)
class Scales:
    """The two scales, each times its schedule. (1, 1) is the instruction without guidance."""

    text_scale: float = 7.5
    image_scale: float = 1.5
    text_schedule: Schedule = ALWAYS
    image_schedule: Schedule = ALWAYS

    def __post_init__(self):
        for name, usual in (("text_scale", "5 to 10"), ("image_scale", "1 to 2")):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number, usually {usual}.")

    @property
    def vary(self) -> bool:
        """Whether a scale depends on sigma."""
        return self.text_schedule.varies or self.image_schedule.varies

    def at(self, sigma: float, scale: NoiseScale) -> tuple[float, float]:
        """(s_T, s_I) at `sigma`."""
        return self.text_scale * self.text_schedule(sigma, scale), self.image_scale * self.image_schedule(sigma, scale)


@dataclass(frozen=True)
class Conditions:
    """The three conditionings of equation 3, as ComfyUI has them."""

    nothing: object
    image: object
    edit: object


@dataclass(frozen=True)
class Excess:
    """The shape `s_I(sigma) - 1`: what the image's scale adds to a prediction that already knows the image."""

    image: float
    schedule: Schedule

    def __call__(self, sigma: float, span: Span) -> float:
        return -coefficients(0.0, self.image * self.schedule(sigma, span.scale))["nothing"]


def channels(conditions: Conditions, scales: Scales) -> tuple[Channel, Channel]:
    """Equation 3 as two guidance channels over D(0,0): the image, then the instruction with the image as its null."""
    image = Channel(conditions.image, scales.image_scale, schedule=scales.image_schedule, name="image")
    return image, Channel(conditions.edit, scales.text_scale, null=conditions.image, schedule=scales.text_schedule, name="text")


def excess(conditions: Conditions, scales: Scales) -> Channel:
    """What equation 3 adds to plain CFG between image with and without instruction: `(s_I - 1) (D(I,0) - D(0,0))`."""
    schedule = Schedule(Excess(scales.image_scale, scales.image_schedule))
    return Channel(conditions.image, null=conditions.nothing, schedule=schedule, name="image")


def around_the_image(conditions: Conditions, scales: Scales) -> tuple[Channel, Channel]:
    """Equation 3 as channels over D(I,0): plain CFG by the instruction, then the image's excess, none at s_I = 1."""
    return Channel(conditions.edit, scales.text_scale, schedule=scales.text_schedule, name="text"), excess(conditions, scales)
