"""Regions by words: a LoRA and words, or a prompt, for each phrase of a prompt, where the model draws it."""

from comfy_api.latest import io, ui

from .host.attention import word_regions
from .inputs.widgets import advanced, auto_number, auto_whole, schema, share, text

_ALIASES = [
    "regional prompt", "regional lora", "lora per character", "two characters", "two loras", "freefuse", "auto mask", "attention couple",
    "region from words", "multi subject lora",
]  # fmt: skip


class WordRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        region = io.MultiType.Input("region", types=[io.Conditioning, io.Hooks], tooltip="What acts in the region of the first phrase, then of the second, "
            "...: a LoRA (HOOKS of Create Hook LoRA), or a prompt of its own. A prompt with a mask (Conditioning (Set Mask)) keeps it as its region.")  # fmt: skip
        return schema(
            "WordRegions", "Word Regions", "attention", _ALIASES,
            "Finds where the model draws each phrase of the prompt. There each has a LoRA, words or a prompt of its own, without a mask drawn. LoRAs cost no "
            "more evaluations. Word Regions View shows the regions.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or a DiT such as Flux, SD3, Qwen-Image, Z-Image or Wan."),
                io.Clip.Input("clip", tooltip="The text encoder of the model. The text encoder's part of a LoRA acts by Load LoRA on it (strength_model 0)."),
                text("prompt", "", "The prompt of the whole image, which names all phrases.", multiline=True, dynamic_prompts=True),
                text("phrases", "", "Words or phrases of the prompt, one a line: those with a region of their own. 'man#2' is the second man, 'embedding:name' a learned word. "
                    "Empty = off.", multiline=True),
                share("find_percent", 0.45, "Percent of the sampling at which the regions are found. Typical: 0.2–0.5. Later: finer regions."),
                share("start_percent", 0.15, "Percent of the sampling from which the regions act. Typical: 0.1–0.3. Below find_percent the sampling begins again "
                    "when the regions are known. As find_percent: no step twice, but things keep their outline."),
                *advanced(
                    text("layers", "", "Layers that are read. UNet: output, middle, output3-5, 1/2. DiT: early, middle, late, or blocks, 8-15. Several between "
                        "commas. Empty: the coarse ones of a UNet's output, the middle third of a DiT."),
                    auto_number("anchors", 0.001, 1.0, "Share of the image that surely is a phrase's. Lower for small things. Typical: 0.05–0.15.", 0.001),
                    auto_whole("spread", 0, 32, "Cells of the layers that are read (32 pixels with SD1.5 and SDXL) to widen the regions by, for things that get "
                        "another outline. Typical: 0–3. 0 = as found."),
                    share("rest", 0.5, "Share of the image that surely is no phrase's, for the rest of the prompt. Typical: 0.3–0.5. 0 = the phrases divide the "
                        "whole image."),
                ),
                io.Conditioning.Input("conditioning", optional=True, tooltip="The same prompt from other nodes (ControlNet, FluxGuidance). Not connected: the "
                    "prompt encoded plainly."),
                io.Autogrow.Input("regions", optional=True, template=io.Autogrow.TemplatePrefix(region, prefix="region_", min=0, max=8)),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler or guider, and for Word Regions View."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt and those of the regions."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, prompt, phrases, find_percent, start_percent, layers, anchors, spread, rest, conditioning=None, regions=None
    ) -> io.NodeOutput:
        given = {int(key.rsplit("_", 1)[1]): value for key, value in (regions or {}).items() if value is not None}
        finding = word_regions.Finding(find_percent, start_percent, layers, anchors, rest, spread)
        return io.NodeOutput(*word_regions.prepare(model, clip, word_regions.Task(prompt, phrases, finding, given, conditioning)))


class WordRegionsView(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "WordRegionsView", "Word Regions View", "attention", [*_ALIASES, "mask from words", "mask from text", "word mask"],
            "Shows the regions that Word Regions found in a finished run, as masks and as an image. Costs no evaluation.",
            inputs=[
                io.MultiType.Input("source", types=[io.Model, io.Guider], tooltip="The model of Word Regions, or the guider over it, with which the latent "
                    "was sampled."),
                io.Latent.Input("latent", tooltip="The sampled latent, unchanged: the regions of its own run are shown. It is passed on."),
                text("phrase", "", "The phrase whose mask is given. Empty: the masks of all phrases, one after the other."),
                io.Image.Input("image", optional=True, tooltip="The decoded latent, to lay the regions over."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="A mask for each image, 1 = the phrase's; at the image's size."),
                io.Image.Output(display_name="table", tooltip="A row for each image: all regions in colors, then each."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
                io.String.Output(display_name="text", tooltip="How much of each image the regions cover; which phrases have none; overlaps."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, latent, phrase, image=None) -> io.NodeOutput:
        run = word_regions.run_with(source, latent)
        told = "\n".join(run.lines)
        return io.NodeOutput(word_regions.masks_of(run, phrase), word_regions.table(run, image), latent, told, ui=ui.PreviewText(told))


NODES = [WordRegions, WordRegionsView]
