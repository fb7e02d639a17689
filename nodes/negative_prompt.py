"""Negative-prompt inversion: DDIM inversion for a reconstruction with the source as the negative."""

from comfy_api.latest import io

from ..inversion.negative_prompt import GUIDANCE, L0, L1, NegativePrompt
from .host.inversion import invert
from .host.inversion.negative_prompt import as_null, between
from .host.prompts import source_of
from .inputs.inverter import extrapolate_input, fixed_point_input, inverter_inputs, inverter_outputs
from .inputs.widgets import advanced, schema, share

_GUIDANCE = (
    "How an edit in Inversion Sampler follows the difference of target and negative. 'plain': all of it. 'proximal l0': without its small "
    "values, which changes less of the image; 'proximal l1' also reduces the large ones. 'Uni-Edit': more where it is large."
)


def _guidance_input():
    """How an edit is guided, with each way's own settings."""

    def settings(name: str) -> list:
        quantile = share("quantile", NegativePrompt.quantile, "Share of small differences. Typical: 0.7. 0 = none.", 0.05, round=0.001)
        return [quantile] if name in (L0, L1) else []

    return io.DynamicCombo.Input("guidance", options=[io.DynamicCombo.Option(name, settings(name)) for name in GUIDANCE], tooltip=_GUIDANCE)


class NegativePromptInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        own = NegativePrompt
        return schema(
            "NegativePromptInverter", "Negative-Prompt Inverter", "inversion",
            [
                "negative-prompt inversion", "npi", "fast image inversion for editing with text-guided diffusion models",
                "proximal guidance", "proxnpi", "improving tuning-free real image editing with proximal guidance", "uni-edit",
                "uniedit-flow: unleashing inversion and editing in the era of flow models", "real image editing", "invert image",
            ],
            "DDIM inversion for a reconstruction with the source prompt as the negative. Nothing is optimized; under the source the image "
            "comes back as without guidance, whatever the cfg.",
            inverter_inputs(
                fixed_point_input(own.fixed_point_iterations, "Typical: 3–5. 0 = off, as in the paper."),
                share("interpolation", own.interpolation, "Moves the negative from the source to the connected negative, an empty prompt. "
                    "Typical: 0–0.3. 0 = the source, closest to the image; 1 = the empty prompt.", 0.05, round=0.001),
                _guidance_input(),
                *advanced(extrapolate_input()),
                negative="An empty prompt; only needed for an interpolation above 0.",
            ),
            inverter_outputs(
                io.Conditioning.Output(display_name="negative", tooltip="The source, for any sampler; Inversion Sampler has it already."),
            ),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, guidance, negative=None, vae=None, clip=None, **settings
    ) -> io.NodeOutput:
        source, text = source_of(clip, source)
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source, negative=negative)
        method = NegativePrompt(**settings, **guidance)
        null = between(as_null(source), negative, method.interpolation)
        found = invert.invert(model, vae, image, source, method, sigmas, negative=null)
        return io.NodeOutput(*invert.outputs(model, found, text), null)


NODES = [NegativePromptInverter]
