"""RF-Inversion: inversion and editing of flow models as optimal control."""

import logging

from comfy_api.latest import io

from ..inversion.rf_inversion import RFInversion
from .host import model_tag, noise_levels
from .host.conditionings import check_conditionings
from .host.inversion import invert
from .host.noise_levels import noise_scale
from .inputs import inverter

_log = logging.getLogger(__name__)


class RFInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RFInverter",
            display_name="RF Inverter",
            category="controlled diffusion/inversion",
            description="RF-Inversion for flow models (SD3, Flux, ...): the way to noise is drawn towards a noise that the model knows, and the "
            "way back towards the image during its first steps, so that an edit keeps the image.",
            search_aliases=[
                "rf-inversion",
                "rectified flow inversion",
                "semantic image inversion and editing using rectified stochastic differential equations",
                "flux inversion",
                "unsampling",
            ],
            inputs=[
                *inverter.inverter_inputs(
                    28,
                    "A flow model: SD3, Flux and their like, or any behind Model Sampling as Flow. Others are refused.",
                    "Usually an empty prompt, as in the paper; what the image shows holds it more closely.",
                ),
                io.Float.Input(
                    "gamma",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pull of the way up towards the noise of the seed. 0: plain inversion, nearer to the image; 1: that noise itself. "
                    "Usual 0.5.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pull of the way back towards the image. 0: plain sampling; higher keeps more of the image; 1 at all steps gives "
                    "it back. Usual 0.7 to 1.",
                ),
                io.Float.Input(
                    "eta_start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Percent of the sampling at which eta sets in; 0 is the noisiest moment. Usual 0.",
                ),
                io.Float.Input(
                    "eta_end_percent",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Percent of the sampling at which eta ends; 1 is the clean image. Later keeps more of the image. Usual 0.2 to 0.4.",
                ),
                io.Float.Input(
                    "decay",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Lets eta fade over the steps, as (1 - i / steps) to this power. 0: it stays as it is; 1: straight to 0.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise that gamma pulls to. Every image of a batch gets the same.",
                ),
                *inverter.inverter_extras(),
            ],
            outputs=inverter.inverter_outputs(),
        )

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, gamma, eta, eta_start_percent, eta_end_percent, decay, seed, vae=None
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source})
        model_tag.check_flow(model, "RF-Inversion", "DDIM Inverter or Edit-Friendly Inverter")
        sampling = model.get_model_object("model_sampling")
        if eta_start_percent > eta_end_percent:
            raise ValueError(
                f"eta_start_percent is {eta_start_percent:g} and eta_end_percent {eta_end_percent:g}; give the start the smaller one, usually 0 "
                "and 0.2 to 0.4."
            )
        scale = noise_scale(model)
        start, end = (scale.sigma(p) for p in (eta_start_percent, eta_end_percent))
        method = RFInversion(gamma, eta, start, end, decay, seed, noise_levels.noise_deviation(sampling))
        sigmas = noise_levels.levels(model, scheduler, steps, end_percent)
        found = invert.invert(model, vae, image, source, method, sigmas)
        if eta and not any(method.pull(i, found.trajectory) for i in range(found.trajectory.steps)):
            _log.warning(
                "eta %g never acts: no step begins between eta_start_percent %g and eta_end_percent %g. Raise eta_end_percent, above "
                "end_percent %g, or lower end_percent.",
                eta,
                eta_start_percent,
                eta_end_percent,
                end_percent,
            )
        return io.NodeOutput(*invert.outputs(model, found))


NODES = [RFInverter]
