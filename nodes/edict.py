"""EDICT: exact inversion by two coupled states."""

from comfy_api.latest import io

from ..inversion.edict import EDICT
from ..inversion.exact import for_steps
from .host.inversion import exact
from .inputs import inverter


class EDICTInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EDICTInverter",
            display_name="EDICT Inverter",
            category="controlled diffusion/inversion",
            description="Finds a pair of noises from which an image comes back exactly, whatever the model and the prompt: two states that guide "
            "each other. Two evaluations a step.",
            search_aliases=[
                "edict",
                "exact diffusion inversion via coupled transformations",
                "exact inversion",
                "coupled inversion",
                "invert image",
                "real image editing",
            ],
            inputs=inverter.own_inputs(
                io.Float.Input(
                    "p",
                    default=0.93,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Each state's own share when the pair is mixed after a step: 1 mixes nothing. Usual 0.9 to 0.97, 0.93 in the paper. "
                    "Lower keeps the pair together while sampling and drives it apart while inverting.",
                ),
                inverter.rescale_input("p"),
            ),
            outputs=inverter.inverter_outputs(),
        )

    @classmethod
    def execute(cls, p, rescale, **inputs) -> io.NodeOutput:
        return exact.inverted(method_for=lambda steps: EDICT(for_steps(p, steps) if rescale else p), **inputs)


NODES = [EDICTInverter]
