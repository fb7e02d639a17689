"""DDIM inversion: the deterministic sampler run backwards."""

from comfy_api.latest import io

from ..inversion.ddim import DDIM
from .host import inversion, sockets
from .host.channels import check_conditionings


class DDIMInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DDIMInverter",
            display_name="DDIM Inverter",
            category="controlled diffusion/inversion",
            description="Finds the noise from which a picture comes: DDIM run backwards, without guidance. One evaluation a step. Replayed "
            "without guidance it gives the picture back nearly; the more steps, the nearer.",
            search_aliases=["ddim inversion", "unsampling", "real image editing", "invert image", "noise inversion"],
            inputs=[*sockets.inverter_inputs(), *sockets.inverter_extras()],
            outputs=sockets.inverter_outputs(),
        )

    @classmethod
    def execute(cls, model, source, picture, steps, scheduler, end_percent, vae=None) -> io.NodeOutput:
        check_conditionings(model, {"source": source})
        sigmas = inversion.levels(model, scheduler, steps, end_percent)
        found = inversion.invert(model, vae, picture, source, DDIM(), sigmas)
        return io.NodeOutput(*inversion.outputs(model, found))


NODES = [DDIMInverter]
