"""What the nodes of the exact inversions share: the precision of the states, and a check of the noise that was found."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from comfy_api.latest import io

from ....inversion.method import Method
from ..prompts import source_of
from . import invert

DRIFT = 2.0  # times the strength of noise at its level, above which the user is warned

_log = logging.getLogger(__name__)


def dtype_for(model, precision: str) -> torch.dtype:
    """The precision of the states on the model's device."""
    lacking = model.load_device.type == "mps"
    if precision == "float64" and lacking:
        raise ValueError("precision is float64, which this device (mps) does not have; choose 'highest' or 'float32'.")
    return torch.float32 if lacking or precision == "float32" else torch.float64


def drift(model, inversion: invert.Inversion) -> float:
    """How much stronger the noise that was found is than noise of its level; the worst image's."""
    trajectory, sampling = inversion.trajectory, model.get_model_object("model_sampling")
    start, clean = (trajectory.states[i][0].double().flatten(1).pow(2).mean(1) for i in (0, -1))
    first, one, none = torch.tensor([trajectory.sigmas[0]]), torch.ones(1, 1), torch.zeros(1, 1)
    noise = sampling.noise_scaling(first, one.clone(), none.clone(), False).item()
    signal = sampling.noise_scaling(first, none.clone(), one.clone(), False).item()
    return float((start / (noise**2 + signal**2 * clean)).max() ** 0.5)


def check_noise(model, inversion: invert.Inversion) -> None:
    """Refuses an inversion that diverged; warns of one whose noise is so strong that edits suffer."""
    strength, method = drift(model, inversion), inversion.method
    setting = next((name for name in ("p", "gamma") if hasattr(method, name)), None)
    first = f"Set {setting} (now {getattr(method, setting):.3g}) closer to 1, choose" if setting else "Choose"
    advice = f"{first} the scheduler karras, take more steps, or raise end_percent."
    if not strength < float("inf"):
        raise ValueError(f"The inversion ({method.name}) diverged (NaN or inf). {advice}")
    if strength > DRIFT:
        found = f"The noise that {method.name} found is {strength:.1f} times as strong as noise of its level"
        _log.warning("%s: the image comes back, but edits will suffer. %s", found, advice)


def inverted(
    method_for: Callable[[int], Method], model, source, image, steps, scheduler, end_percent, cfg, precision, negative=None, vae=None, clip=None
) -> io.NodeOutput:
    """The outputs of an exact inverter; `method_for(steps)` with as many steps as the scheduler makes."""
    source, text = source_of(clip, source)
    sigmas = invert.levels(model, scheduler, steps, end_percent, source=source, negative=negative)
    method, dtype = method_for(len(sigmas) - 1), dtype_for(model, precision)
    inversion = invert.invert(model, vae, image, source, method, sigmas, negative=negative, cfg=cfg, precision=dtype)
    check_noise(model, inversion)
    return io.NodeOutput(*invert.outputs(model, inversion, text))
