"""The way back from an inversion: reconstruct the image, or edit it."""

from comfy_api.latest import io

from .host.conditionings import check_conditionings
from .host.inversion.replay import BRANCHES, Replay, mask_for
from .inputs import sockets


class InversionSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InversionSampler",
            display_name="Inversion Sampler",
            category="controlled diffusion/inversion",
            description="Walks an inversion back to an image, with the steps and the method by which it was made. With another prompt, the "
            "image is edited; with none, it is reconstructed.",
            search_aliases=["replay inversion", "real image editing", "direct inversion", "pnp inversion", "reconstruct"],
            inputs=[
                io.Model.Input("model", tooltip="The model of the inversion; LoRA, ControlNet and attention patches may differ."),
                sockets.Inversion.Input("inversion", tooltip="From any inverter, or from Load Inversion."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the way back; 1 switches guidance off. A reconstruction wants what the inverter was given.",
                ),
                io.Combo.Input(
                    "branches",
                    options=list(BRANCHES),
                    tooltip="'edit': the edit alone. 'source and edit': both, the source first, in one batch so that attention control can "
                    "read it. 'direct': as that, and the source stays exactly on the inversion's path (direct inversion).",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="What the image should become; of several images one for all, or a row for each. Not connected: the source, a "
                    "reconstruction.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Needed where cfg is not 1, except for inversions that bring their own (null-text, negative-prompt).",
                ),
                io.Mask.Input("mask", optional=True, tooltip="1 = may change. Elsewhere the image stays on the inversion's path."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edit; with two branches the source first, then the edit."),
            ],
        )

    @classmethod
    def execute(cls, model, inversion, cfg, branches, positive=None, negative=None, mask=None) -> io.NodeOutput:
        positive = inversion.source if positive is None else positive
        negative = inversion.null if negative is None else negative
        check_conditionings(model, {"positive": positive} | ({} if negative is None else {"negative": negative}))
        replay = Replay(inversion, branches, None if mask is None else mask_for(mask, inversion))
        return io.NodeOutput({"samples": replay.run(model, positive, negative, cfg)})


NODES = [InversionSampler]
