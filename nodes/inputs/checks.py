"""Checks of what a node gets against its own schema, before it runs: ComfyUI looks at typed values alone, and lets NaN through."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

import torch
from comfy_api.latest import io

from ...guidance.errors import check_choice, quoted
from ..host.progress import keep, node_text
from . import auto
from .families import AUTO_NUMBER
from .fit import cropped, fitted

_IN_NODES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MISSING = {  # where None comes from, and what to connect
    "MODEL": "The file may hold no diffusion model: connect Load Checkpoint or Load Diffusion Model.",
    "CLIP": "The checkpoint may hold no text encoder: connect Load CLIP.",
    "VAE": "The checkpoint may hold no VAE: connect Load VAE.",
    "CLIP_VISION": "Connect Load CLIP Vision.",
}
_FORMS = {  # dimensions of a tensor, in words
    "IMAGE": ((4,), "(images, height, width, channels)"),
    "MASK": ((2, 3, 4, 5), "(masks, height, width)"),
    "LATENT": ((3, 4, 5), "(batch, channels, [frames,] height, width)"),
    "CONDITIONING": ((3,), "(batch, tokens, width)"),
    "SIGMAS": ((1,), "a list of noise levels"),
}


def with_checks(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node whose inputs are checked before it runs, with values for those on auto, and whose outputs hold numbers. Raises ValueError."""

    def execute(cls, **inputs) -> io.NodeOutput:
        schema = node.GET_SCHEMA()
        with node_text() as text:
            given, fit = fitted(schema, check(schema, inputs))
            given = auto.resolved(schema, given)
            keep(fit.line if fit else "")
            made = super(checked, cls).execute(**given)
            _check_outputs(schema, made)
            return auto.with_text(cropped(schema, made, fit), text)

    checked = type(node.__name__, (node,), {"execute": classmethod(execute), "__module__": node.__module__, "__doc__": node.__doc__})
    return checked


def check(schema: io.Schema, given: dict) -> dict:
    """The inputs without optional sockets that got None. Refuses what the schema does not allow, tensors without values, and NaN."""
    given = _plain_options(schema, given)
    sockets = {i.id for i in schema.inputs if i.optional and not isinstance(i, io.WidgetInput)}
    given = {k: v for k, v in given.items() if v is not None or k not in sockets}
    for each in schema.inputs:
        values = given.get(each.id, ()) if schema.is_input_list else [given[k] for k in (each.id,) if k in given]
        if each.id in given and not values and not each.optional:
            raise ValueError(f"{quoted(each.id)} is an empty list. Connect a node that gives at least one.")
        for number, value in enumerate(values, 1):
            _check_input(each, value, each.id if len(values) == 1 else f"{each.id} {number}")
    _say_unused(schema, given)
    return given


def _say_unused(schema: io.Schema, given: dict) -> None:
    """The node says which input was set or connected although the mode makes no use of it, as a switch of the mode leaves it behind."""
    told = {k: v[0] if schema.is_input_list and v else v for k, v in given.items()}
    for each in (i for i in schema.inputs if hasattr(i, "only_with") and i.id in told):
        mode, wanted = each.only_with
        now = told[mode][mode] if isinstance(told[mode], dict) else told[mode]
        used = now in wanted if wanted else now
        if not used and not (isinstance(each, io.WidgetInput) and told[each.id] == _default(each)):
            keep(f"{each.id} is not used where {mode} is {_shown(now)}")


def _default(widget: io.WidgetInput):
    return widget.options[0] if widget.default is None else widget.default


def _plain_options(schema: io.Schema, given: dict) -> dict:
    """Of a node that takes lists each dynamic combo as a list of one, with plain values: ComfyUI makes lists of them."""
    combos = [i.id for i in schema.inputs if isinstance(i, io.DynamicCombo.Input) and isinstance(given.get(i.id), dict)]
    return given | {name: [{k: v[0] for k, v in given[name].items() if v}] for name in combos} if schema.is_input_list else given


def _check_input(each: io.Input, value, name: str) -> None:
    kind = each.get_io_type()
    if value is None:
        _check_none(each, name)
    elif isinstance(each, io.DynamicCombo.Input):
        _check_options(each, value, name)
    elif isinstance(each, io.Autogrow.Input):
        for key, single in value.items():
            _check_input(each.template.input, single, key)
    elif kind in _OF_WIDGET:
        _OF_WIDGET[kind](each, value, name)
    else:
        _check_socket(kind.split(","), value, name)


def _check_none(each: io.Input, name: str) -> None:
    if each.optional and not isinstance(each, io.WidgetInput):
        return  # not connected
    kinds = each.get_io_type().split(",")
    advice = next((_MISSING[k] for k in kinds if k in _MISSING), "Connect another node, or type a value.")
    raise ValueError(f"{quoted(name)} is None: the node that is connected to it has none to give. {advice}")


def _check_options(each: io.Input, value, name: str) -> None:
    options = {o.key: o for o in each.options}
    key = value.get(each.id) if isinstance(value, dict) else value
    check_choice(name, key, options.keys())
    for own in options[key].inputs:
        if own.id in value:
            _check_input(own, value[own.id], own.id)


def _shown(value) -> str:
    """A value for an error."""
    return f"{value:g}" if isinstance(value, float) else quoted(value) if isinstance(value, str) else quoted(repr(value))[1:-1]


