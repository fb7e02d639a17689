"""Lets a node take an IMAGE whose sides its VAE cannot: padded, with the results cropped back exactly, or scaled.

A node says so by `fit_input` in its schema; the check at the door (checks.py) does the rest, and `execute` never sees the choice.
"""

from __future__ import annotations

from typing import NamedTuple

import comfy.utils
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..host.latents import fitting_size

PAD, SCALE, REFUSE = "pad", "scale", "refuse"
_TOOLTIP = (
    "An IMAGE whose sides the VAE cannot take: 'pad' repeats its edge pixels {}; 'scale' makes it the nearest size; 'refuse' stops with an "
    "error that says which sizes fit."
)


class FitInput(io.Combo.Input):
    """The choice; `shows` are the node's outputs at the image's size, which are cropped back."""

    def __init__(self, shows: tuple[str, ...]):
        after = f"and crops the output{'s' if len(shows) > 1 else ''} {' and '.join(shows)}" if shows else "(crop the decoded result)"
        super().__init__("fit", options=[PAD, SCALE, REFUSE], tooltip=_TOOLTIP.format(after), advanced=True)
        self.shows = shows


def fit_input(*shows: str) -> FitInput:
    return FitInput(shows)


class Fit(NamedTuple):
    """What was done to the image: its height and width before and after, in pixels."""

    how: str
    before: tuple[int, int]
    after: tuple[int, int]
    shows: tuple[str, ...]

    @property
    def line(self) -> str:
        before, after = (f"{width} x {height}" for height, width in (self.before, self.after))
        if self.how == SCALE:
            return f"image scaled from {before} to {after} pixels"
        told = f"{' and '.join(self.shows)} cropped back" if self.shows else f"crop what you decode to {before}"
        return f"image padded from {before} to {after} pixels; {told}"


def fitted(schema: io.Schema, given: dict) -> tuple[dict, Fit | None]:
    """The inputs of a node without `fit`, with images that its VAE can take, and what was done to the first; None if nothing."""
    choice = next((i for i in schema.inputs if isinstance(i, FitInput)), None)
    if choice is None:
        return given, None
    how, given = given.get("fit", PAD), {k: v for k, v in given.items() if k != "fit"}
    images = [i.id for i in schema.inputs if {"IMAGE", "LATENT"} <= {*i.get_io_type().split(",")} and torch.is_tensor(given.get(i.id))]
    sizes = {name: tuple(given[name].shape[1:3]) for name in images}
    goals = {name: fitting_size(given["vae"], size, how == PAD) for name, size in sizes.items() if given.get("vae") is not None}
    if how == REFUSE or all(goals[name] == sizes[name] for name in goals):
        return given, None
    first = next(name for name in goals if goals[name] != sizes[name])
    done = Fit(how, sizes[first], goals[first], choice.shows)
    changed = {name: _changed(given[name], goal, how) for name, goal in goals.items()}
    masks = {i.id: given[i.id] for i in schema.inputs if i.get_io_type() == "MASK" and torch.is_tensor(given.get(i.id)) and how == PAD}
    return given | changed | {name: _padded_mask(mask, done) for name, mask in masks.items()}, done


def cropped(schema: io.Schema, made: io.NodeOutput, fit: Fit | None) -> io.NodeOutput:
    """The outputs of a node, those that show the padded image at its own size again."""
    if fit is not None and fit.how == PAD:
        shown = zip(schema.outputs, made.args)
        made.args = tuple(_cut(value, o.io_type, fit.before) if o.display_name in fit.shows else value for o, value in shown)
    return made


def _changed(image: torch.Tensor, goal: tuple[int, int], how: str) -> torch.Tensor:
    channels_first = image.movedim(-1, 1)
    if how == PAD:
        (height, width), (to_height, to_width) = image.shape[1:3], goal
        return F.pad(channels_first, (0, to_width - width, 0, to_height - height), mode="replicate").movedim(1, -1)
    return comfy.utils.common_upscale(channels_first, goal[1], goal[0], "bicubic", "disabled").clamp(0, 1).movedim(1, -1)


def _padded_mask(mask: torch.Tensor, fit: Fit) -> torch.Tensor:
    """A MASK over the padded image, 0 where that was added."""
    planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if planes.shape[-2:] != fit.before:
        planes = F.interpolate(planes, fit.before, mode="bilinear")
    (height, width), (to_height, to_width) = fit.before, fit.after
    return F.pad(planes, (0, to_width - width, 0, to_height - height)).reshape(*mask.shape[:-2], to_height, to_width)


def _cut(value, kind: str, size: tuple[int, int]):
    height, width = size
    if not torch.is_tensor(value):
        return value  # nothing was made
    return value[:, :height, :width] if kind == "IMAGE" else value[..., :height, :width]
