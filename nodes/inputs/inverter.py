"""The form that all inverters share: their schema, with the inputs and outputs that each of them has."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from .sockets import Inversion
from .widgets import advanced, choice, number, optional, switch, whole

PRECISIONS = ("highest", "float32", "float64")


def inverter_inputs(
    *settings,
    steps: int = 50,
    steps_tip: str = "Typical: 20–50; more are more exact.",
    model: str = "Any model: eps, v or flow.",
    source: str = "What the image shows. The better it fits, the better the inversion.",
    negative: str | None = None,
) -> list:
    """All inputs of an inverter around its own settings; with a tooltip for it, a negative too."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Conditioning.Input("source", tooltip=source),
        image_input("invert"),
        whole("steps", steps, 1, 1000, f"Steps of the inversion and of every reconstruction. {steps_tip}"),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, "ComfyUI's schedulers, reversed."),
        number(
            "end_percent", 0.0, 0.0, 0.99,
            "Percent of the sampling up to which to invert. 0: all the way to noise, most freedom to edit. 0.2–0.5 keeps the layout.",
        ),
        *settings,
        *([] if negative is None else optional(io.Conditioning.Input("negative", tooltip=negative))),
        io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE."),
    ]  # fmt: skip


def image_input(verb: str) -> io.MultiType.Input:
    return io.MultiType.Input(
        "image", types=[io.Latent, io.Image], tooltip=f"The images to {verb}: a LATENT, or an IMAGE with the vae connected."
    )


def cfg_input(default: float, tooltip: str, name: str = "cfg") -> io.Float.Input:
    return number(name, default, 0.0, 100.0, tooltip, step=0.1, round=0.01)


def exact_inputs(*settings) -> list:
    """All inputs of an exact inverter around its own settings."""
    cfg = cfg_input(
        1.0,
        "Guidance scale of the inversion; Inversion Sampler gives the image back at the same. 1: no guidance, half the work, no negative; "
        "then an edit at 3 follows its prompt best. 3 (EDICT's paper): an edit at 3 keeps more of the image.",
    )
    precision = choice(
        "precision",
        PRECISIONS,
        "Of the states; the model keeps its own. 'highest': float64 where the device has it, else float32. float64 costs no time and is a "
        "million times more exact; float32 takes half the memory.",
    )
    return inverter_inputs(
        cfg,
        *settings,
        *advanced(precision),
        steps_tip="Typical: 10–50; the reconstruction is exact at any number.",
        negative="Needed where cfg is not 1. Inversion Sampler uses it unless another is connected.",
    )


def rescale_input(name: str) -> io.Boolean.Input:
    return switch(
        "rescale",
        True,
        f"On: {name} is for 50 steps and is adapted to the number of steps, closer to 1 for more, so that all steps together have the same "
        "effect. Off: as given.",
    )


def inverter_outputs(*own: io.Output) -> list:
    """The outputs of every node that gives an inversion, see `nodes.host.inversion.invert.outputs`, and then its `own`."""
    return [
        Inversion.Output(display_name="inversion", tooltip="The inversion, for Inversion Sampler and Save Inversion."),
        io.Latent.Output(display_name="noisy_latent", tooltip="The noise that was found, for samplers that add none. Not for flow models."),
        io.Noise.Output(display_name="noise", tooltip="The same as a NOISE, for SamplerCustomAdvanced and every kind of model."),
        io.Sigmas.Output(display_name="sigmas", tooltip="The sigmas of the reconstruction."),
        *own,
    ]
