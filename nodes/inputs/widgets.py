"""The schema of a node, and its widgets, one line each."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.samplers
from comfy_api.latest import io

from .families import AUTO_CHOICE, AUTO_NUMBER, ENDING


def schema(node_id: str, display_name: str, room: str, search_aliases: list[str], description: str, inputs=(), outputs=(), **more):
    """The schema of a node in a room of the pack's menu: "guidance", "inversion", "attention", "training" or "demo"."""
    texts = dict(category=f"controlled diffusion/{room}", description=description, search_aliases=search_aliases)
    return io.Schema(node_id, display_name, inputs=list(inputs), outputs=list(outputs), **texts, **more)


def number(name: str, default: float, low: float, high: float, tooltip: str, step: float = 0.01, **more) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


def share(name: str, default: float, tooltip: str, step: float = 0.01, **more) -> io.Float.Input:
    """A number from 0 to 1."""
    return number(name, default, 0.0, 1.0, tooltip, step, **more)


class FloatOrAuto(io.Float.Input):
    """A number, `least` or more, or -1, which the node reads as its tooltip says."""

    def __init__(self, name: str, least: float, **more):
        super().__init__(name, default=float(AUTO_NUMBER), min=float(AUTO_NUMBER), **more)
        self.least = least


class AutoFloat(FloatOrAuto):
    """A number, `least` or more, or -1: what families.py says for the model."""


class AutoInt(io.Int.Input):
    """A whole number, `least` or more, or -1: what families.py says for the model."""

    def __init__(self, name: str, least: int, **more):
        super().__init__(name, default=AUTO_NUMBER, min=AUTO_NUMBER, **more)
        self.least = least


class AutoCombo(io.Combo.Input):
    """One of the options, or "auto": what families.py says for the model."""

    def __init__(self, name: str, options: Iterable[str], **more):
        super().__init__(name, options=[AUTO_CHOICE, *options], default=AUTO_CHOICE, **more)


AUTOS = (AutoFloat, AutoInt, AutoCombo)


def auto_number(name: str, low: float, high: float, tooltip: str, step: float = 0.01, **more) -> AutoFloat:
    return AutoFloat(name, low, max=high, step=step, tooltip=f"{tooltip} {ENDING}", **more)


def auto_whole(name: str, low: int, high: int, tooltip: str, **more) -> AutoInt:
    return AutoInt(name, low, max=high, tooltip=f"{tooltip} {ENDING}", **more)


def auto_choice(name: str, options: Iterable[str], tooltip: str, **more) -> AutoCombo:
    return AutoCombo(name, options, tooltip=f"{tooltip} 'auto': by the model's family.", **more)


def auto_cfg(tooltip: str, name: str = "cfg", **more) -> AutoFloat:
    return auto_number(name, 0.0, 100.0, tooltip, 0.1, round=0.01, **more)


def auto_scheduler(tooltip: str = "ComfyUI's schedulers.", **more) -> AutoCombo:
    return auto_choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, tooltip, **more)


def cfg_input(default: float, tooltip: str) -> io.Float.Input:
    return number("cfg", default, 0.0, 100.0, tooltip, 0.1, round=0.01)


def image_input(what: str, name: str = "image", unconnected: str = "", **more) -> io.MultiType.Input:
    tooltip = f"{what}: a LATENT, or an IMAGE with the vae connected.{unconnected}"
    return io.MultiType.Input(name, types=[io.Latent, io.Image], tooltip=tooltip, **more)


def steps_input(default: int, tooltip: str, low: int = 1) -> io.Int.Input:
    return whole("steps", default, low, 1000, tooltip)


def whole(name: str, default: int, low: int, high: int, tooltip: str, **more) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=low, max=high, tooltip=tooltip, **more)


def choice(name: str, options: Iterable[str], tooltip: str, default: str | None = None, **more) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(options), default=default, tooltip=tooltip, **more)


def switch(name: str, default: bool, tooltip: str, **more) -> io.Boolean.Input:
    return io.Boolean.Input(name, default=default, tooltip=tooltip, **more)


def text(name: str, default: str, tooltip: str, **more) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=tooltip, **more)


def seed(tooltip: str) -> io.Int.Input:
    return whole("seed", 0, 0, 0xFFFFFFFFFFFFFFFF, tooltip, control_after_generate=True)


def only_with(given: io.Input, mode: str, *values) -> io.Input:
    """The input, which acts only where the input `mode` is one of the values, or, without any, is not 0; elsewhere the node says so."""
    given.only_with = mode, values
    return given


def advanced(*inputs: io.WidgetInput) -> list:
    """The inputs, hidden until the user opens the advanced ones."""
    for given in inputs:
        given.advanced = True
    return list(inputs)


def optional(*inputs: io.Input) -> list:
    """The inputs, which a workflow may leave out; the node's own defaults then count."""
    for given in inputs:
        given.optional = True
    return list(inputs)
