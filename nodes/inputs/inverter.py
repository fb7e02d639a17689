"""The form that all inverters share: their schema, with the inputs and outputs that each of them has."""

from __future__ import annotations

from comfy_api.latest import io

from .fit import fit_input
from .sockets import Inversion
from .widgets import advanced, auto_scheduler, cfg_input, choice, image_input, number, optional, steps_input, switch, whole

PRECISIONS = ("highest", "float32", "float64")


def inverter_inputs(
    *settings,
    steps: int = 50,
    least_steps: int = 1,
    steps_tip: str = "Typical: 20–50; more are more exact.",
    model: str = "Any model: eps, v or flow.",
    source: str = "What the image shows. The better it fits, the better the inversion.",
    negative: str | None = None,
    vae: str = "Needed for an IMAGE.",
) -> list:
    """All inputs of an inverter around its own settings; with a tooltip for it, a negative too."""
    return [
        io.Model.Input("model", tooltip=model),
        io.MultiType.Input("source", types=[io.Conditioning, io.String], tooltip=f"{source} A CONDITIONING, or a text with the clip connected."),
        image_input("The images to invert"),
        steps_input(steps, f"Steps of the inversion and of every reconstruction. {steps_tip}", least_steps),
        auto_scheduler("ComfyUI's schedulers, reversed."),
        number("end_percent", 0.0, 0.0, 0.99, "Percent of the sampling to invert to. 0 = pure noise, most freedom; 0.2–0.5 keeps layout."),
        *settings,
        *([] if negative is None else optional(io.Conditioning.Input("negative", tooltip=negative))),
        fit_input("inversion", cropped="Inversion Sampler's image"),
        io.Vae.Input("vae", optional=True, tooltip=vae),
        io.Clip.Input("clip", optional=True, tooltip="Needed for a text as source. P2P Attention Patch then takes the text from the inversion."),
    ]


def fixed_point_input(default: int, typical: str) -> io.Int.Input:
    tooltip = f"Most corrections of a step of the inversion, so that sampling undoes it; each is another evaluation. {typical}"
    return whole("fixed_point_iterations", default, 0, 100, tooltip)


def extrapolate_input() -> io.Boolean.Input:
    tooltip = "On: a step of the inversion evaluates the model where the last one leads to; more exact at the same cost; edits may keep less. Off: as in the paper."
    return switch("extrapolate", False, tooltip)


def exact_inputs(*settings, least_steps: int = 1) -> list:
    """All inputs of an exact inverter around its own settings."""
    cfg = (
        "Guidance scale of the inversion; Inversion Sampler gives the image back at the same. 1: no guidance, half the work, no negative; "
        "then an edit at 3 follows its prompt best. 3 (EDICT's paper): an edit at 3 keeps more of the image."
    )
    precision = (
        "Of the states; the model keeps its own. 'highest': float64 where the device has it, else float32. float64 costs no time and is a "
        "million times more exact; float32 takes half the memory."
    )
    return inverter_inputs(
        cfg_input(1.0, cfg),
        *settings,
        *advanced(choice("precision", PRECISIONS, precision)),
        least_steps=least_steps,
        steps_tip="Typical: 10–50; the reconstruction is exact at any number.",
        negative="Needed where cfg is not 1. Inversion Sampler uses it unless another is connected.",
    )


def rescale_input(name: str) -> io.Boolean.Input:
    tooltip = f"On: {name} is for 50 steps and is adapted to your steps, closer to 1 for more, for the same total effect. Off: as given."
    return switch("rescale", True, tooltip)


def inverter_outputs(*own: io.Output) -> list:
    """The outputs of every node that gives an inversion, see `nodes.host.inversion.invert.outputs`, and then its `own`."""
    return [
        Inversion.Output(display_name="inversion", tooltip="The inversion, for Inversion Sampler and Save Inversion."),
        io.Latent.Output(display_name="noisy_latent", tooltip="The noise that was found, for samplers that add none. Not for flow models."),
        io.Noise.Output(display_name="noise", tooltip="The same as a NOISE, for SamplerCustomAdvanced and every kind of model."),
        io.Sigmas.Output(display_name="sigmas", tooltip="The sigmas of the reconstruction."),
        *own,
    ]
