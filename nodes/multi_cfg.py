"""Multi-condition guidance: channels, and the two ways to sample with them."""

from comfy_api.latest import io

from ..guidance.multi_cfg import CONFLICTS, Channel, Rules
from ..guidance.schedules import ALWAYS, Schedule
from .host import sockets
from .host.channels import MultiCFG, MultiCFGWrapper
from .host.pictures import weights_picture

_CATEGORY = "controlled diffusion/guidance"
_ALIASES = [
    "composable diffusion",
    "multi condition cfg",
    "AND NOT prompts",
    "negative weight",
    "several negative prompts",
    "dual cfg",
    "perp neg",
    "regional cfg",
    "weighted negative",
]


class GuidanceChannel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceChannel",
            display_name="Guidance Channel",
            category=_CATEGORY,
            description="One force on the picture: a conditioning with its own weight, sign, null, schedule, region and priority. "
            "Chain channels, or connect several to a Multi CFG node.",
            search_aliases=_ALIASES,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What this channel pulls towards, or pushes away from."),
                io.Float.Input(
                    "weight",
                    default=4.0,
                    min=-100.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Strength, as cfg. 0 switches the channel off (it is not evaluated); usual 1 to 10.",
                ),
                io.Combo.Input(
                    "role",
                    options=["positive", "negative"],
                    tooltip="'positive' pulls towards the conditioning, 'negative' pushes away from it.",
                ),
                *sockets.percent_range("the channel"),
                io.Int.Input(
                    "priority",
                    default=0,
                    min=-100,
                    max=100,
                    advanced=True,
                    tooltip="With conflict 'project' or 'perpendicular' a lower priority gives way to a higher one. Equal "
                    "priorities do not touch each other.",
                ),
                io.String.Input(
                    "name", default="", advanced=True, tooltip="What the channel is called in pictures and errors. Empty: its role."
                ),
                io.Conditioning.Input(
                    "null",
                    optional=True,
                    tooltip="What the conditioning is compared with. Not connected: the unconditional of the guider, "
                    "or KSampler's negative.",
                ),
                sockets.GuidanceSchedule.Input(
                    "schedule", optional=True, tooltip="Multiplies the weight while sampling. Not connected: the weight is constant."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the channel acts, 1 = fully. Not connected: everywhere."),
                sockets.GuidanceChannel.Input("previous", optional=True, tooltip="Channels to which this one is added."),
            ],
            outputs=[sockets.GuidanceChannel.Output(display_name="channel", tooltip="All channels so far.")],
        )

    @classmethod
    def execute(
        cls, conditioning, weight, role, start_percent, end_percent, priority, name, null=None, schedule=None, mask=None, previous=()
    ) -> io.NodeOutput:
        channel = Channel(
            conditioning,
            weight,
            role == "negative",
            null,
            schedule or ALWAYS,
            Schedule(start=start_percent, end=end_percent),
            mask,
            priority,
            name or role,
        )
        return io.NodeOutput((*previous, channel))


def _rule_inputs():
    return [
        io.Combo.Input(
            "conflict",
            options=list(CONFLICTS),
            tooltip="'sum': plain sum. 'project': a channel of lower priority loses what works against those of higher "
            "priority. 'perpendicular': it loses its whole component along them (Perp-Neg).",
        ),
        io.Float.Input(
            "norm_cap",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.05,
            advanced=True,
            tooltip="Largest RMS of the summed guidance, in latent units. 0 = no cap; usual 0.5 to 3.",
        ),
        io.Float.Input(
            "rescale",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="CFG-rescale phi: how far the contrast returns to that of the positive predictions. 0 = off; usual 0.7.",
        ),
    ]


def _channel_inputs():
    template = io.Autogrow.TemplatePrefix(
        sockets.GuidanceChannel.Input("channel", tooltip="A Guidance Channel, or a chain of them."), prefix="channel_", min=1, max=16
    )
    return io.Autogrow.Input("channels", template=template)


def _sigmas_input():
    return io.Sigmas.Input(
        "sigmas", optional=True, tooltip="For the picture of weights: the sigmas you sample with. Not connected: percents from 0 to 1."
    )


_PICTURE = dict(display_name="weights", tooltip="The weight of every channel over the sampling, as a picture.")


def _listed(channels: dict) -> list[Channel]:
    """The channels of an autogrowing input in the order of its sockets."""
    found = [c for key in sorted(channels, key=lambda k: int(k.rsplit("_", 1)[1])) for c in channels[key] or ()]
    if not found:
        raise ValueError("There is no channel. Connect at least one Guidance Channel.")
    return found


class MultiCFGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiCFGGuider",
            display_name="Multi CFG Guider",
            category=_CATEGORY,
            description="Guides with any number of positive and negative channels at once, each with its own weight, null, schedule "
            "and region. For SamplerCustomAdvanced. With one positive channel it is exactly the host's CFG.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("unconditional", tooltip="What the guidance starts from; usually an empty prompt."),
                _channel_inputs(),
                *_rule_inputs(),
                _sigmas_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."), io.Image.Output(**_PICTURE)],
        )

    @classmethod
    def execute(cls, model, unconditional, channels, conflict, norm_cap, rescale, sigmas=None) -> io.NodeOutput:
        listed = _listed(channels)
        guider = MultiCFG(model, unconditional, listed, Rules(conflict, norm_cap, rescale))
        return io.NodeOutput(guider, weights_picture(model, listed, sigmas))


class MultiCFGPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiCFGPatch",
            display_name="Multi CFG Patch",
            category=_CATEGORY,
            description="Adds channels on top of the positive and negative of any sampler: put it between the model and a KSampler.",
            search_aliases=_ALIASES,
            inputs=[io.Model.Input("model", tooltip="Any model: eps, v or flow."), _channel_inputs(), *_rule_inputs(), _sigmas_input()],
            outputs=[io.Model.Output(display_name="model", tooltip="For a KSampler, or any guider."), io.Image.Output(**_PICTURE)],
        )

    @classmethod
    def execute(cls, model, channels, conflict, norm_cap, rescale, sigmas=None) -> io.NodeOutput:
        listed = _listed(channels)
        patched = MultiCFGWrapper(listed, Rules(conflict, norm_cap, rescale)).install(model)
        return io.NodeOutput(patched, weights_picture(model, listed, sigmas))


NODES = [GuidanceChannel, MultiCFGGuider, MultiCFGPatch]
