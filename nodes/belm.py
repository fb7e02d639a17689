"""O-BELM: the exact inversion over three levels with the smallest local error."""

from comfy_api.latest import io

from ..inversion.belm import OBELM
from .host.inversion import exact
from .inputs.inverter import exact_inputs, inverter_outputs
from .inputs.widgets import schema


class BELMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "BELMInverter", "BELM Inverter", "inversion",
            [
                "o-belm", "belm", "bidirectional explicit linear multi-step sampler for exact inversion in diffusion models",
                "exact inversion", "invert image", "real image editing",
            ],
            "O-BELM: finds the noise from which an image is reconstructed exactly, whatever the model and the prompt, at one evaluation a "
            "step and with nothing to set. Its steps are the most accurate of this kind.",
            exact_inputs(least_steps=2),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return exact.inverted(lambda steps: OBELM(), **inputs)


NODES = [BELMInverter]
