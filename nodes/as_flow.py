"""An eps or v model in the coordinates of a flow model."""

from comfy_api.latest import io

from .host.inversion.as_flow import as_flow
from .inputs.widgets import schema


class ModelSamplingAsFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "ModelSamplingAsFlow", "Model Sampling as Flow", "inversion",
            ["rectified flow", "eps to flow", "v to flow", "model sampling sd3", "convert to flow matching", "const"],
            "Makes an eps or v model (SD1.5, SD2, SDXL) a flow model, exactly: the same network at the same noise levels, with states (1 - "
            "s) image + s noise. Then nodes for flow models, such as RF Inverter, work with it.",
            inputs=[io.Model.Input("model", tooltip="An eps or v model. A flow model comes back as it is.")],
            outputs=[io.Model.Output(display_name="model", tooltip="The flow model. Its sigmas end below 1; get them from a scheduler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(as_flow(model))


NODES = [ModelSamplingAsFlow]
