"""RF-Inversion: inversion and editing of flow models as optimal control."""

import logging

from comfy_api.latest import io

from ..inversion.rf_inversion import RFInversion
from .host import model_tag, noise_levels
from .host.inversion import invert
from .host.prompts import source_of
from .inputs.inverter import inverter_inputs, inverter_outputs
from .inputs.widgets import number, schema, seed, share

_log = logging.getLogger(__name__)
_GAMMA = "Pull of the inversion towards the seed's noise. Typical: 0.5. 0 = plain inversion, closer to the image; 1 = that noise itself."
_ETA = "Pull of the sampling towards the image. Typical: 0.7–1. 0 = plain sampling; 1 at all steps gives the image back."
_ETA_END = "Percent of the sampling at which eta ends; 1 is the clean image. Later keeps more of the image. Typical: 0.2–0.4."
_DECAY = "Lets eta fade over the steps, as (1 - i / steps) to this power. 0 = constant; 1 = linear to 0."


class RFInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "RFInverter", "RF Inverter", "inversion",
            [
                "rf-inversion", "rectified flow inversion", "flux inversion", "unsample", "unsampling",
                "semantic image inversion and editing using rectified stochastic differential equations",
            ],
            "RF-Inversion for flow models (SD3, Flux, ...): the inversion is pulled towards normal noise, and the first steps of sampling "
            "towards the image, so that an edit keeps the image.",
            inverter_inputs(
                share("gamma", RFInversion.gamma, _GAMMA),
                share("eta", RFInversion.eta, _ETA),
                share("eta_start_percent", 0.0, "Percent of the sampling at which eta starts. Typical: 0, the noisiest step."),
                share("eta_end_percent", 0.25, _ETA_END),
                number("decay", RFInversion.decay, 0.0, 10.0, _DECAY, 0.1, advanced=True),
                seed("Seed of the noise that gamma pulls to. Every image of a batch gets the same."),
                steps=28,
                model="A flow model: SD3, Flux and the like, or any behind Model Sampling as Flow. Others are refused.",
                source="Usually an empty prompt, as in the paper; a prompt for what the image shows keeps more of it.",
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, eta_start_percent, eta_end_percent, vae=None, clip=None, **settings
    ) -> io.NodeOutput:
        source, text = source_of(clip, source)
        model_tag.check_flow(model, "RF-Inversion", "DDIM Inverter or Edit-Friendly Inverter")
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source)
        method = _method(model, eta_start_percent, eta_end_percent, settings)
        found = invert.invert(model, vae, image, source, method, sigmas)
        if method.eta and not any(method.pull(i, found.trajectory) for i in range(found.trajectory.steps)):
            _log.warning(
                "eta %g never acts: no step begins between eta_start_percent %g and eta_end_percent %g. Raise eta_end_percent, above "
                "end_percent %g, or lower end_percent.",
                *(method.eta, eta_start_percent, eta_end_percent, end_percent),
            )
        return io.NodeOutput(*invert.outputs(model, found, text))


def _method(model, start_percent: float, end_percent: float, settings: dict) -> RFInversion:
    """The method, with the percents of eta as sigmas of the model."""
    if start_percent > end_percent:
        raise ValueError(
            f"eta_start_percent is {start_percent:g} and eta_end_percent {end_percent:g}; give the start the smaller one, usually 0 and "
            "0.2 to 0.4."
        )
    start, end = noise_levels.noise_scale(model).range_sigmas(start_percent, end_percent)
    noise = noise_levels.noise_deviation(model.get_model_object("model_sampling"))
    return RFInversion(start_sigma=start, end_sigma=end, noise_scale=noise, **settings)


NODES = [RFInverter]
