"""BDIA: exact inversion by averaging the DDIM steps to both sides."""

from comfy_api.latest import io

from ..inversion.bdia import BDIA
from ..inversion.exact import for_steps
from .host.inversion import exact
from .inputs import inverter


class BDIAInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="BDIAInverter",
            display_name="BDIA Inverter",
            category="controlled diffusion/inversion",
            description="Finds the noise from which an image comes back exactly, whatever the model and the prompt, at one evaluation a step: "
            "each state follows from the two before it.",
            search_aliases=[
                "bdia",
                "bdia-ddim",
                "exact diffusion inversion via bi-directional integration approximation",
                "exact inversion",
                "invert image",
                "real image editing",
            ],
            inputs=inverter.own_inputs(
                io.Float.Input(
                    "gamma",
                    default=0.94,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much of the step before is taken back at each step. 1: a leapfrog; usual 0.92 to 1, 0.94 in the reference code. "
                    "0 would be DDIM, which has no exact inverse; low values let errors grow.",
                ),
                inverter.rescale_input("gamma"),
            ),
            outputs=inverter.inverter_outputs(),
        )

    @classmethod
    def execute(cls, gamma, rescale, **inputs) -> io.NodeOutput:
        return exact.inverted(method_for=lambda steps: BDIA(for_steps(gamma, steps) if rescale else gamma), **inputs)


NODES = [BDIAInverter]
