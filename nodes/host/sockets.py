"""The pack's own socket types."""

import comfy.samplers
from comfy_api.latest import io

GuidanceChannel = io.Custom("GUIDANCE_CHANNEL")  # tuple[guidance.multi_cfg.Channel, ...]
GuidanceSchedule = io.Custom("GUIDANCE_SCHEDULE")  # guidance.schedules.Schedule
NoisyClassifier = io.Custom("NOISY_CLASSIFIER")  # guidance.classifier.LabelledClassifier
Inversion = io.Custom("INVERSION")  # nodes.host.inversion.Inversion
IPAdapter = io.Custom("IP_ADAPTER")  # attention.ip_adapter.Adapter
AttentionMaps = io.Custom("ATTENTION_MAPS")  # nodes.host.attention_maps.Maps
PairChecker = io.Custom("PAIR_CHECKER")  # nodes.host.instruct_pairs.Checker: (before, after, prompts) -> a score of each candidate
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
        io.String.Input("name", default="", advanced=True, tooltip=f"What the channel is called in pictures and errors. Empty: {called}."),
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


def inverter_inputs(
    steps: int = 50,
    model: str = "Any model: eps, v or flow.",
    source: str = "What the picture shows. The better it fits, the better the inversion.",
    steps_tip: str = "usual 20 to 50, more are more exact",
) -> list:
    """The first inputs of every node that inverts pictures; its own follow, then `inverter_extras`."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Conditioning.Input("source", tooltip=source),
        io.MultiType.Input(
            "picture", types=[io.Latent, io.Image], tooltip="The pictures to invert: a LATENT, or an IMAGE with the vae connected."
        ),
        io.Int.Input(
            "steps",
            default=steps,
            min=1,
            max=1000,
            tooltip=f"Steps of the inversion and of every replay; {steps_tip}.",
        ),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The host's schedulers, walked backwards."),
        io.Float.Input(
            "end_percent",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            tooltip="Percent of the sampling up to which to invert: 0 all the way to noise, which leaves most freedom to edit; 0.2 to 0.5 "
            "keeps the layout.",
        ),
    ]


def inverter_extras() -> list:
    """The last, optional inputs of every node that inverts pictures."""
    return [io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE.")]


def inverter_outputs() -> list:
    """The outputs of every node that inverts pictures; see `nodes.host.inversion.outputs`."""
    return [
        Inversion.Output(display_name="inversion", tooltip="The inversion, for Inversion Sampler and Save Inversion."),
        io.Latent.Output(
            display_name="noisy_latent", tooltip="The noise that was found, for samplers that add none, with the same sigmas. Not for flow."
        ),
        io.Noise.Output(
            display_name="noise", tooltip="The same as a NOISE, for SamplerCustomAdvanced with these sigmas: right for every kind of model."
        ),
        io.Sigmas.Output(display_name="sigmas", tooltip="The sigmas of the way back."),
    ]
