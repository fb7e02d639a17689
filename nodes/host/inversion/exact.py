"""What the nodes of the exact inversions share: guidance on the way up, the precision of the states, and a look at what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from comfy_api.latest import io

from ....inversion.method import Method
from .. import noise_levels
from ..conditionings import check_conditionings
from . import invert as inverting

DRIFT = 2.0  # times the strength of noise at its level, from which on a user is told

_log = logging.getLogger(__name__)






def dtype_for(model, precision: str) -> torch.dtype:
    """The precision of the states on the model's device."""
    lacking = model.load_device.type == "mps"
    if precision == "float64" and lacking:
        raise ValueError("precision is float64, which this device (mps) does not have; choose 'highest' or 'float32'.")
    return torch.float32 if lacking or precision == "float32" else torch.float64


def drift(model, inversion: inverting.Inversion) -> float:
    """How much stronger the noise that was found is than noise of its level; the worst image's."""
    trajectory, sampling = inversion.trajectory, model.get_model_object("model_sampling")
    start, clean = (trajectory.states[i][0].double().flatten(1).pow(2).mean(1) for i in (0, -1))
    first, one, none = torch.tensor([trajectory.sigmas[0]]), torch.ones(1, 1), torch.zeros(1, 1)
    noise = sampling.noise_scaling(first, one.clone(), none.clone(), False).item()
    kept = sampling.noise_scaling(first, none.clone(), one.clone(), False).item()
    return float((start / (noise**2 + kept**2 * clean)).max() ** 0.5)


def check_noise(model, inversion: inverting.Inversion) -> None:
    """Refuses an inversion that is lost; tells of one whose noise is not like noise, from which an edit goes astray."""
    found = drift(model, inversion)
    setting = next((name for name in ("p", "gamma") if hasattr(inversion.method, name)), None)
    first = f"Set {setting} (now {getattr(inversion.method, setting):.3g}) closer to 1, choose" if setting else "Choose"
    advice = f"{first} the scheduler karras, take more steps, or raise end_percent."
    if not found < float("inf"):
        raise ValueError(f"The inversion ({inversion.method.name}) ran away to values that are no numbers. {advice}")
    if found > DRIFT:
        _log.warning(
            "The noise that %s found is %.1f times as strong as noise of its level: the image comes back, but edits will suffer. %s",
            inversion.method.name,
            found,
            advice,
        )


def inverted(
    model, source, image, steps, scheduler, end_percent, method_for: Callable[[int], Method], cfg, precision, negative=None, vae=None
) -> io.NodeOutput:
    """What an exact inverter gives; `method_for(steps)` with as many steps as the scheduler makes."""
    check_conditionings(model, {"source": source} | ({} if negative is None else {"negative": negative}))
    sigmas, dtype = noise_levels.levels(model, scheduler, steps, end_percent), dtype_for(model, precision)
    method = method_for(len(sigmas) - 1)
    found = inverting.invert(model, vae, image, source, method, sigmas, negative=negative, cfg=cfg, precision=dtype)
    check_noise(model, found)
    return io.NodeOutput(*inverting.outputs(model, found))
