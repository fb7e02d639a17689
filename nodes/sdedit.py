"""SDEditSampler: from a painting, a collage or a photograph to an image, by noising it and sampling back."""

import comfy.samplers
from comfy_api.latest import io

from ..guidance.sdedit import PROCESSES, UNITS
from .host.conditionings import check_conditionings
from .host.guidance import sdedit
from .host.progress import keep
from .inputs.fit import fit_input, image_output
from .inputs.widgets import advanced, auto_cfg, auto_scheduler, choice, image_input, number, schema, seed, steps_input, whole

_STRENGTH = "How much noise is added (t0): 0 returns the guide, 1 is pure noise, in percent. Typical: 0.3–0.6 (faithful to realistic)."
_UNIT = "The unit of strength: a share of the noise process (0 to 1), a sigma, or a signal to noise ratio."
_PROCESS = "VP: the model's own noise schedule. VE: variance exploding, equal ratios of sigma. Flow models always use their own."
_REPEATS = "How often the result is noised and denoised again (K). Typical: 1, 2–3 for rough strokes."


class SDEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SDEditSampler", "SDEdit Sampler", "guidance",
            ["img2img", "stroke to image", "sketch to image", "denoise strength", "image editing with SDEs", "masked sdedit", "inpaint"],
            "Noises a guide to a chosen level and denoises it with the prompt (SDEdit). Strength is a true noise level: the same for every "
            "scheduler and step count, unlike a KSampler's denoise. A mask limits the edit; what it leaves out stays exactly as it was.",
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("positive", tooltip="What the image should become."),
                io.Conditioning.Input("negative", tooltip="What it should not be; usually an empty prompt."),
                image_input("The painting to start from", "guide"),
                seed("Seed of the noise; repeat k uses seed + k."),
                steps_input(20, "Steps to run from the strength down to the clean image."),
                auto_cfg("Guidance scale. 1 = no guidance."),
                choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, "ComfyUI's samplers; ancestral ones follow the paper."),
                auto_scheduler("ComfyUI's schedulers; not used by process VE."),
                number("strength", 0.5, 0.0, 1000.0, _STRENGTH, round=0.0001),
                *advanced(
                    choice("strength_unit", UNITS, _UNIT),
                    choice("process", PROCESSES, _PROCESS),
                    whole("repeats", 1, 1, 100, _REPEATS),
                ),
                fit_input("image"),
                io.Vae.Input("vae", optional=True, tooltip="Needed for IMAGE inputs and for the image output."),
                io.MultiType.Input("original", types=[io.Latent, io.Image], optional=True,
                    tooltip="What shows outside the mask. Not connected: the guide."),
                io.Mask.Input("mask", optional=True, tooltip="1 = may change. Not connected: the guide latent's own mask, or everything."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Image.Output(display_name="image", tooltip="The result; outside the mask the original's exact pixels. Needs the vae."),
                io.Latent.Output(display_name="noisy_start", tooltip="The noised guide from which the sampling started."),
                io.String.Output(display_name="report", tooltip="Start sigma, SNR, steps and repeats that were really run."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, guide, strength, strength_unit, process, steps, scheduler, repeats,
        vae=None, original=None, mask=None, **sampling,
    ) -> io.NodeOutput:  # fmt: skip
        check_conditionings(model, {"positive": positive, "negative": negative})
        task = sdedit.Task(model, vae, guide, guide if original is None else original, mask)
        keep("original is not used: there is no mask" if original is not None and task.mask is None else "")
        sigmas = sdedit.sigmas(model, strength, strength_unit, process, steps, scheduler)
        samples, start = task.sample(sigmas, positive, negative, repeats=repeats, **sampling)
        image = image_output("SDEdit Sampler", vae, lambda: task.image(samples))
        return io.NodeOutput(task.latent(samples), image, task.latent(start), sdedit.report(model, sigmas, process, repeats))


NODES = [SDEditSampler]
