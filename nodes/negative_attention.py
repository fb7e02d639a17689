"""Normalized Attention Guidance: a negative prompt at cfg 1."""

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..attention.negative_attention import Strength
from .host.attention import negative_attention
from .inputs import channel, sockets
from .inputs.widgets import number, schema, share

_OWN = Strength()


class NegativeAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "NegativeAttention", "Negative Attention", "guidance",
            ["nag", "normalized attention guidance", "negative prompt at cfg 1", "negative guidance", "universal negative guidance", "turbo negative",
             "distilled model negative"],
            "A negative prompt inside the attention (Normalized Attention Guidance). It acts at cfg 1 too, as distilled and turbo models need it, "
            "and costs less than a negative in the sampler. Use it alone or beside cfg.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or Flux, Chroma, SD3, Qwen-Image, Z-Image, Lumina 2, AuraFlow, "
                    "HunyuanImage, HunyuanVideo, Wan, Cosmos-Predict2, LTX-Video or Kandinsky 5."),
                io.Conditioning.Input("negative", tooltip="What should not be there, from CLIP Text Encode."),
                number("scale", _OWN.scale, 0.0, 30.0, "How far from the negative (phi). Typical: 3–11. 1 = off.", 0.1),
                number("tau", _OWN.tau, 1.0, 10.0, "Limit: a token's attention grows at most by this factor. Typical: 1.5–2.5."),
                share("alpha", _OWN.alpha, "Share of the guided attention. Typical: 0.25–0.5. 0 = off."),
                *channel.percent_range("the negative"),
                io.Mask.Input("mask", optional=True, tooltip="Where the negative acts, 1 = fully. Not connected: everywhere."),
                sockets.GuidanceSchedule.Input("schedule", optional=True,
                    tooltip="Multiplies scale - 1 while sampling. Not connected: the scale is constant."),
                io.Conditioning.Input("conditioning", optional=True, tooltip="Connected: the negative acts on this conditioning alone, and the output "
                    "conditioning carries it. Not connected: it acts on all positive conditionings of the run."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler or guider."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The conditioning that the negative acts on, for the sampler or a "
                    "Guidance Channel."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, negative, scale, tau, alpha, start_percent, end_percent, mask=None, schedule=None, conditioning=None
    ) -> io.NodeOutput:
        settings = dict(schedules=channel.schedules_of(schedule, start_percent, end_percent), mask=mask)
        patched, given = negative_attention.prepare(model, negative, Strength(scale, tau, alpha), conditioning, **settings)
        silent = ExecutionBlocker("Negative Attention: connect a conditioning to get one that the negative acts on.")
        return io.NodeOutput(patched, silent if given is None else given)


NODES = [NegativeAttention]
