"""FlowEdit: an edit without inversion, straight from image to image."""

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
    optional,
    schema,
    seed,
    share,
    whole,
)


class FlowEditLatentSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "FlowEditLatentSampler", "FlowEdit Sampler", "inversion",
            [
                "flowedit", "flowedit: inversion-free text-based editing using pre-trained flow models", "inversion-free editing",
                "real image editing",
            ],
            "Edits an image without inverting it: at every step both prompts see the image under the same fresh noise, and the edit moves "
            "by the difference of their predictions.",
            inputs=[
                io.Model.Input("model", tooltip="A flow model (SD3, Flux, ...), as in the paper; eps and v models work too."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("positive", tooltip="What it should show. The source's words with little changed work best."),
                io.Conditioning.Input("negative", tooltip="Used where a cfg is not 1; usually an empty prompt."),
                image_input("The images to edit"),
                seed("Seed of the noises. Every image of a batch gets the same."),
                auto_whole("steps", 1, 1000, "Steps of the whole schedule (T); the share n_max of them is made. Typical: 20–50."),
                auto_cfg("Guidance scale under the source. Typical: 1–3.5. 1 = off, as Flux needs it.", "source_cfg"),
                auto_cfg("Guidance scale under the target; higher edits more. Typical: 5–15. 1 = off, as Flux needs it."),
                auto_scheduler(),
                auto_number("n_max", 0.0, 1.0, "Share of the steps that are made, those with least noise. Less keeps more of the image; 0 "
                    "returns it. Typical: 0.5–0.9."),
                *advanced(
                    share("n_min", 0.0, "Share of the steps, the last ones, that only sample the target: new style and texture. Typical: 0."),
                    whole("n_avg", 1, 1, 64, "Noises a step that are averaged; more are steadier and cost as many times more. Typical: 1–4."),
                ),
                fit_input("image"),
                *optional(
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
        cls, model, source, positive, negative, image, steps, source_cfg, cfg, scheduler, mask=None, vae=None, **knobs
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source, "positive": positive, "negative": negative})
        edit = FlowEdit(model, vae, image, mask, soft=False)
        guider = TwoPrompts(model, source, positive, negative, cfg)
        samples = edit.run(guider, noise_levels.levels(model, scheduler, steps, 0.0), source_cfg, **knobs)
        return io.NodeOutput(edit.task.latent(samples), image_output("FlowEdit Sampler", vae, lambda: edit.task.image(samples)))


NODES = [FlowEditLatentSampler]
