"""Edit-friendly inversion: the noise maps with which the stochastic sampler makes this image."""

from comfy_api.latest import io

from ..inversion.edit_friendly import EditFriendly
from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion import invert
from .inputs import inverter


class EditFriendlyInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EditFriendlyInverter",
            display_name="Edit-Friendly Inverter",
            category="controlled diffusion/inversion",
            description="Finds the noise that stochastic sampling has to add at every step to make this image. Replayed with the same prompt "
            "and cfg it gives the image back exactly; with another prompt it keeps the layout.",
            search_aliases=[
                "edit friendly ddpm inversion",
                "ddpm inversion",
                "an edit friendly ddpm noise space: inversion and manipulations",
                "noise maps",
                "euler ancestral inversion",
            ],
            inputs=[
                *inverter.inverter_inputs(steps_tip="usual 20 to 100; the image comes back exactly at any number"),
                io.Int.Input(
                    "skip",
                    default=18,
                    min=0,
                    max=999,
                    tooltip="How many of the noisiest steps to leave out: more keeps more of the image, 0 gives most freedom. Usual a quarter to "
                    "a half of the steps; 36 of 100 in the paper.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the inversion, under the source; 1 switches guidance off. Usual 1 to 3.5. A replay at this cfg "
                    "under the source is exact.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noisy images from which the noise maps are found. Every image of a batch gets the same.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where cfg is not 1; usually an empty prompt."),
                *inverter.inverter_extras(),
            ],
            outputs=inverter.inverter_outputs(),
        )

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, skip, cfg, seed, negative=None, vae=None
    ) -> io.NodeOutput:  # fmt: skip
        check_conditionings(model, {"source": source} | ({} if negative is None else {"negative": negative}))
        sampling = model.get_model_object("model_sampling")
        method = EditFriendly(seed, noise_levels.is_flow(sampling), noise_levels.noise_deviation(sampling))
        sigmas = noise_levels.skip_steps(noise_levels.levels(model, scheduler, steps, end_percent), skip)
        found = invert.invert(model, vae, image, source, method, sigmas, negative=negative, cfg=cfg)
        return io.NodeOutput(*invert.outputs(model, found))


NODES = [EditFriendlyInverter]
