"""DiffEdit: a mask found from two prompts, and an edit that changes nothing outside it."""

from comfy_api.latest import io

from ..guidance.diffedit import AUTO, RULES, Cut, probe_percents
from ..inversion.ddim import DDIM
from .host.conditionings import check_conditionings
from .host.guidance import sdedit
from .host.guidance.diffedit import Comparison, DiffEdit, MaskSettings, MaskTarget
from .host.inversion.flow_edit import EditPath
from .host.sampling import TwoPrompts
from .inputs.fit import fit_input, image_output
from .inputs.widgets import (
    advanced,
    auto_cfg,
    auto_scheduler,
    choice,
    image_input,
    number,
    schema,
    seed,
    share,
    steps_input,
    switch,
    whole,
)

_ALIASES = ["diffedit", "automatic mask", "semantic image editing with mask guidance", "prompt difference mask", "masked edit", "inpaint"]


def _radius(name: str, tooltip: str, low: float = 0.0):
    return number(name, getattr(Cut, name), low, 0.5, f"{tooltip} As a share of the image's shorter side. 0 = off.", 0.005)


_OURS, _PATH, _PAPER = "DiffEdit", "FlowEdit path", "DiffEdit (paper)"
_METHOD = (
    "'FlowEdit path': where a short edit moves the image; the closest masks of two prompts. 'DiffEdit': differences at several noise levels; "
    "for instructions, at 0.1 to 0.3. 'DiffEdit (paper)': one level; too large for small things."
)
_MAPS = "Noises at each level or step (n); more give a steadier mask. Typical: 4–10."
_PATH_STEPS = "Steps of the edit; a quarter of a usual sampling is enough. Typical: 5–10."
_LEVELS = "Noise levels to compare at, spread evenly from start_percent to end_percent; 1 takes the middle. Typical: 1–5."
_START = "Percent of the sampling of the noisiest level; 0 is pure noise. Typical: 0.3–0.5."
_END = "Percent of the sampling of the level with least noise; 1 is the clean image. Typical: 0.5–0.7."
_THRESHOLD = "Share of the heat where to cut; lower gives larger masks. Typical: 0.25–0.5. -1 = Otsu's method chooses for each image."
_REFINE = "Also compares the decoded predictions, for a mask with the image's edges. Two decodings a level, two for a path. No effect without the vae."
_CLAMP = "How many times the mean heat counts as 1. 3 in the paper; higher gives smaller masks."
_PAINTED = "A mask of yours. Where it is not empty it is the mask, after dilate and blur, and nothing is compared."
_ENCODE = "Percent of the noise process up to which to encode; higher changes more. 0 returns the image. Typical: 0.5–1. Paper: 0.5."
_RULE = "Outside the mask. 'trajectory': every level of the encoding (paper). 'clean mix': the image as the prediction, needs one level."


def _method_input():
    """How to find the heat, with each method's own settings."""
    ours = [
        whole("maps", 8, 1, 100, _MAPS),
        whole("levels", 3, 1, 20, _LEVELS),
        share("start_percent", 0.3, _START),
        share("end_percent", 0.5, _END),
        number("threshold", Cut.threshold, AUTO, 1.0, _THRESHOLD),
        switch("refine", True, _REFINE, advanced=True),
    ]
    path = [
        whole("steps", EditPath.steps, 1, 100, _PATH_STEPS),
        whole("maps", EditPath.maps, 1, 100, _MAPS),
        number("threshold", Cut.threshold, AUTO, 1.0, _THRESHOLD),
        switch("refine", True, _REFINE, advanced=True),
    ]
    paper = [
        whole("maps", 10, 1, 100, _MAPS),
        share("percent", 0.5, "Percent of the sampling to compare at. Paper: 0.5."),
        number("clamp_ratio", Cut.clamp_ratio, 0.01, 100.0, _CLAMP, 0.1),
        number("threshold", 0.5, AUTO, 1.0, _THRESHOLD.replace("Typical: 0.25–0.5.", "Paper: 0.5.")),
    ]
    options = [io.DynamicCombo.Option(*each) for each in ((_PATH, path), (_OURS, ours), (_PAPER, paper))]
    return io.DynamicCombo.Input("method", options=options, tooltip=_METHOD)


