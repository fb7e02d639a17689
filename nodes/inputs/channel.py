"""The inputs that guidance channels share."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import GuidanceChannel, GuidanceSchedule


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
            tooltip=f"Percent of the sampling at which {what} ends; after it is off. 1 is the clean image.",
        ),
    ]


def channel_identity(called: str = "its role") -> list:
    """The inputs priority and name of a channel; `called` is its name where none is given."""
    return [
        io.Int.Input(
            "priority",
            default=0,
            min=-100,
            max=100,
            advanced=True,
            tooltip="With conflict 'project' or 'perpendicular' a lower priority gives way to a higher one. Equal "
            "priorities do not touch each other.",
        ),
        io.String.Input("name", default="", advanced=True, tooltip=f"What the channel is called in images and errors. Empty: {called}."),
    ]


def channel_extras() -> list:
    """The inputs schedule, mask and previous of a channel."""
    return [
        GuidanceSchedule.Input(
            "schedule", optional=True, tooltip="Multiplies the weight while sampling. Not connected: the weight is constant."
        ),
        io.Mask.Input("mask", optional=True, tooltip="Where the channel acts, 1 = fully. Not connected: everywhere."),
        GuidanceChannel.Input("previous", optional=True, tooltip="Channels to which this one is added."),
    ]
