"""The pack's own socket types."""

from comfy_api.latest import io

GuidanceChannel = io.Custom("GUIDANCE_CHANNEL")  # tuple[guidance.multi_cfg.Channel, ...]
GuidanceSchedule = io.Custom("GUIDANCE_SCHEDULE")  # guidance.schedules.Schedule
Curve = io.Custom("CURVE")  # the host's curve editor: an object with interp(x), x in [0, 1]


def percent_range(what: str) -> list[io.Float.Input]:
    """The inputs start_percent and end_percent of something that acts during a part of the sampling."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"Percent of the sampling at which {what} starts; before it is off. 0 is the noisiest moment.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"Percent of the sampling at which {what} ends; after it is off. 1 is the clean picture.",
        ),
    ]
