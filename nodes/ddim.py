"""DDIM inversion: the deterministic sampler run backwards."""

from comfy_api.latest import io

from ..inversion.ddim import DDIM
from ..inversion.fixed_point import ACCELERATIONS
from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion import invert
from .inputs import inverter


class DDIMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DDIMInverter",
            display_name="DDIM Inverter",
            category="controlled diffusion/inversion",
            description="Finds the noise from which an image comes: DDIM run backwards, without guidance. One evaluation a step. Replayed "
            "without guidance it gives the image back nearly; the more steps, the nearer. Fixed-point iterations make it exact.",
            search_aliases=[
                "ddim inversion",
                "unsampling",
                "real image editing",
                "invert image",
                "noise inversion",
                "fixed-point inversion",
                "aidi",
                "effective real image editing with accelerated iterative diffusion inversion",
                "rf-solver",
                "taming rectified flow for inversion and editing",
            ],
            inputs=[
                *inverter.inverter_inputs(),
                io.Int.Input(
                    "order",
                    default=1,
                    min=1,
                    max=2,
                    tooltip="1: DDIM (Euler), one evaluation a step. 2: midpoint (RF-Solver), two evaluations a step on both ways, and a "
                    "smaller error.",
                ),
                io.Int.Input(
                    "fixed_point_iterations",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Corrections of every step, so that the way back undoes it. 0: plain inversion; usual 3 to 10. At most so many "
                    "times the evaluations again.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=list(ACCELERATIONS),
                    advanced=True,
                    tooltip="How the corrections proceed: 'picard' repeats the step, 'anderson' mixes the last tries, which mostly needs fewer.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=1e-6,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=1e-9,
                    advanced=True,
                    tooltip="Relative residual at which the corrections of a step end; 0 makes them all. Usual 1e-6 to 1e-4. The best of them counts.",
                ),
                *inverter.inverter_extras(),
            ],
            outputs=inverter.inverter_outputs(),
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
        order=1,
        fixed_point_iterations=0,
        acceleration="anderson",
        tolerance=1e-6,
        vae=None,
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source})
        method = DDIM(order, fixed_point_iterations, acceleration, tolerance)
        sigmas = noise_levels.levels(model, scheduler, steps, end_percent)
        found = invert.invert(model, vae, image, source, method, sigmas)
        return io.NodeOutput(*invert.outputs(model, found))


NODES = [DDIMInverter]
