"""DDIM inversion: the deterministic sampler reversed."""

from comfy_api.latest import io

from ..inversion.ddim import DDIM
from ..inversion.fixed_point import ACCELERATIONS
from .host.inversion import invert
from .host.prompts import source_of
from .inputs.inverter import extrapolate_input, fixed_point_input, inverter_inputs, inverter_outputs
from .inputs.widgets import advanced, choice, only_with, schema, share, whole

_ACCELERATION = "How corrections proceed: 'picard' repeats the step; 'anderson' mixes the last iterates and mostly needs fewer."
_TOLERANCE = "Relative residual at which corrections of a step stop; the best of them counts. Typical: 1e-6–1e-4. 0 = never."


class DDIMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DDIMInverter", "DDIM Inverter", "inversion",
            [
                "ddim inversion", "unsample", "unsampling", "real image editing", "invert image", "noise inversion", "fixed-point inversion", "aidi",
                "effective real image editing with accelerated iterative diffusion inversion", "rf-solver",
                "taming rectified flow for inversion and editing", "uni-inv", "uniedit-flow",
            ],
            "Finds the noise from which an image comes: DDIM reversed, without guidance. One evaluation a step. Sampled without guidance, "
            "the noise nearly gives the image back; more steps are more exact, fixed-point iterations make it exact.",
            inverter_inputs(
                whole("order", DDIM.order, 1, 2, "Evaluations a step, both ways. 1: DDIM (Euler). 2: midpoint (RF-Solver), more exact."),
                fixed_point_input(DDIM.fixed_point_iterations, "Typical: 3–10. 0 = off."),
                *advanced(
                    only_with(choice("acceleration", ACCELERATIONS, _ACCELERATION, DDIM.acceleration), "fixed_point_iterations"),
                    only_with(share("tolerance", DDIM.tolerance, _TOLERANCE, 1e-7, round=1e-9), "fixed_point_iterations"),
                    only_with(extrapolate_input(), "order", 1),
                ),
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, image, steps, scheduler, end_percent, vae=None, clip=None, **settings) -> io.NodeOutput:
        source, text = source_of(clip, source)
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source)
        return io.NodeOutput(*invert.outputs(model, invert.invert(model, vae, image, source, DDIM(**settings), sigmas), text))


NODES = [DDIMInverter]
