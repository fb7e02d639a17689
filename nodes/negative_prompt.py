"""Negative-prompt inversion: DDIM inversion for a way back with the source as the negative."""

from comfy_api.latest import io

from ..inversion.negative_prompt import PROXIMAL, NegativePrompt
from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion import invert
from .host.inversion.null_text import as_null, between
from .inputs import inverter


class NegativePromptInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NegativePromptInverter",
            display_name="Negative-Prompt Inverter",
            category="controlled diffusion/inversion",
            description="DDIM inversion whose way back takes the source prompt as the negative: nothing is optimised, and under the source the "
            "image comes back as without guidance, whatever the cfg.",
            search_aliases=[
                "negative-prompt inversion",
                "npi",
                "fast image inversion for editing with text-guided diffusion models",
                "proximal guidance",
                "proxnpi",
                "improving tuning-free real image editing with proximal guidance",
                "real image editing",
                "invert image",
            ],
            inputs=[
                *inverter.inverter_inputs(),
                io.Int.Input(
                    "fixed_point_iterations",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Corrections of every step of the inversion, so that the way back undoes it. 0: the paper's inversion; usual 3 to 5, "
                    "each up to one more evaluation a step.",
                ),
                io.Float.Input(
                    "interpolation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How far the negative lies from the source towards the connected negative, an empty prompt. 0: the source, nearest to "
                    "the image; 1: the empty prompt, plain guidance. Usual 0 to 0.3.",
                ),
                io.Combo.Input(
                    "proximal",
                    options=list(PROXIMAL),
                    tooltip="Edits in Inversion Sampler follow only the large differences of target and negative: 'l0' leaves the small ones out, "
                    "'l1' also takes as much off the large. 'off': all of it. Less of the image changes.",
                ),
                io.Float.Input(
                    "quantile",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="Share of the differences that proximal calls small. 0: none of them. Usual 0.7.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="An empty prompt; needed for an interpolation above 0 alone."),
                *inverter.inverter_extras(),
            ],
            outputs=[
                *inverter.inverter_outputs(),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The source as a negative, for any sampler. Inversion Sampler takes it by itself.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        source,
        image,
        steps,
        scheduler,
        end_percent,
        fixed_point_iterations=0,
        interpolation=0.0,
        proximal="off",
        quantile=0.7,
        negative=None,
        vae=None,
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source} | ({} if negative is None else {"negative": negative}))
        method = NegativePrompt(fixed_point_iterations, interpolation, proximal, quantile)
        null = between(as_null(source), negative, interpolation)
        sigmas = noise_levels.levels(model, scheduler, steps, end_percent)
        found = invert.invert(model, vae, image, source, method, sigmas, negative=null)
        return io.NodeOutput(*invert.outputs(model, found), null)


NODES = [NegativePromptInverter]
