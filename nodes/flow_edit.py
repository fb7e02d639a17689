"""FlowEdit: an edit without inversion, straight from image to image."""

import comfy.samplers
from comfy_api.latest import io

from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion.flow_edit import FlowEdit
from .host.sampling import TwoPrompts


class FlowEditLatentSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FlowEditLatentSampler",
            display_name="FlowEdit Sampler",
            category="controlled diffusion/inversion",
            description="Edits an image without inverting it: at every step both prompts see the image under the same fresh noise, and the "
            "edit moves by what they disagree about.",
            search_aliases=[
                "flowedit",
                "flowedit: inversion-free text-based editing using pre-trained flow models",
                "inversion-free editing",
                "real image editing",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A flow model (SD3, Flux, ...), for which the paper is; eps and v models work too."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("positive", tooltip="What it should show. The same words as the source but for the edit work best."),
                io.Conditioning.Input("negative", tooltip="Used where a cfg is not 1; usually an empty prompt."),
                io.MultiType.Input(
                    "image", types=[io.Latent, io.Image], tooltip="The images to edit: a LATENT, or an IMAGE with the vae connected."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noises. Every image of a batch gets the same.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole schedule, of which n_max are made (T). Usual 28 to 50; 50 for SD3 and 28 for Flux in the paper.",
                ),
                io.Float.Input(
                    "source_cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale under the source; 1 switches guidance off. Usual 1.5 to 3.5. Models that take their guidance as an "
                    "input (Flux): 1 here, and the guidance in the conditionings.",
                ),
                io.Float.Input(
                    "cfg",
                    default=13.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale under the target; 1 switches guidance off. Higher edits more. 13.5 for SD3 in the paper, usual 5 to 15.",
                ),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The host's schedulers."),
                io.Int.Input(
                    "n_max",
                    default=33,
                    min=0,
                    max=1000,
                    tooltip="Steps that are made: the noisiest steps - n_max are left out. Fewer keeps more of the image, 0 gives it back. 33 of "
                    "50 for SD3, 24 of 28 for Flux in the paper.",
                ),
                io.Int.Input(
                    "n_min",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="How many of the last steps are plain sampling under the target instead, which may change style and texture. Usual 0.",
                ),
                io.Int.Input(
                    "n_avg",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Noises at each step whose directions are averaged; more are steadier and as many times the work. Usual 1 to 4.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = may change; elsewhere the image stays exactly. Not connected: the mask that the latent carries, if any.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The edit.")],
        )

    @classmethod
    def execute(
        cls, model, source, positive, negative, image, seed, steps, source_cfg, cfg, scheduler, n_max, n_min, n_avg, mask=None, vae=None
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source, "positive": positive, "negative": negative})
        edit = FlowEdit(model, vae, image, mask, soft=False)
        guider = TwoPrompts(model, source, positive, negative, cfg)
        sigmas = noise_levels.levels(model, scheduler, steps, 0.0)
        return io.NodeOutput(edit.run(guider, sigmas, source_cfg, n_max=n_max, n_min=n_min, n_avg=n_avg, seed=seed))


NODES = [FlowEditLatentSampler]
