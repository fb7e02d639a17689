"""DDIM inversion: the deterministic sampler reversed."""

from comfy_api.latest import io

from ..inversion.ddim import DDIM
from ..inversion.fixed_point import ACCELERATIONS
from .host.inversion import invert
from .inputs.inverter import inverter_inputs, inverter_outputs
from .inputs.widgets import advanced, choice, number, schema, whole


class DDIMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DDIMInverter", "DDIM Inverter", "inversion",
            [
                "ddim inversion", "unsampling", "real image editing", "invert image", "noise inversion", "fixed-point inversion", "aidi",
                "effective real image editing with accelerated iterative diffusion inversion", "rf-solver",
                "taming rectified flow for inversion and editing",
            ],
            "Finds the noise from which an image comes: DDIM reversed, without guidance. One evaluation a step. Sampled without guidance, "
            "the noise nearly gives the image back; more steps are more exact, fixed-point iterations make it exact.",
            inverter_inputs(
                whole("order", DDIM.order, 1, 2, "Evaluations a step, both ways. 1: DDIM (Euler). 2: midpoint (RF-Solver), more exact."),
                whole("fixed_point_iterations", DDIM.fixed_point_iterations, 0, 100,
                    "Most corrections of a step, so that sampling undoes it; each is another evaluation. Typical: 3–10. 0 = off."),
                *advanced(
                    choice("acceleration", ACCELERATIONS, "How corrections proceed: 'picard' repeats the step; 'anderson' mixes the last "
                        "iterates and mostly needs fewer.", DDIM.acceleration),
                    number("tolerance", DDIM.tolerance, 0.0, 1.0, "Relative residual at which corrections of a step stop; the best of them "
                        "counts. Typical: 1e-6–1e-4. 0 = never.", step=1e-7, round=1e-9),
                ),
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, image, steps, scheduler, end_percent, vae=None, **settings) -> io.NodeOutput:
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source)
        return io.NodeOutput(*invert.outputs(model, invert.invert(model, vae, image, source, DDIM(**settings), sigmas)))


NODES = [DDIMInverter]
