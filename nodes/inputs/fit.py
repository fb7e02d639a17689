"""Lets a node take an IMAGE whose sides its VAE cannot: padded, with the results cropped back exactly, or scaled.

A node says so by `fit_input` in its schema; the check at the door (checks.py) does the rest, and `execute` never sees the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.latents import FITS, PAD, REFUSE, SCALE, Padding, fitting_size, scaled
from . import widgets

_TOOLTIP = (
    "An IMAGE whose sides the VAE cannot take: 'pad' repeats its edge pixels {}; 'scale' makes it the nearest size; 'refuse' stops with an error "
    "that says which sizes fit."
)
_TRAINED = (
    "Images whose sides the VAE cannot take: 'pad' repeats their edge pixels, which are not trained; 'scale' makes them the nearest size; "
    "'refuse' stops with an error that says which sizes fit."
)


class FitInput(io.Combo.Input):
    """The choice; `shows` are the node's outputs that are cropped back, or that know how to crop what is made of them: `cropped`, in words."""

    def __init__(self, shows: tuple[str, ...], cropped: str):
        after = f"(with {cropped} cropped back)" if cropped else "(crop the decoded result)"
        super().__init__("fit", options=[*FITS], tooltip=_TOOLTIP.format(after), advanced=True)
        self.shows, self.cropped = shows, cropped


def fit_input(*shows: str, cropped: str = "") -> FitInput:
    return FitInput(shows, cropped or " and ".join(shows))


def training_fit(default: str) -> io.Combo.Input:
    """The same choice for the images of a training, which `nodes.host.training.images` fits."""
    return widgets.choice("fit", FITS, _TRAINED, default, advanced=True)


@dataclass(frozen=True)
class Fit:
    """What was done to the image."""

    how: str
    size: Padding
    choice: FitInput

    @property
    def line(self) -> str:
        before, after = (f"{width} x {height}" for height, width in self.size)
        if self.how == SCALE:
            return f"image scaled from {before} to {after} pixels"
        told = f"{self.choice.cropped} cropped back" if self.choice.cropped else f"crop what you decode to {before}"
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
    done = Fit(how, Padding(sizes[first], goals[first]), choice)
    if how == SCALE:
        return given | {name: scaled(given[name], goal) for name, goal in goals.items()}, done
    masks = [i.id for i in schema.inputs if i.get_io_type() == "MASK" and torch.is_tensor(given.get(i.id))]
    padded = {name: Padding(sizes[name], goal).image(given[name]) for name, goal in goals.items()}
    return given | padded | {name: done.size.mask(given[name]) for name in masks}, done


def cropped(schema: io.Schema, made: io.NodeOutput, fit: Fit | None) -> io.NodeOutput:
    """The outputs of a node, those that show the padded image at its own size again; an inversion knows its padding."""
    if fit is not None and fit.how == PAD:
        shown = zip(schema.outputs, made.args)
        made.args = tuple(_cropped(value, o.io_type, fit.size) if o.display_name in fit.choice.shows else value for o, value in shown)
    return made


def _cropped(value, kind: str, size: Padding):
    if kind == "INVERSION":
        return replace(value, padding=size)
    return size.cropped(value) if torch.is_tensor(value) else value  # nothing was made


def image_output(node: str, vae, image: Callable[[], torch.Tensor]) -> torch.Tensor | ExecutionBlocker:
    """The output image of a node that decodes where its vae is connected; otherwise nodes that take it do not run."""
    return ExecutionBlocker(f"{node}: connect a vae to get an image.") if vae is None else image()
