"""DiffEdit: a mask found from two prompts, and an edit that changes nothing outside it."""

from dataclasses import fields

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..guidance.diffedit import AGGREGATIONS, AUTO, MEASURES, NORMALIZATIONS, RULES, THRESHOLDS, Cut, probe_percents
from ..inversion.ddim import DDIM
from .host.conditionings import check_conditionings
from .host.guidance import sdedit
from .host.guidance.diffedit import DiffEdit, MaskSettings, MaskTarget
from .host.sampling import TwoPrompts
from .inputs.widgets import (
    advanced,
    cfg_input,
    choice,
    image_input,
    number,
    scheduler_input,
    schema,
    seed,
    share,
    steps_input,
    switch,
    whole,
)

_ALIASES = ["diffedit", "automatic mask", "semantic image editing with mask guidance", "prompt difference mask", "masked edit", "inpaint"]


def _radius(name: str, tooltip: str, low: float = 0.0):
    told = f"{tooltip} As a share of the image's shorter side. 0 = off."
    return number(name, getattr(Cut, name), low, 0.5, told, 0.005, advanced=name in ("open", "blur"))


_MASK_CFG = "Guidance scale of both predictions. 1 = half the work, the same mask. More only for nodes that change guidance itself."
_LEVELS = "Noise levels to compare at, spread evenly from start_percent to end_percent; 1 takes the middle. Typical: 1–5."
_START = "Percent of the sampling of the noisiest level; 0 is pure noise. Typical: 0.3–0.5."
_END = "Percent of the sampling of the level with least noise; 1 is the clean image. Typical: 0.5–0.7; 0.5 alone in the paper."
_MEASURE = "Compares the denoised predictions, or the predicted noise, which weights low-noise timesteps more. The same with one level."
_AGGREGATION = "Over the maps: mean of the differences (paper), their median, or size of the mean difference, in which random ones cancel."
_REFINE = "Also compares the decoded predictions, for a mask with the image's edges. Two decodings a level. No effect without the vae."
_NORMALIZATION = "Heat that counts as 1: the peak (99th percentile), or clamp_ratio times the mean (paper; too large for small things)."
_CLAMP = "With normalization 'mean': how many times the mean counts as 1. 3 in the paper; higher gives smaller masks."
_KIND = "'share': cut at a share of the normalized heat. 'quantile': keep the hottest 1 - threshold. 'otsu': Otsu's method, no threshold."
_THRESHOLD = "Where to cut; lower gives larger masks. Typical: 0.25–0.5 (0.8–0.95 as a quantile); 0.5 in the paper."
_ENCODE = "Percent of the noise process up to which to encode; higher changes more. 0 returns the image. Typical: 0.5–0.8. Paper: 0.5."
_RULE = "Outside the mask. 'trajectory': every level of the encoding (paper). 'clean mix': the image as the prediction, needs one level."


class DiffEditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DiffEditMask", "DiffEdit Mask", "guidance", [*_ALIASES, "mask from text"],
            "Finds where an image has to change so that another prompt fits it: noises the image, asks the model under both prompts, and "
            "masks where the answers differ. For DiffEdit Sampler, or for any KSampler with the latent.",
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("target", tooltip="What it should show. The same words as the source but for the edit work best."),
                io.Conditioning.Input("negative", tooltip="Used where cfg is not 1; usually an empty prompt."),
                image_input("The image to edit"),
                seed("Seed of all noises of the maps."),
                cfg_input(1.0, _MASK_CFG, advanced=True),
                whole("maps", MaskSettings.maps, 1, 100, "Noises at each level (n); more give a steadier mask. Typical: 4–10. Paper: 10."),
                whole("levels", 3, 1, 20, _LEVELS),
                share("start_percent", 0.3, _START),
                share("end_percent", 0.5, _END),
                *advanced(
                    choice("measure", MEASURES, _MEASURE),
                    choice("aggregation", AGGREGATIONS, _AGGREGATION),
                    switch("refine", MaskSettings.refine, _REFINE),
                    choice("normalization", NORMALIZATIONS, _NORMALIZATION),
                    number("clamp_ratio", Cut.clamp_ratio, 0.01, 100.0, _CLAMP, 0.1),
                ),
                choice("threshold_kind", THRESHOLDS, _KIND),
                share("threshold", Cut.threshold, _THRESHOLD),
                switch("soft", Cut.soft, "Off: 0 or 1. On: rises from 0 at half the cut to 1 at 1.5 times the cut.", advanced=True),
                _radius("open", "Removes specks narrower than about twice this."),
                _radius("close", "Fills gaps and holes narrower than about twice this. Typical: 0.01–0.1. -1 = auto: 1.5 latent cells.", low=AUTO),
                _radius("dilate", "Grows the mask by this much, or shrinks it where negative. Typical: 0–0.05.", low=-0.5),
                _radius("blur", "Blurs the mask's edge over this much. Typical: 0–0.05."),
                io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE, for refine, and to show the heat over the image."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 = differs, at the size of the image; one for each image or video."),
                io.Image.Output(display_name="heat", tooltip="The heat over the image, and the mask's outline."),
                io.Latent.Output(display_name="latent", tooltip="The image's latent with the mask set: a KSampler changes only the mask."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, target, negative, image, cfg, start_percent, end_percent, levels, vae=None, **options) -> io.NodeOutput:
        check_conditionings(model, {"source": source, "target": target, "negative": negative})
        compared = {f.name: options.pop(f.name) for f in fields(MaskSettings) if f.name in options}
        settings = MaskSettings(probe_percents(start_percent, end_percent, levels), **compared)
        task = MaskTarget(model, vae, image)
        found = task.heat(TwoPrompts(model, source, target, negative, cfg), settings)
        mask, heat = Cut(**options).mask(found, task.cell)
        return io.NodeOutput(mask, task.shown(mask, heat), task.latent_with(mask))


class DiffEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DiffEditSampler", "DiffEdit Sampler", "guidance", [*_ALIASES, "ddim inversion edit", "masked ddim"],
            "Edits an image within a mask: encodes it to noise with DDIM and denoises it under the new prompt, so that the edit keeps the "
            "image's own structure. What the mask leaves out stays exactly as it was.",
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("positive", tooltip="What the image should show: the target."),
                io.Conditioning.Input("negative", tooltip="What it should not show; usually an empty prompt. Not used where cfg is 1."),
                image_input("The image to edit"),
                steps_input(20, "Steps of the encoding, and again of the denoising. Typical: 20–50."),
                cfg_input(4.0, "Guidance scale of the denoising; the encoding has none. 1 = no guidance."),
                scheduler_input(),
                share("encode_ratio", 0.8, _ENCODE),
                choice("rule", RULES, _RULE),
                switch("soft", False, "Off: all latent cells that the mask, cut at 0.5, touches may change. On: values from 0 to 1 blend."),
                io.Conditioning.Input("source", optional=True, tooltip="What the image shows now. Not connected: the negative (paper)."),
                io.Mask.Input("mask", optional=True, tooltip="1 = may change. Not connected: the latent's own mask, or everything."),
                io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE, and for the image output."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Image.Output(display_name="image", tooltip="The result; outside the mask the image's exact pixels. Needs the vae."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, image, steps, cfg, scheduler, encode_ratio, rule, soft, source=None, mask=None, vae=None
    ) -> io.NodeOutput:
        source = negative if source is None else source
        check_conditionings(model, {"positive": positive, "negative": negative, "source": source})
        edit = DiffEdit(model, vae, image, mask, soft)
        guider = TwoPrompts(model, source, positive, negative, cfg)
        samples = edit.run(guider, sdedit.sigmas(model, encode_ratio, "percent", "VP", steps, scheduler), rule, DDIM().encode)
        shown = ExecutionBlocker("DiffEdit Sampler: connect a vae to get an image.") if vae is None else edit.task.image(samples)
        return io.NodeOutput(edit.task.latent(samples), shown)


NODES = [DiffEditMask, DiffEditSampler]
