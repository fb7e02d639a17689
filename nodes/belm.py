"""O-BELM: the exact inversion over three levels with the smallest local error."""

from comfy_api.latest import io

from ..inversion.belm import OBELM
from .host.inversion import exact
from .inputs import inverter


class BELMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="BELMInverter",
            display_name="BELM Inverter",
            category="controlled diffusion/inversion",
            description="O-BELM: finds the noise from which an image comes back exactly, whatever the model and the prompt, at one evaluation a "
            "step and with nothing to set. Its steps are the most accurate of this kind.",
            search_aliases=[
                "o-belm",
                "belm",
                "bidirectional explicit linear multi-step sampler for exact inversion in diffusion models",
                "exact inversion",
                "invert image",
                "real image editing",
            ],
            inputs=inverter.own_inputs(),
            outputs=inverter.inverter_outputs(),
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return exact.inverted(method_for=lambda steps: OBELM(), **inputs)


NODES = [BELMInverter]
