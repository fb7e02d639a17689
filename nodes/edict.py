"""EDICT: exact inversion by two coupled states."""

from comfy_api.latest import io

from ..inversion.edict import EDICT
from ..inversion.exact import for_steps
from .host.inversion import exact
from .inputs.inverter import exact_inputs, inverter_outputs, rescale_input
from .inputs.widgets import schema, share


class EDICTInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "EDICTInverter", "EDICT Inverter", "inversion",
            [
                "edict", "exact diffusion inversion via coupled transformations", "exact inversion", "coupled inversion", "invert image",
                "real image editing",
            ],
            "Finds a pair of noises from which an image is reconstructed exactly, whatever the model and the prompt: two coupled states. "
            "Two evaluations a step.",
            exact_inputs(
                share("p", EDICT.p, "Each state's own share when the pair is mixed after a step. Typical: 0.9–0.97 (paper 0.93). 1 = no "
                    "mixing. Lower keeps the pair together while sampling and drives it apart while inverting.", round=0.001),
                rescale_input("p"),
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, p, rescale, **inputs) -> io.NodeOutput:
        return exact.inverted(lambda steps: EDICT(for_steps(p, steps) if rescale else p), **inputs)


NODES = [EDICTInverter]
