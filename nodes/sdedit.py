"""SDEditSampler: from a painting, a collage or a photograph to an image, by noising it and sampling back."""

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..guidance.sdedit import PROCESSES, UNITS
from .host.conditionings import check_conditionings
from .host.guidance import sdedit


class SDEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        image = [io.Latent, io.Image]
        return io.Schema(
            node_id="SDEditSampler",
            display_name="SDEdit Sampler",
            category="controlled diffusion/guidance",
            description="Noises a guide to a chosen level and denoises it with the prompt (SDEdit). Strength is a true noise level: the "
            "same for every scheduler and step count, unlike a KSampler's denoise. A mask limits the edit; what it leaves "
            "out stays exactly as it was.",
            search_aliases=["img2img", "stroke to image", "denoise strength", "image editing with SDEs", "masked sdedit", "inpaint"],
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("positive", tooltip="What the image should become."),
                io.Conditioning.Input("negative", tooltip="What it should not be; usually an empty prompt."),
                io.MultiType.Input(
                    "guide", types=image, tooltip="The painting to start from: a LATENT, or an IMAGE with the vae connected."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise; repeat k uses seed + k.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps to run from the strength down to the clean image."),
                io.Float.Input(
                    "cfg", default=4.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale; 1 switches guidance off."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="The host's samplers; ancestral ones follow the paper.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The host's schedulers; not used by process VE."
                ),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="The noise level t0. In percent: 0 returns the guide, 0.3 to 0.6 is usual (faithful to realistic), 1 is pure noise.",
                ),
                io.Combo.Input(
                    "strength_unit",
                    options=list(UNITS),
                    tooltip="What strength is: a share of the noise process (0 to 1), a sigma, or a signal to noise ratio.",
                ),
                io.Combo.Input(
                    "process",
                    options=list(PROCESSES),
                    tooltip="VP: the model's own noise schedule. VE: variance exploding, equal ratios of sigma. Flow models always use their own.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="How often the result is noised and denoised again (K). 1 is usual, 2 to 3 for rough strokes.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed for IMAGE inputs and for the image output."),
                io.MultiType.Input(
                    "original", types=image, optional=True, tooltip="What shows outside the mask. Not connected: the guide."
                ),
                io.Mask.Input("mask", optional=True, tooltip="1 = may change. Not connected: everything may."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Image.Output(
                    display_name="image", tooltip="The result as an image, with exact pixels outside the mask. Needs the vae."
                ),
                io.Latent.Output(display_name="noisy_start", tooltip="The noised guide from which the sampling started."),
                io.String.Output(display_name="report", tooltip="Start sigma, SNR, steps and repeats that were really run."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        guide,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        strength,
        strength_unit,
        process,
        repeats,
        vae=None,
        original=None,
        mask=None,
    ) -> io.NodeOutput:
        check_conditionings(model, {"positive": positive, "negative": negative})
        task = sdedit.Task(model, vae, guide, guide if original is None else original, mask)
        sigmas = sdedit.sigmas(model, strength, strength_unit, process, steps, scheduler)
        samples, start = task.sample(sigmas, positive, negative, cfg, sampler_name, seed, repeats)
        image = ExecutionBlocker("SDEdit Sampler: connect a vae to get an image.") if vae is None else task.image(samples)
        return io.NodeOutput(task.latent(samples), image, task.latent(start), sdedit.report(model, sigmas, process, repeats))


NODES = [SDEditSampler]
