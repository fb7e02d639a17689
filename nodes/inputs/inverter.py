"""The inputs and outputs that inverters share."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from .sockets import Inversion

PRECISIONS = ("highest", "float32", "float64")


def own_inputs(*settings) -> list:
    """All inputs of an exact inverter around its own settings."""
    cfg = io.Float.Input(
        "cfg",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance scale of the inversion, at which Inversion Sampler gives the image back. 1: no guidance, half of the work, no "
        "negative, and an edit at 3 or so follows its prompt best. 3 (EDICT's paper): an edit at 3 keeps more of the image.",
    )
    precision = io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        advanced=True,
        tooltip="Of the states; the model keeps its own. 'highest' is float64 wherever the device has it, else float32. float64 costs no time "
        "and comes back a million times nearer; float32 takes half the memory.",
    )
    negative = io.Conditioning.Input(
        "negative", optional=True, tooltip="Needed where cfg is not 1, and used by Inversion Sampler unless another is connected."
    )
    return [
        *inverter_inputs(steps_tip="usual 10 to 50; the image comes back exactly at any number"),
        cfg,
        *settings,
        precision,
        negative,
        *inverter_extras(),
    ]


def rescale_input(what: str) -> io.Boolean.Input:
    return io.Boolean.Input(
        "rescale",
        default=True,
        tooltip=f"On: {what} is meant for 50 steps, and for another number is brought closer to 1 (more steps) or further from it (fewer), so "
        "that all steps together do as much. Off: as given.",
    )


def inverter_inputs(
    steps: int = 50,
    model: str = "Any model: eps, v or flow.",
    source: str = "What the image shows. The better it fits, the better the inversion.",
    steps_tip: str = "usual 20 to 50, more are more exact",
) -> list:
    """The first inputs of every node that inverts images; its own follow, then `inverter_extras`."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Conditioning.Input("source", tooltip=source),
        io.MultiType.Input(
            "image", types=[io.Latent, io.Image], tooltip="The images to invert: a LATENT, or an IMAGE with the vae connected."
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
    """The last, optional inputs of every node that inverts images."""
    return [io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE.")]


def inverter_outputs() -> list:
    """The outputs of every node that inverts images; see `nodes.host.inversion.outputs`."""
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
