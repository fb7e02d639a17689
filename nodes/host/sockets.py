"""The pack's own socket types."""

from comfy_api.latest import io

GuidanceChannel = io.Custom("GUIDANCE_CHANNEL")  # tuple[guidance.multi_cfg.Channel, ...]
GuidanceSchedule = io.Custom("GUIDANCE_SCHEDULE")  # guidance.schedules.Schedule
Curve = io.Custom("CURVE")  # the host's curve editor: an object with interp(x), x in [0, 1]
