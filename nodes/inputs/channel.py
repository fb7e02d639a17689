"""The inputs that guidance channels share, and the channel that they make."""

from __future__ import annotations

from comfy_api.latest import io

from ...guidance.multi_cfg import Channel
from ...guidance.schedules import ALWAYS, Schedule
from .sockets import GuidanceChannel, GuidanceSchedule
from .widgets import advanced, number, optional, text, whole


def percent_range(what: str) -> list[io.Float.Input]:
    """The inputs start_percent and end_percent of something that acts during a part of the sampling."""
    start = f"Percent of the sampling at which {what} starts; before it is off. 0 is the noisiest moment."
    end = f"Percent of the sampling at which {what} ends; after it is off. 1 is the clean image."
    return [number("start_percent", Schedule.start, 0.0, 1.0, start, 0.001), number("end_percent", Schedule.end, 0.0, 1.0, end, 0.001)]


def schedules_of(schedule: Schedule | None, start_percent: float, end_percent: float) -> tuple[Schedule, ...]:
    """A schedule and that part of the sampling, where they change anything."""
    return tuple(s for s in (schedule, Schedule(start=start_percent, end=end_percent)) if s not in (None, ALWAYS))


def channel_identity(default: str = "its role") -> list:
    """The inputs priority and name of a channel; `default` is its name where none is given."""
    priority = "With conflict 'project' or 'perpendicular' lower priorities give way to higher ones. Equal ones do not affect each other."
    return advanced(
        whole("priority", Channel.priority, -100, 100, priority),
        text("name", Channel.name, f"The channel's name in images and errors. Empty: {default}."),
    )


def channel_extras() -> list:
    """The inputs schedule, mask and previous of a channel."""
    return optional(
        GuidanceSchedule.Input("schedule", tooltip="Multiplies the weight while sampling. Not connected: the weight is constant."),
        io.Mask.Input("mask", tooltip="Where the channel acts, 1 = fully. Not connected: everywhere."),
        GuidanceChannel.Input("previous", tooltip="Channels to which this one is added."),
    )


def weights_sigmas() -> io.Sigmas.Input:
    tooltip = "For the image of weights: the sigmas you sample with. Not connected: percents from 0 to 1."
    return io.Sigmas.Input("sigmas", optional=True, tooltip=tooltip)


def channel_output() -> GuidanceChannel.Output:
    return GuidanceChannel.Output(display_name="channel", tooltip="All channels so far.")


def added_channel(start_percent=Schedule.start, end_percent=Schedule.end, schedule=None, previous=(), **settings) -> io.NodeOutput:
    """The previous channels and one of what the shared inputs say, with the `settings` of a Channel."""
    interval = Schedule(start=start_percent, end=end_percent)
    return io.NodeOutput((*previous, Channel(schedule=schedule or ALWAYS, interval=interval, **settings)))
