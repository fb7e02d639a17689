"""Multi-condition guidance: channels, and the two ways to sample with them."""

from dataclasses import fields

from comfy_api.latest import io

from ..guidance.directions import Shaping
from ..guidance.multi_cfg import CONFLICTS, Channel, Rules
from ..guidance.schedules import Schedule
from .host.guidance.guidance_report import report_image, weights_image
from .host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper, record_of
from .inputs import sockets
from .inputs.channel import added_channel, channel_extras, channel_identity, channel_output, percent_range, weights_sigmas
from .inputs.widgets import advanced, choice, number, schema, switch, text

_ALIASES = [
    "composable diffusion", "multi condition cfg", "AND NOT prompts", "negative weight", "several negative prompts", "dual cfg", "perp neg",
    "regional cfg", "regional prompt", "weighted negative", "apg", "adaptive projected guidance", "cfg zero star", "rescale cfg",
]  # fmt: skip
_ROLES = {  # the weight that each starts with, and what is told of it
    "positive": (5.0, "Strength, as cfg. 0 = off (not evaluated). Typical: 3–10."),
    "negative": (2.0, "Strength, as cfg. 0 = off (not evaluated). Negative: typical 1–3; 1 below the positive's weight acts as KSampler's "
        "negative, at the positive's weight and above images burn."),
}  # fmt: skip
_NULL = "What the conditioning is compared with. Not connected: the unconditional of the guider, or KSampler's negative."


def _roles() -> list[io.DynamicCombo.Option]:
    widgets = {role: number("weight", start, -100.0, 100.0, tip, 0.1, round=0.01) for role, (start, tip) in _ROLES.items()}
    return [io.DynamicCombo.Option(role, [weight]) for role, weight in widgets.items()]


class GuidanceChannel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "GuidanceChannel", "Guidance Channel", "guidance", _ALIASES,
            "One guidance term: a conditioning with its own weight, sign, null, schedule, region and priority. Chain channels, or connect "
            "several to a Multi CFG node.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What this channel pulls towards, or pushes away from."),
                io.DynamicCombo.Input("role", options=_roles(), tooltip="'positive' pulls towards the conditioning, 'negative' pushes away "
                    "from it. Each has its own weight."),
                *percent_range("the channel"),
                *channel_identity(),
                *advanced(text("region", Channel.region, "A phrase of Word Regions on the model: the channel acts where the model draws it, from when that is "
                    "known. Empty: everywhere.")),
                io.Conditioning.Input("null", optional=True, tooltip=_NULL),
                *channel_extras(),
            ],
            outputs=[channel_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, role, name="", region="", **settings) -> io.NodeOutput:
        kind = role["role"]
        return added_channel(negative=kind == "negative", weight=role["weight"], name=name or kind, region=region.strip(), **settings)


_CONFLICT = "'sum': plain sum. 'project': lower priorities lose what opposes higher ones. 'perpendicular': all along those (Perp-Neg)."
_NORM_CAP = "Largest RMS of the summed guidance, in latent units. Typical: 0.5–3. 0 = no cap."
_RESCALE = "CFG-rescale phi: how far the contrast returns to that of the positive predictions. Typical: 0.7. 0 = off."
_ETA = "Adaptive projected guidance: share kept of the part parallel to the prediction, which over-saturates. 1 = plain CFG. Paper: 0."
_MOMENTUM = "Adaptive projected guidance: how much of the previous directions is added. Typical: -0.75 to -0.25. 0 = off."
_NORM = "Adaptive projected guidance: largest length (L2) of a direction in latent units. Typical: 2.5–15 at 512 x 512. 0 = off."
_ZERO_STAR = "CFG-zero-star: fits the null prediction to the conditioned one before they are compared. For flow models."
_ZERO_INIT = "CFG-zero-star: up to this percent of the sampling nothing is evaluated or changed. Typical: 0.04, for flow models. 0 = off."
_INTERVAL = "Percent of the sampling at which guidance {}s. Outside, only positive channels act, with weight 1: half the work for one."


