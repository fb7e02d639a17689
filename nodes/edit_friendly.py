"""Edit-friendly inversion: the noise maps with which the stochastic sampler makes this image."""

from comfy_api.latest import io

from ..inversion.edit_friendly import EditFriendly
from .host import noise_levels
from .host.inversion import invert
from .host.prompts import source_of
from .inputs.inverter import inverter_inputs, inverter_outputs
from .inputs.widgets import cfg_input, number, schema, seed


class EditFriendlyInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "EditFriendlyInverter", "Edit-Friendly Inverter", "inversion",
            [
                "edit friendly ddpm inversion", "ddpm inversion", "an edit friendly ddpm noise space: inversion and manipulations",
                "noise maps", "euler ancestral inversion",
            ],
            "Finds the noise that stochastic sampling has to add at every step to make this image. With the same prompt and cfg the "
            "reconstruction is exact; another prompt keeps the layout.",
            inverter_inputs(
                number("skip", 0.36, 0.0, 0.99, "Share of the steps to leave out, the noisiest first. Typical: 0.2–0.5 (paper: 0.36). "
                    "0 = none, most freedom to edit; more keeps more of the image."),
                cfg_input(1.0, "Guidance scale of the inversion; the reconstruction is exact at the same. Typical: 1–3.5. 1 = off."),
                seed("Seed of the noisy images from which the noise maps are found. Every image of a batch gets the same."),
                steps_tip="Typical: 20–100; the reconstruction is exact at any number.",
                negative="Needed where cfg is not 1; usually an empty prompt.",
            ),
            inverter_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, image, steps, scheduler, end_percent, skip, cfg, seed, negative=None, vae=None, clip=None) -> io.NodeOutput:
        source, text = source_of(clip, source)
        sampling = model.get_model_object("model_sampling")
        method = EditFriendly(seed, noise_levels.is_flow(sampling), noise_levels.noise_deviation(sampling))
        sigmas = noise_levels.skip_steps(invert.levels(model, scheduler, steps, end_percent, source=source, negative=negative), skip)
        found = invert.invert(model, vae, image, source, method, sigmas, negative=negative, cfg=cfg)
        return io.NodeOutput(*invert.outputs(model, found, text))


NODES = [EditFriendlyInverter]
