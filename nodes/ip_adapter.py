"""IP-Adapter: an image as a prompt, for the whole run or as a guidance channel of its own."""

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..attention.ip_adapter import COMBINATIONS
from .host.attention import ip_adapter
from .host.fingerprint import stamp
from .inputs import channel, sockets
from .inputs.widgets import advanced, choice, number, schema, text

_ALIASES = [
    "ip-adapter", "ipadapter", "image prompt", "style reference", "style transfer", "face reference", "decoupled cross-attention",
    "reference image", "clip vision",
]  # fmt: skip


class IPAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "IPAdapterLoader", "Load IP-Adapter", "attention", _ALIASES,
            "Loads an IP-Adapter of an SD1.5 or SDXL model: base, plus, plus-face or full, recognized by the file's own weights.",
            inputs=[
                io.Combo.Input("adapter_name", options=ip_adapter.ADAPTERS.names(), tooltip="A .safetensors file in models/ipadapter."),
            ],
            outputs=[sockets.IPAdapter.Output(display_name="adapter", tooltip="For IP-Adapter Patch.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, adapter_name):
        return float("nan") if adapter_name is None else stamp(ip_adapter.ADAPTERS.find(adapter_name))

    @classmethod
    def execute(cls, adapter_name) -> io.NodeOutput:
        return io.NodeOutput(ip_adapter.load(adapter_name))


class IPAdapterPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "IPAdapterPatch", "IP-Adapter Patch", "attention", _ALIASES,
            "Lets images act beside the prompt: the cross-attention of the model looks at them too. For the whole run, or, with a "
            "conditioning connected, for that conditioning alone, so that image and text can be guidance channels of their own.",
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5 or SDXL model that the adapter was made for."),
                sockets.IPAdapter.Input("adapter", tooltip="From Load IP-Adapter."),
                io.MultiType.Input("clip_vision", types=[io.ClipVision, io.ClipVisionOutput], tooltip="The image encoder that the adapter "
                    "was made with (ViT-H for most, ViT-bigG for some of SDXL), or its output for the images: a CLIP_VISION_OUTPUT, for "
                    "base adapters."),
                number("weight", 1.0, -5.0, 5.0, "Strength (lambda). Typical: 0.4–0.8 beside a prompt. 0 = off, 1 = as trained.",
                    step=0.05),
                *channel.percent_range("the image"),
                choice("combine", COMBINATIONS, "Several images: 'concat' all in one attention, 'add' the sum of an attention for each "
                    "(stronger with each image), 'average' one image of their mean features, 'batch' image i for image i. The same for a "
                    "single image."),
                *advanced(
                    text("layer_weights", "", "Factors of single layers as NAME:WEIGHT, later ones win: 'all:0, output1:1' for style on "
                        "SDXL. Names: all, input, middle, output, input4, output3-5, input4.1 (its second transformer), 1/2 (at most half "
                        "the latent's side). Empty = 1 everywhere.", multiline=True),
                    choice("crop", ["center", "none"], "How the encoder gets an image that is not square: its middle, or squeezed."),
                ),
                io.Image.Input("image", optional=True, tooltip="The image, or a batch of several. Not with a CLIP_VISION_OUTPUT."),
                io.Mask.Input("mask", optional=True, tooltip="Where the image acts, 1 = fully. Not connected: everywhere."),
                sockets.GuidanceSchedule.Input("schedule", optional=True,
                    tooltip="Multiplies the weight while sampling. Not connected: the weight is constant."),
                io.Conditioning.Input("conditioning", optional=True, tooltip="Connected: the image acts on this conditioning alone, and "
                    "the outputs conditioning and null carry it. Not connected: it acts on all positive conditionings of the run."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model; the conditionings below need it too."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The conditioning with the image, for a Guidance Channel."),
                io.Conditioning.Output(display_name="null", tooltip="The same with an empty image: that channel's null, or a negative."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, adapter, clip_vision, weight, start_percent, end_percent, combine, layer_weights, crop,
        image=None, mask=None, schedule=None, conditioning=None,
    ) -> io.NodeOutput:  # fmt: skip
        prompt = ip_adapter.prompt_of(adapter, clip_vision, image, combine, crop == "center")
        settings = dict(weight=weight, schedules=channel.schedules_of(schedule, start_percent, end_percent), mask=mask)
        patch = ip_adapter.patch_for(model, adapter, prompt, layer_weights, only_marked=conditioning is not None, **settings)
        if conditioning is None:
            silent = ExecutionBlocker("IP-Adapter Patch: connect a conditioning to get one that sees the image.")
            return io.NodeOutput(patch.install(model), silent, silent)
        return io.NodeOutput(patch.install(model), patch.marked(conditioning, True), patch.marked(conditioning, False))


NODES = [IPAdapterLoader, IPAdapterPatch]
