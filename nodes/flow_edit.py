"""FlowEdit and FlowAlign: edits without inversion, straight from image to image."""

from comfy_api.latest import io

from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion.flow_edit import FlowEdit
from .host.sampling import TwoPrompts
from .inputs.fit import fit_input, image_output
from .inputs.widgets import (
    advanced,
    auto_cfg,
    auto_number,
    auto_scheduler,
    auto_whole,
    image_input,
    number,
    only_with,
    optional,
    schema,
    seed,
    share,
    switch,
    whole,
)

_FLOW_EDIT, _FLOW_ALIGN = "FlowEdit", "FlowAlign"
_METHOD = "'FlowEdit': guided away from the negative. 'FlowAlign': away from the source, which keeps more of the image and needs no negative."
_CFG = "Guidance scale under the target; higher edits more. Typical: 5–15. 1 = off."
_ZETA = "Pull toward the source, at every step; more keeps more of the image. 0 = off. Paper: 0.01."


def _method_input():
    """How the edit is guided, with each method's own settings."""
    flow_edit = [
        auto_cfg("Guidance scale under the source. Typical: 1–3.5. 1 = off.", "source_cfg"),
        auto_cfg(_CFG),
    ]
    flow_align = [auto_cfg(_CFG), number("zeta", 0.01, 0.0, 1.0, _ZETA, 0.005)]
    options = [io.DynamicCombo.Option(_FLOW_EDIT, flow_edit), io.DynamicCombo.Option(_FLOW_ALIGN, flow_align)]
    return io.DynamicCombo.Input("method", options=options, tooltip=_METHOD)


class FlowEditLatentSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "FlowEditLatentSampler", "FlowEdit Sampler", "inversion",
            [
                "flowedit", "flowalign", "flowedit: inversion-free text-based editing using pre-trained flow models", "inversion-free editing",
                "real image editing",
            ],
            "Edits an image without inverting it: at every step both prompts see the image under the same fresh noise, and the edit moves "
            "by the difference of their predictions.",
            inputs=[
                io.Model.Input("model", tooltip="A flow model (SD3, Flux, ...), as in the papers; eps and v models work too."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("positive", tooltip="What it should show. The source's words with little changed work best."),
                image_input("The images to edit"),
                _method_input(),
                seed("Seed of the noises. Every image of a batch gets the same."),
                auto_whole("steps", 1, 1000, "Steps of the whole schedule (T); the share n_max of them is made. Typical: 20–50."),
                auto_scheduler(),
                auto_number("n_max", 0.0, 1.0, "Share of the steps that are made, those with least noise. Less keeps more of the image; 0 "
                    "returns it. Typical: 0.5–1."),
                *advanced(
                    share("n_min", 0.0, "Share of the steps, the last ones, that only sample the target: new style and texture. Typical: 0."),
                    whole("n_avg", 1, 1, 64, "Noises a step that are averaged; more are steadier and cost as many times more. Typical: 1–4."),
                    switch("soft", False, "Off: all latent cells that the mask, cut at 0.5, touches may change. On: the mask is each step's share."),
                ),
                fit_input("image"),
                *optional(
                    only_with(io.Conditioning.Input("negative", tooltip="FlowEdit's, where a cfg is not 1; usually an empty prompt."),
                        "method", _FLOW_EDIT),
                    io.Mask.Input("mask", tooltip="1 = may change; elsewhere the image stays exact. Not connected: the latent's own mask."),
                    io.Vae.Input("vae", tooltip="Needed for an IMAGE, and for the image output."),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edit."),
                io.Image.Output(display_name="image", tooltip="The edit; outside the mask the image's exact pixels. Needs the vae."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, source, positive, image, method, steps, scheduler, soft, negative=None, mask=None, vae=None, **knobs
    ) -> io.NodeOutput:
        scales = {name: method[name] for name in ("source_cfg", "cfg", "zeta") if name in method}
        if method["method"] == _FLOW_ALIGN:
            negative, scales = source, {"source_cfg": 1.0, **scales}
        elif negative is None and not scales["source_cfg"] == scales["cfg"] == 1.0:
            raise ValueError(
                f"source_cfg is {scales['source_cfg']:g} and cfg {scales['cfg']:g}, which needs a negative conditioning. Connect one (its text may "
                "be empty), or set both to 1."
            )
        given = {"source": source, "positive": positive, "negative": source if negative is None else negative}
        check_conditionings(model, given)
        edit = FlowEdit(model, vae, image, mask, soft)
        guider = TwoPrompts(model, *given.values(), scales.pop("cfg"))
        samples = edit.run(guider, noise_levels.levels(model, scheduler, steps, 0.0), **scales, **knobs)
        return io.NodeOutput(edit.task.latent(samples), image_output("FlowEdit Sampler", vae, lambda: edit.task.image(samples)))


NODES = [FlowEditLatentSampler]