def _settings(method: dict, seed: int) -> tuple[Comparison, dict]:
    """(how to compare the prompts, how to normalize and cut the heat) of a method's inputs."""
    cut = {"threshold": method["threshold"]}
    if method["method"] == _PAPER:
        cut |= {"normalization": "mean", "clamp_ratio": method["clamp_ratio"]}
        return MaskSettings([method["percent"]], method["maps"], seed, refine=False), cut
    if method["method"] == _PATH:
        return EditPath(method["steps"], method["maps"], seed, method["refine"]), cut
    percents = probe_percents(method["start_percent"], method["end_percent"], method["levels"])
    return MaskSettings(percents, method["maps"], seed, method["refine"]), cut


class DiffEditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DiffEditMask", "DiffEdit Mask", "guidance", [*_ALIASES, "mask from text", "edit mask", "instruction mask", "relevance map"],
            "Finds where an image has to change so that another prompt or an instruction fits it: noises the image, asks the model under both, "
            "and masks where the answers differ. For DiffEdit Sampler and FlowEdit Sampler, or for any KSampler with the latent.",
            inputs=[
                io.Model.Input("model", tooltip="Any model: eps, v or flow."),
                io.Conditioning.Input("source", tooltip="What the image shows now. Of an instruction model: the image and no text."),
                io.Conditioning.Input("target", tooltip="What it should show, with little changed in the source's words. Or the image and an instruction."),
                image_input("The image to edit"),
                _method_input(),
                seed("Seed of all noises of the maps."),
                _radius("dilate", "Grows the mask by this much, or shrinks it where negative. Typical: 0–0.05.", low=-0.5),
                *advanced(
                    _radius("close", "Fills gaps and holes narrower than about twice this. Typical: 0.01–0.1. -1 = 1.5 latent cells, and every hole.", AUTO),
                    _radius("open", "Then removes specks narrower than about twice this. Typical: 0–0.03."),
                    _radius("blur", "Blurs the mask's edge over this much. Typical: 0–0.05."),
                    switch("soft", Cut.soft, "Off: 0 or 1. On: rises from 0 at half the threshold to 1 at 1.5 times it."),
                ),
                fit_input("mask", "heat"),
                io.Vae.Input("vae", optional=True, tooltip="Needed for an IMAGE, for refine, and to show the heat over the image."),
                io.Mask.Input("painted", optional=True, tooltip=_PAINTED),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 = differs, at the size of the image; one for each image or video."),
                io.Image.Output(display_name="heat", tooltip="The heat over the image, and the mask's outline."),
                io.Latent.Output(display_name="latent", tooltip="The image's latent with the mask set: a KSampler changes only the mask."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, target, image, method, seed, vae=None, painted=None, **shaping) -> io.NodeOutput:
        check_conditionings(model, {"source": source, "target": target})
        settings, cut = _settings(method, seed)
        task, cut = MaskTarget(model, vae, image, painted), Cut(**cut, **shaping)
        if task.is_painted:
            heat = task.painted(cut.soft)
            mask = cut.grown(heat, task.cell)
        else:
            mask, heat = cut.mask(task.heat(TwoPrompts(model, source, target, source, 1.0), settings), task.cell)
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
                auto_cfg("Guidance scale of the denoising; the encoding has none. 1 = no guidance."),
                auto_scheduler(),
                share("encode_ratio", 0.9, _ENCODE),
                *advanced(
                    choice("rule", RULES, _RULE),
                    switch("soft", False, "Off: all latent cells that the mask, cut at 0.5, touches may change. On: values from 0 to 1 blend."),
                ),
                fit_input("image"),
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
        shown = image_output("DiffEdit Sampler", vae, lambda: edit.task.image(samples))
        return io.NodeOutput(edit.task.latent(samples), shown)


NODES = [DiffEditMask, DiffEditSampler]
