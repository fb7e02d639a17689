"""GuidanceSchedule: a weight over the sampling, for every node of the pack that takes one."""

from comfy_api.latest import io

from ..guidance.schedules import AXES, CfgPlusPlus, Constant, Curve, Ramp, Schedule, SigmaPower, SnrPower
from .inputs import channel, sockets

_AXIS = dict(
    options=list(AXES),
    default="percent",
    tooltip="What the shape is spread over: percent of the sampling, sigma, or log-SNR. Percent is usual.",
)


def _ramp_inputs():
    return [
        io.Float.Input(
            "first",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip="Factor at the start percent. 1 keeps the channel's weight; usual 0 to 2.",
        ),
        io.Float.Input(
            "last",
            default=0.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip="Factor at the end percent. 1 keeps the channel's weight; usual 0 to 2.",
        ),
        io.Combo.Input("axis", **_AXIS),
    ]


def _power_inputs(name: str, tooltip: str):
    return [
        io.Float.Input(name, default=0.25, min=-4.0, max=4.0, step=0.01, tooltip=tooltip),
        io.Float.Input(
            "reference",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Percent of the sampling at which the factor is 1, so that the weight keeps its meaning there.",
        ),
        io.Float.Input(
            "limit",
            default=10.0,
            min=1.0,
            max=1000.0,
            step=0.5,
            tooltip="The factor stays between 1 / limit and limit. 1 switches the shape off; usual 3 to 10.",
        ),
    ]


_SHAPES = {
    "constant": (
        Constant,
        lambda: [
            io.Float.Input("value", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="The same factor everywhere; 1 changes nothing.")
        ],
    ),
    "linear": (Ramp, _ramp_inputs),
    "cosine": (lambda **k: Ramp(cosine=True, **k), _ramp_inputs),
    "snr power": (
        SnrPower,
        lambda: _power_inputs(
            "alpha",
            "Factor = (SNR / SNR at the reference) ^ alpha. 0 changes nothing; above 0 guides detail, below 0 layout; usual -0.5 to 0.5.",
        ),
    ),
    "sigma power": (
        SigmaPower,
        lambda: _power_inputs("beta", "Factor = (sigma / sigma at the reference) ^ -beta. 0 changes nothing; usual -1 to 1."),
    ),
    "curve": (
        Curve,
        lambda: [
            io.Float.Input(
                "height",
                default=1.0,
                min=-10.0,
                max=10.0,
                step=0.05,
                tooltip="Factor where the curve reaches 1. 1 takes the curve as drawn.",
            ),
            io.Combo.Input("axis", **_AXIS),
        ],
    ),
    "cfg++": (CfgPlusPlus, list),
}


class GuidanceSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceSchedule",
            display_name="Guidance Schedule",
            category="controlled diffusion/guidance",
            description="How a weight changes while sampling. The factor multiplies the weight of the channel it is connected to. "
            "It depends on the noise level alone, so it is right for every sampler, step count and cut schedule.",
            search_aliases=["cfg schedule", "cfg scheduler", "guidance interval", "dynamic cfg", "weight schedule", "snr weighting"],
            inputs=[
                io.DynamicCombo.Input(
                    "shape",
                    options=[io.DynamicCombo.Option(name, inputs()) for name, (_, inputs) in _SHAPES.items()],
                    tooltip="The course of the factor between start and end percent. 'constant' with both at their "
                    "defaults changes nothing; 'curve' reads the host's Curve Editor; 'cfg++' follows the steps of a run.",
                ),
                *channel.percent_range("the schedule"),
                sockets.Curve.Input(
                    "curve",
                    optional=True,
                    tooltip="For shape 'curve': a Curve Editor (ComfyUI 0.27 and newer). Left is the start percent, right the end percent.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="For shape 'cfg++': the sigmas you sample with. The channel's weight is then lambda, 0 to 1, usual 0.6.",
                ),
            ],
            outputs=[sockets.GuidanceSchedule.Output(display_name="schedule", tooltip="Connect to a Guidance Channel.")],
        )

    @classmethod
    def execute(cls, shape, start_percent, end_percent, curve=None, sigmas=None) -> io.NodeOutput:
        knobs = {k: v for k, v in shape.items() if k != "shape"}
        if shape["shape"] not in _SHAPES:
            raise ValueError(f"Unknown shape '{shape['shape']}'; choose one of {', '.join(_SHAPES)}.")
        if shape["shape"] == "curve":
            if curve is None:
                raise ValueError(
                    "Shape 'curve' needs a curve: connect a Curve Editor (ComfyUI 0.27 and newer), or choose another shape, such as linear or cosine."
                )
            knobs["function"] = curve.interp
        if shape["shape"] == "cfg++":
            if sigmas is None or len(sigmas) < 2:
                raise ValueError("Shape 'cfg++' needs the sigmas of the run: connect those that the sampler gets, or choose another shape.")
            knobs["sigmas"] = tuple(sigmas.tolist())
        return io.NodeOutput(Schedule(_SHAPES[shape["shape"]][0](**knobs), start_percent, end_percent))


NODES = [GuidanceSchedule]