def _check_number(each: io.Input, value, name: str) -> None:
    whole, least = each.get_io_type() == "INT", getattr(each, "least", each.min)
    low, high = (-math.inf if least is None else least), (math.inf if each.max is None else each.max)
    if hasattr(each, "least") and value == AUTO_NUMBER:
        return
    if not isinstance(value, Integral if whole else Real) or not math.isfinite(value) or not low <= value <= high:
        number, automatic = "whole" if whole else "finite", f", or {AUTO_NUMBER} for auto" if hasattr(each, "least") else ""
        raise ValueError(f"{name} is {_shown(value)}; give a {number} number from {_shown(low)} to {_shown(high)}{automatic}.")


def _check_text(each: io.Input, value, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}; give a text.")


def _check_choice(each: io.Input, value, name: str) -> None:
    check_choice(name, value, each.options)


_OF_WIDGET = {"INT": _check_number, "FLOAT": _check_number, "STRING": _check_text, "COMBO": _check_choice}


def _check_socket(kinds: list[str], value, name: str) -> None:
    """What is connected to a socket of these types."""
    if isinstance(value, str) and "STRING" in kinds:
        return
    if isinstance(value, dict) and "LATENT" in kinds:
        _check_latent(value, name)
    elif isinstance(value, list) and "CONDITIONING" in kinds:
        _check_conditioning(value, name)
    elif torch.is_tensor(value) or {*kinds} <= _FORMS.keys():
        _check_tensor(value, name, next((k for k in kinds if k in _FORMS and k != "LATENT"), "LATENT"))
    elif not all_finite(value):
        raise ValueError(
            f"{quoted(name)} holds NaN or infinity, as a run that diverged leaves it. Make it again with a lower cfg or weight."
        )


def _check_latent(latent: dict, name: str) -> None:
    samples = latent.get("samples")
    if samples is None:
        raise ValueError(f"{quoted(name)} is a latent without samples. Connect VAE Encode, an empty latent, or a sampler.")
    if not getattr(samples, "is_nested", False):
        _check_tensor(samples, name, "LATENT")


def _check_conditioning(conditioning: list, name: str) -> None:
    if not conditioning:
        raise ValueError(f"{name} is an empty conditioning; connect a text encode node (its text may be empty).")
    for features, extras in conditioning:
        if torch.is_tensor(pooled := extras.get("pooled_output")):
            _check_finite(pooled, name)
        if features is not None:
            _check_tensor(features, name, "CONDITIONING")


def _check_tensor(tensor, name: str, kind: str) -> None:
    dimensions, form = _FORMS[kind]
    if not torch.is_tensor(tensor) or tensor.ndim not in dimensions:
        shape = " x ".join(map(str, tensor.shape)) if torch.is_tensor(tensor) else type(tensor).__name__
        raise ValueError(f"{quoted(name)} has the shape {shape or 'of one number'}, but {kind} is {form}. Connect a node that gives one.")
    if not tensor.numel():
        shape = " x ".join(map(str, tensor.shape))
        raise ValueError(f"{quoted(name)} is empty: its shape is {shape}, {form}. Connect one with at least one value.")
    _check_finite(tensor, name)
    _OF_KIND.get(kind, lambda tensor, name: None)(tensor, name)


def _check_finite(tensor: torch.Tensor, name: str) -> None:
    if not all_finite(tensor):
        raise ValueError(
            f"{quoted(name)} holds NaN or infinity, as a model that diverged or a failed decoder leaves it. Look at the nodes before it: lower cfg "
            "and weights, or start ComfyUI with --force-fp32 or --fp32-vae."
        )


def _check_channels(image: torch.Tensor, name: str) -> None:
    if image.shape[-1] not in (3, 4):
        raise ValueError(
            f"{quoted(name)} has {image.shape[-1]} channels; give an IMAGE of 3 (RGB) or 4 (RGBA), such as Mask to Image makes of a mask."
        )


def _check_levels(sigmas: torch.Tensor, name: str) -> None:
    if float(sigmas.min()) < 0:
        raise ValueError(
            f"{quoted(name)} holds the noise level {float(sigmas.min()):g}; give levels of 0 or more, as a scheduler node makes them."
        )


def _check_shares(mask: torch.Tensor, name: str) -> None:
    low, high = float(mask.min()), float(mask.max())
    if low < 0 or high > 1:
        raise ValueError(f"{quoted(name)} has values from {low:.3g} to {high:.3g}; give a mask of 0 (off) to 1 (on).")


_OF_KIND: dict[str, Callable] = {"IMAGE": _check_channels, "SIGMAS": _check_levels, "MASK": _check_shares}


def all_finite(value) -> bool:
    """Whether no tensor in a value is NaN or infinite; looks into dicts, lists and dataclasses."""
    if torch.is_tensor(value):
        return not value.numel() or not value.is_floating_point() or _is_finite(value)
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(all_finite, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(all_finite(getattr(value, f.name)) for f in fields(value))
    return True


def _is_finite(tensor: torch.Tensor) -> bool:
    """Without a second tensor of its size."""
    ends = torch.aminmax(tensor.detach() if tensor.dtype in _IN_NODES else tensor.detach().float())
    return math.isfinite(float(ends.min)) and math.isfinite(float(ends.max))


def _check_outputs(schema: io.Schema, made: io.NodeOutput) -> None:
    """Refuses results that hold no numbers; what an output node wrote stays, and it says itself what became of it."""
    for output, value in zip(schema.outputs, made.args if not schema.is_output_node else ()):
        if not all_finite(value):
            raise ValueError(
                f"The result {quoted(output.display_name)} holds NaN or infinity: the model diverged, or a setting is too large for it. Lower cfg, "
                "weights and scales, or start ComfyUI with --force-fp32."
            )
