"""GuidanceSchedule: a weight over the sampling, for every node of the pack that takes one."""

import math
from collections.abc import Callable

from comfy_api.latest import io

from ..guidance.schedules import AXES, CfgPlusPlus, Constant, Curve, Ramp, Schedule, SigmaPower, SnrPower
from .inputs import channel, sockets
from .inputs.widgets import choice, number, schema


def _axis():
    return choice("axis", AXES, "What the shape is spread over: percent of the sampling, sigma, or log-SNR. Typical: percent.", Ramp.axis)


def _ramp_inputs():
    tip = "Factor at the {} percent. 1 keeps the channel's weight. Typical: 0–2."
    return [
        number("first", 1.0, -10.0, 10.0, tip.format("start"), 0.05),
        number("last", 0.0, -10.0, 10.0, tip.format("end"), 0.05),
        _axis(),
    ]


def _power_inputs(name: str, tooltip: str):
    reference = "Percent of the sampling at which the factor is 1, so that the weight keeps its meaning there."
    limit = "The factor stays between 1 / limit and limit. 1 switches the shape off. Typical: 3–10."
    return [
        number(name, 0.25, -4.0, 4.0, tooltip),
        number("reference", SnrPower.reference, 0.0, 1.0, reference),
        number("limit", SnrPower.limit, 1.0, 1000.0, limit, 0.5),
    ]


_CURVE = "The shape: draw it here, or connect a Curve Editor (ComfyUI 0.27 and newer). Left is the start percent, right the end percent."
_SIGMAS = "The sigmas you sample with. The channel's weight is then lambda. Typical: 0.2–1; above 1 is an error."


def _curve_inputs():
    return [
        number("height", Curve.height, -10.0, 10.0, "Factor where the curve reaches 1. 1 takes the curve as drawn.", 0.05),
        _axis(),
        sockets.Curve.Input("curve", optional=True, tooltip=_CURVE),
    ]


_ALPHA = "Factor = (SNR / SNR at the reference) ^ alpha. 0 changes nothing; above 0 guides detail, below 0 layout. Typical: -0.5–0.5."
_BETA = "Factor = (sigma / sigma at the reference) ^ -beta. 0 changes nothing. Typical: -1–1."
_SHAPES = {
    "constant": (Constant, lambda: [number("value", Constant.value, -10.0, 10.0, "The same factor everywhere; 1 changes nothing.", 0.05)]),
    "linear": (Ramp, _ramp_inputs),
    "cosine": (lambda **k: Ramp(cosine=True, **k), _ramp_inputs),
    "snr power": (SnrPower, lambda: _power_inputs("alpha", _ALPHA)),
    "sigma power": (SigmaPower, lambda: _power_inputs("beta", _BETA)),
    "curve": (Curve, _curve_inputs),
    "cfg++": (CfgPlusPlus, lambda: [io.Sigmas.Input("sigmas", optional=True, tooltip=_SIGMAS)]),
}


def _function(curve) -> Callable[[float], float]:
    """The function of a curve: from a Curve Editor, or drawn on the node itself, as {"points": [[x, y], ...]}."""
    if curve is None:
        raise ValueError(
            "Shape 'curve' needs a curve: connect a Curve Editor (ComfyUI 0.27 and newer), or choose another shape, such as linear or cosine."
        )
    try:
        drawn = curve
        if isinstance(curve, dict):
            from comfy_api.input import CurveInput  # ComfyUI 0.27 and newer, which draw curves on nodes

            drawn = CurveInput.from_raw(curve)
        if math.isfinite(sum(drawn.interp(i / 8) for i in range(9))):
            return drawn.interp
        problem = "it holds NaN or infinity"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__} {error}"
    raise ValueError(f"The curve cannot be read: {problem}. Draw it again, or connect a Curve Editor.")


def _run_sigmas(sigmas) -> tuple[float, ...]:
    if sigmas is None or len(sigmas) < 2:
        raise ValueError("Shape 'cfg++' needs the sigmas of the run: connect those that the sampler gets, or choose another shape.")
    return tuple(sigmas.tolist())


class GuidanceSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        options = [io.DynamicCombo.Option(name, inputs()) for name, (_, inputs) in _SHAPES.items()]
        return schema(
            "GuidanceSchedule", "Guidance Schedule", "guidance",
            ["cfg schedule", "cfg scheduler", "guidance interval", "dynamic cfg", "weight schedule", "snr weighting"],
            "How a weight changes while sampling. The factor multiplies the weight of the channel it is connected to. It depends on the "
            "noise level alone, so it is right for every sampler, step count and cut schedule.",
            inputs=[
                io.DynamicCombo.Input("shape", options=options, tooltip="How the factor changes between start and end percent. 'constant' "
                    "with both at their defaults changes nothing; 'curve' is drawn by hand; 'cfg++' follows the steps of a run."),
                *channel.percent_range("the schedule"),
            ],
            outputs=[sockets.GuidanceSchedule.Output(display_name="schedule", tooltip="Connect to a Guidance Channel.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, shape, start_percent, end_percent) -> io.NodeOutput:
        kind, settings = shape["shape"], {k: v for k, v in shape.items() if k not in ("shape", "curve", "sigmas")}
        if kind == "curve":
            settings["function"] = _function(shape.get("curve"))
        if kind == "cfg++":
            settings["sigmas"] = _run_sigmas(shape.get("sigmas"))
        return io.NodeOutput(Schedule(_SHAPES[kind][0](**settings), start_percent, end_percent))


NODES = [GuidanceSchedule]
