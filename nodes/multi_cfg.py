"""Multi-condition guidance: channels, and the two ways to sample with them."""

from comfy_api.latest import io

from ..guidance.directions import Shaping
from ..guidance.multi_cfg import CONFLICTS, Channel, Rules
from ..guidance.schedules import ALWAYS, Schedule
from .host.guidance.guidance_report import report_image, weights_image
from .host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper, record_of
from .inputs import sockets
from .inputs.channel import channel_extras, channel_identity, percent_range

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
            description="One force on the image: a conditioning with its own weight, sign, null, schedule, region and priority. "
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
                    round=0.01,
                    tooltip="Strength, as cfg. 0 switches the channel off (it is not evaluated); usual 1 to 10.",
                ),
                io.Combo.Input(
                    "role",
                    options=["positive", "negative"],
                    tooltip="'positive' pulls towards the conditioning, 'negative' pushes away from it.",
                ),
                *percent_range("the channel"),
                *channel_identity(),
                io.Conditioning.Input(
                    "null",
                    optional=True,
                    tooltip="What the conditioning is compared with. Not connected: the unconditional of the guider, "
                    "or KSampler's negative.",
                ),
                *channel_extras(),
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


def _better_inputs():
    """Options beyond plain CFG, each neutral by default."""
    return [
        io.Float.Input(
            "apg_eta",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            advanced=True,
            tooltip="Adaptive projected guidance: the share kept of the part of a direction that is parallel to the prediction and "
            "over-saturates. 1 = plain CFG, 0 as in the paper.",
        ),
        io.Float.Input(
            "apg_momentum",
            default=0.0,
            min=-1.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="Adaptive projected guidance: how much of the direction so far is added. 0 = off, usual -0.75 to -0.25.",
        ),
        io.Float.Input(
            "apg_norm",
            default=0.0,
            min=0.0,
            max=1e6,
            step=0.5,
            advanced=True,
            tooltip="Adaptive projected guidance: largest length (L2) of a direction in latent units. 0 = off, usual 2.5 to 15 at 512 x 512.",
        ),
        io.Boolean.Input(
            "zero_star",
            default=False,
            advanced=True,
            tooltip="CFG-zero-star: fits the null prediction to the conditioned one before they are compared. For flow models.",
        ),
        io.Float.Input(
            "zero_init_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="CFG-zero-star: up to this percent of the sampling the image does not move and nothing is evaluated. 0 = off, "
            "usual 0.04, for flow models.",
        ),
    ]


def _interval_inputs():
    return [
        io.Float.Input(
            f"interval_{end}_percent",
            default=default,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip=f"Percent of the sampling at which guidance {end}s. Outside, positive channels act with weight 1 and nothing else does, "
            "so that a single channel costs one evaluation instead of two.",
        )
        for end, default in (("start", 0.0), ("end", 1.0))
    ]


def _rules(conflict, norm_cap, rescale, apg_eta, apg_momentum, apg_norm, zero_star, zero_init_percent, start=0.0, end=1.0) -> Rules:
    shaping = Shaping(apg_eta, apg_momentum, apg_norm, zero_star)
    return Rules(conflict, norm_cap, rescale, shaping, Schedule(start=start, end=end), zero_init_percent)


def _channel_inputs():
    template = io.Autogrow.TemplatePrefix(
        sockets.GuidanceChannel.Input("channel", tooltip="A Guidance Channel, or a chain of them."), prefix="channel_", min=1, max=16
    )
    return io.Autogrow.Input("channels", template=template)


def _sigmas_input():
    return io.Sigmas.Input(
        "sigmas", optional=True, tooltip="For the image of weights: the sigmas you sample with. Not connected: percents from 0 to 1."
    )


_IMAGE = dict(display_name="weights", tooltip="The weight of every channel over the sampling, as an image.")


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
                *_better_inputs(),
                *_interval_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."), io.Image.Output(**_IMAGE)],
        )

    @classmethod
    def execute(
        cls,
        model,
        unconditional,
        channels,
        conflict,
        norm_cap,
        rescale,
        sigmas=None,
        apg_eta=1.0,
        apg_momentum=0.0,
        apg_norm=0.0,
        zero_star=False,
        zero_init_percent=0.0,
        interval_start_percent=0.0,
        interval_end_percent=1.0,
    ) -> io.NodeOutput:
        listed = _listed(channels)
        better = (apg_eta, apg_momentum, apg_norm, zero_star, zero_init_percent)
        rules = _rules(conflict, norm_cap, rescale, *better, interval_start_percent, interval_end_percent)
        guider = MultiCFG(model, unconditional, listed, rules)
        return io.NodeOutput(guider, weights_image(model, listed, sigmas, rules))


class MultiCFGPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiCFGPatch",
            display_name="Multi CFG Patch",
            category=_CATEGORY,
            description="Adds channels on top of the positive and negative of any sampler: put it between the model and a KSampler.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                _channel_inputs(),
                *_rule_inputs(),
                _sigmas_input(),
                *_better_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a KSampler, or any guider."), io.Image.Output(**_IMAGE)],
        )

    @classmethod
    def execute(
        cls,
        model,
        channels,
        conflict,
        norm_cap,
        rescale,
        sigmas=None,
        apg_eta=1.0,
        apg_momentum=0.0,
        apg_norm=0.0,
        zero_star=False,
        zero_init_percent=0.0,
    ) -> io.NodeOutput:
        listed = _listed(channels)
        rules = _rules(conflict, norm_cap, rescale, apg_eta, apg_momentum, apg_norm, zero_star, zero_init_percent)
        patched = MultiCFGWrapper(listed, rules).install(model)
        return io.NodeOutput(patched, weights_image(model, listed, sigmas, rules))


class GuidanceReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceReport",
            display_name="Guidance Report",
            category=_CATEGORY,
            description="What guidance did in a finished run, as one image: the weight and the strength of every channel over the "
            "steps, which channels fight each other, and how often the network was evaluated. Costs no evaluation.",
            search_aliases=["guidance analysis", "cfg debug", "channel conflict", "guidance norm", "cosine similarity"],
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[io.Guider, io.Model],
                    tooltip="The guider of Multi CFG Guider, or the model of Multi CFG Patch, with which the latent was sampled.",
                ),
                io.Latent.Input("latent", tooltip="The sampled latent; it is passed on. It makes the report wait for the run."),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="Weights, strengths and conflicts over the predictions of the run."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
                io.String.Output(display_name="text", tooltip="The same in words: means, worst conflict, evaluations."),
            ],
        )

    @classmethod
    def execute(cls, source, latent) -> io.NodeOutput:
        record = record_of(source, latent)
        return io.NodeOutput(report_image(record), latent, record.text())


NODES = [GuidanceChannel, MultiCFGGuider, MultiCFGPatch, GuidanceReport]