def _rule_inputs():
    return [
        choice("conflict", CONFLICTS, _CONFLICT),
        *advanced(number("norm_cap", Rules.norm_cap, 0.0, 100.0, _NORM_CAP, 0.05), number("rescale", Rules.rescale, 0.0, 1.0, _RESCALE)),
        weights_sigmas(),
        *advanced(
            number("apg_eta", Shaping.apg_eta, 0.0, 10.0, _ETA, 0.05),
            number("apg_momentum", Shaping.apg_momentum, -1.0, 1.0, _MOMENTUM, 0.05),
            number("apg_norm", Shaping.apg_norm, 0.0, 1e6, _NORM, 0.5),
            switch("zero_star", Shaping.zero_star, _ZERO_STAR),
            number("zero_init_percent", Rules.zero_init_percent, 0.0, 1.0, _ZERO_INIT),
        ),
    ]


def _rules(interval_start_percent=Schedule.start, interval_end_percent=Schedule.end, **options) -> Rules:
    shaping = Shaping(**{f.name: options.pop(f.name) for f in fields(Shaping) if f.name in options})
    return Rules(shaping=shaping, interval=Schedule(start=interval_start_percent, end=interval_end_percent), **options)


def _channel_inputs():
    template = io.Autogrow.TemplatePrefix(
        sockets.GuidanceChannel.Input("channel", tooltip="A Guidance Channel, or a chain of them."), prefix="channel_", min=1, max=16
    )
    return io.Autogrow.Input("channels", template=template)


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
        return schema(
            "MultiCFGGuider", "Multi CFG Guider", "guidance", _ALIASES,
            "Guides with any number of positive and negative channels at once, each with its own weight, null, schedule and region. For "
            "SamplerCustomAdvanced. With one positive channel it is exactly ComfyUI's CFG.",
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("unconditional", tooltip="What the guidance starts from; usually an empty prompt."),
                _channel_inputs(),
                *_rule_inputs(),
                *advanced(
                    number("interval_start_percent", Schedule.start, 0.0, 1.0, _INTERVAL.format("start"), 0.001),
                    number("interval_end_percent", Schedule.end, 0.0, 1.0, _INTERVAL.format("end"), 0.001),
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."), io.Image.Output(**_IMAGE)],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, unconditional, channels, sigmas=None, **options) -> io.NodeOutput:
        listed, rules = _listed(channels), _rules(**options)
        return io.NodeOutput(MultiCFG(model, unconditional, listed, rules), weights_image(model, listed, sigmas, rules))


class MultiCFGPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "MultiCFGPatch", "Multi CFG Patch", "guidance", _ALIASES,
            "Adds channels on top of the positive and negative of any sampler: put it between the model and a KSampler.",
            inputs=[io.Model.Input("model", tooltip="Any model: eps, v or flow."), _channel_inputs(), *_rule_inputs()],
            outputs=[io.Model.Output(display_name="model", tooltip="For a KSampler, or any guider."), io.Image.Output(**_IMAGE)],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, channels, sigmas=None, **options) -> io.NodeOutput:
        listed, rules = _listed(channels), _rules(**options)
        return io.NodeOutput(MultiCFGWrapper(listed, rules).install(model), weights_image(model, listed, sigmas, rules))


class GuidanceReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "GuidanceReport", "Guidance Report", "guidance",
            ["guidance analysis", "cfg debug", "channel conflict", "guidance norm", "cosine similarity"],
            "What guidance did in the sampling that made a latent, as one image: the weight and the strength of every channel over the "
            "steps, which channels conflict, and how often the network was evaluated. Costs no evaluation.",
            inputs=[
                io.MultiType.Input("source", types=[io.Guider, io.Model],
                    tooltip="The guider of Multi CFG Guider, or the model of Multi CFG Patch, with which the latent was sampled."),
                io.Latent.Input("latent", tooltip="The sampled latent, straight from its sampler: one of the last 8. It is passed on."),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="Weights, strengths and conflicts over the predictions of the run."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
                io.String.Output(display_name="text", tooltip="The same in words: means, worst conflict, evaluations."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, latent) -> io.NodeOutput:
        record = record_of(source, latent)
        return io.NodeOutput(report_image(record), latent, record.text())


NODES = [GuidanceChannel, MultiCFGGuider, MultiCFGPatch, GuidanceReport]
