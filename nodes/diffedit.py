"""DiffEdit: a mask found from two prompts, and an edit that changes nothing outside it."""

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..guidance.diffedit import AGGREGATIONS, MEASURES, NORMALISATIONS, RULES, THRESHOLDS, Cut, probe_percents
from ..inversion.ddim import DDIM
from .host.conditionings import check_conditionings
from .host.guidance import sdedit
from .host.guidance.diffedit import Edit, Question, Subject
from .host.sampling import TwoPrompts

_CATEGORY = "controlled diffusion/guidance"
_ALIASES = ["diffedit", "automatic mask", "semantic image editing with mask guidance", "prompt difference mask", "masked edit", "inpaint"]


def _image_input():
    return io.MultiType.Input(
        "image", types=[io.Latent, io.Image], tooltip="The image to edit: a LATENT, or an IMAGE with the vae connected."
    )


def _pixels(name: str, default: int, tooltip: str, low: int = 0):
    return io.Int.Input(
        name, default=default, min=low, max=256, advanced=name in ("open", "blur"), tooltip=f"{tooltip} In pixels; 0 = off."
    )


class DiffEditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiffEditMask",
            display_name="DiffEdit Mask",
            category=_CATEGORY,
            description="Finds where an image has to change so that another prompt fits it: noises the image, asks the model under both "
            "prompts, and masks where the answers differ. For DiffEdit Sampler, or for any KSampler with the latent.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("target", tooltip="What it should show. The same words as the source but for the edit work best."),
                io.Conditioning.Input("negative", tooltip="Used where cfg is not 1; usually an empty prompt."),
                _image_input(),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Seed of all noises of the maps."
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    advanced=True,
                    tooltip="Guidance scale of both predictions. It scales their difference and so leaves the mask as it is; 1 is half the work. "
                    "Raise it only for nodes that change guidance itself.",
                ),
                io.Int.Input(
                    "maps",
                    default=8,
                    min=1,
                    max=100,
                    tooltip="Noises at each level (n); more give a steadier mask. Usual 4 to 10; 10 in the paper.",
                ),
                io.Int.Input(
                    "levels",
                    default=3,
                    min=1,
                    max=20,
                    tooltip="Noise levels to compare at, spread evenly from start_percent to end_percent; 1 takes the middle. Usual 1 to 5.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Percent of the sampling of the noisiest level; 0 is pure noise. Usual 0.3 to 0.5.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Percent of the sampling of the cleanest level; 1 is the clean image. Usual 0.5 to 0.7; 0.5 alone in the paper.",
                ),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    advanced=True,
                    tooltip="What is compared: the denoised predictions, or the predicted noise (eps), which gives cleaner levels more weight. "
                    "The same with one level.",
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    advanced=True,
                    tooltip="Over the maps: the mean of the differences (paper), their median, or the size of the mean difference, "
                    "in which what each noise changes in another way cancels.",
                ),
                io.Boolean.Input(
                    "refine",
                    default=True,
                    advanced=True,
                    tooltip="With the vae connected, also compare the decoded predictions, so that the mask has the edges of the image and not the "
                    "latent's cells. Two decodings a level. Without the vae it has no effect.",
                ),
                io.Combo.Input(
                    "normalisation",
                    options=list(NORMALISATIONS),
                    advanced=True,
                    tooltip="What heat counts as 1: the peak (99th percentile), or clamp_ratio times the mean (paper), for which small things get masks "
                    "that are too large.",
                ),
                io.Float.Input(
                    "clamp_ratio",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="With normalisation 'mean': how many times the mean counts as 1. 3 in the paper; higher gives smaller masks.",
                ),
                io.Combo.Input(
                    "threshold_kind",
                    options=list(THRESHOLDS),
                    tooltip="'share': cut at a share of the normalised heat. 'quantile': keep the hottest 1 - threshold of the image. 'otsu': found "
                    "by Otsu's method; the threshold is not used.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where to cut; lower gives larger masks. Usual 0.25 to 0.5 (0.8 to 0.95 as a quantile); 0.5 in the paper.",
                ),
                io.Boolean.Input(
                    "soft",
                    default=False,
                    advanced=True,
                    tooltip="Off: 0 or 1. On: rises from 0 at half the cut to 1 at one and a half times the cut.",
                ),
                _pixels("open", 0, "Removes specks narrower than about twice this."),
                _pixels("close", 12, "Fills gaps and holes narrower than about twice this; usual 4 to 16."),
                _pixels("dilate", 0, "Grows the mask by this much, or shrinks it where negative; usual 0 to 8.", low=-256),
                _pixels("blur", 0, "Blurs the mask's edge over this much."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Needed for an IMAGE; with it, refine works and the heat is shown over the image."
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 = differs, at the size of the image; one for each image or video."),
                io.Image.Output(display_name="heat", tooltip="The heat over the image, and the mask's outline."),
                io.Latent.Output(
                    display_name="latent", tooltip="The image's latent with the mask set: a KSampler changes only the mask."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, source, target, negative, image, seed, cfg, maps, levels, start_percent, end_percent, measure, aggregation, refine, vae=None, **cut) -> io.NodeOutput:  # fmt: skip
        check_conditionings(model, {"source": source, "target": target, "negative": negative})
        subject = Subject(model, vae, image)
        asked = Question(probe_percents(start_percent, end_percent, levels), maps, measure, aggregation, seed, refine)
        found = subject.heat(TwoPrompts(model, source, target, negative, cfg), asked)
        mask, heat = Cut(kind=cut.pop("threshold_kind"), **cut).mask(found)
        return io.NodeOutput(mask, subject.shown(mask, heat), subject.latent_with(mask))


class DiffEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiffEditSampler",
            display_name="DiffEdit Sampler",
            category=_CATEGORY,
            description="Edits an image within a mask: encodes it to noise with DDIM and denoises it under the new prompt, so that the edit keeps "
            "the image's own structure. What the mask leaves out stays exactly as it was.",
            search_aliases=[*_ALIASES, "ddim inversion edit", "masked ddim"],
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("positive", tooltip="What the image should show: the target."),
                io.Conditioning.Input(
                    "negative", tooltip="What it should not show; usually an empty prompt. Not evaluated where cfg is 1."
                ),
                _image_input(),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Steps of the encoding, and again of the denoising. Usual 20 to 50."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the denoising; 1 switches guidance off. The encoding is always without guidance.",
                ),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The host's schedulers."),
                io.Float.Input(
                    "encode_ratio",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the image is encoded to noise, in percent of the noise process. 0 returns the image, 0.5 to 0.8 is usual (0.5 in "
                    "the paper); higher changes more.",
                ),
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    tooltip="Off the mask. 'trajectory': the encoding itself at every level (paper). 'clean mix': the image in the place of the predicted "
                    "clean image, which asks nothing of the encoding but its noisiest level.",
                ),
                io.Boolean.Input(
                    "soft",
                    default=False,
                    tooltip="Off: the mask is cut at 0.5, and every latent cell that it touches may change. On: values between 0 and 1 blend.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="What the image shows now, for the encoding. Not connected: the negative, as in the paper.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = may change. Not connected: the mask that the latent carries; without one, everything may change.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE, and for the image output."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result."),
                io.Image.Output(
                    display_name="image",
                    tooltip="The result as an image, with the exact pixels of the image outside the mask. Needs the vae.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, image, steps, cfg, scheduler, encode_ratio, rule, soft, source=None, mask=None, vae=None
    ) -> io.NodeOutput:
        source = negative if source is None else source
        check_conditionings(model, {"positive": positive, "negative": negative, "source": source})
        edit = Edit(model, vae, image, mask, soft)
        guider = TwoPrompts(model, source, positive, negative, cfg)
        samples = edit.run(guider, sdedit.sigmas(model, encode_ratio, "percent", "VP", steps, scheduler), rule, DDIM().encode)
        shown = ExecutionBlocker("DiffEdit Sampler: connect a vae to get an image.") if vae is None else edit.task.image(samples)
        return io.NodeOutput(edit.task.latent(samples), shown)


NODES = [DiffEditMask, DiffEditSampler]
