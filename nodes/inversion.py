"""Samples from an inversion: reconstructs the image, or edits it."""

from comfy_api.latest import io

from .host.attention.shared_values import with_shared_values
from .host.conditionings import check_conditionings
from .host.inversion.replay import BRANCHES, Replay, mask_for
from .host.progress import keep
from .inputs import sockets
from .inputs.families import AUTO_NUMBER
from .inputs.fit import image_output
from .inputs.widgets import FloatOrAuto, advanced, choice, only_with, optional, schema, share, switch

_ALIGN = (
    "On: a step evaluates the model as far off its state as the inversion did; at cfg 1 the source then comes back exactly, and the cost is "
    "the same. Off: at its state. For DDIM Inverter (order 1) and Negative-Prompt Inverter."
)
_VALUES = (
    "Percent of the sampling up to which the edit gathers the source's values in self-attention, or the image's in joint attention: keeps more of the "
    "image at the same cost. Needs two branches. 0 = off. Paper: 0.3, with align."
)


class InversionSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InversionSampler", "Inversion Sampler", "inversion",
            ["replay inversion", "real image editing", "direct inversion", "pnp inversion", "direct alignment", "directedit",
             "value sharing", "reconstruct"],
            "Samples from an inversion, with the steps and the method by which it was made. With another prompt, the image is edited; with "
            "none, it is reconstructed.",
            inputs=[
                io.Model.Input("model", tooltip="The model of the inversion; LoRA, ControlNet and attention patches may differ."),
                sockets.Inversion.Input("inversion", tooltip="From any inverter, or from Load Inversion."),
                choice("branches", BRANCHES, "'edit': the edit alone. 'source and edit': both in one batch, the source first, so that "
                    "attention control can read it. 'direct': the same, and the source stays exactly on the inversion's path (direct "
                    "inversion)."),
                FloatOrAuto("cfg", 0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale. Typical for edits: 3–7.5. 1 = off. "
                    "-1 = as the inversion was made, which gives the image back."),
                *advanced(switch("align", False, _ALIGN), only_with(share("value_end", 0.0, _VALUES), "branches", *BRANCHES[1:])),
                *optional(
                    io.Conditioning.Input("positive", tooltip="The edit's prompt: one for all, or one a row. Not connected: the source."),
                    io.Conditioning.Input("negative", tooltip="Needed where cfg is not 1, but not with null-text and negative-prompt."),
                    io.Mask.Input("mask", tooltip="1 = may change. Elsewhere the image stays on the inversion's path."),
                    io.Vae.Input("vae", tooltip="Needed for the image output."),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edit; with two branches the source first, then the edit."),
                io.Image.Output(display_name="image", tooltip="The same decoded, at the size of the image that was inverted. Needs the vae."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, inversion, cfg, branches, align=False, value_end=0.0, positive=None, negative=None, mask=None, vae=None) -> io.NodeOutput:
        if cfg == AUTO_NUMBER:
            cfg = inversion.cfg
            keep(f"cfg {cfg:g}, as the inversion was made")
        positive = inversion.source if positive is None else positive
        if negative is not None and inversion.null is not None:
            keep("the connected negative is used instead of the inversion's own")
        negative = inversion.null if negative is None else negative
        check_conditionings(model, {"positive": positive} | ({} if negative is None else {"negative": negative}))
        replay = Replay(inversion, branches, None if mask is None else mask_for(mask, inversion), align, value_end, with_shared_values)
        samples = replay.run(model, positive, negative, cfg)
        return io.NodeOutput({"samples": samples}, image_output("Inversion Sampler", vae, lambda: inversion.decoded(vae, samples)))


NODES = [InversionSampler]
