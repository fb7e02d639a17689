"""BDIA: exact inversion by averaging the DDIM steps to both sides."""

from comfy_api.latest import io

from ..inversion.bdia import BDIA
from ..inversion.exact import for_steps
from .host.inversion import exact
from .inputs.inverter import exact_inputs, inverter_outputs, rescale_input
from .inputs.widgets import schema, share


class BDIAInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "BDIAInverter", "BDIA Inverter", "inversion",
            [
                "bdia", "bdia-ddim", "exact diffusion inversion via bi-directional integration approximation", "exact inversion",
                "invert image", "real image editing",
            ],
            "Finds the noise from which an image is reconstructed exactly, whatever the model and the prompt, at one evaluation a step: "
            "each state follows from the two before it.",
            exact_inputs(
                share("gamma", BDIA.gamma, "How much of the previous step is taken back at each step. Typical: 0.92–1 (reference code "
                    "0.94). 1 = leapfrog. Low values let errors grow; 0 is DDIM, which has no exact inverse.", round=0.001),
                rescale_input("gamma"),
                least_steps=2,
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma, rescale, **inputs) -> io.NodeOutput:
        return exact.inverted(lambda steps: BDIA(for_steps(gamma, steps) if rescale else gamma), **inputs)


NODES = [BDIAInverter]
