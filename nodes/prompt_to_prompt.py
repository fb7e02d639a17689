"""Prompt-to-Prompt: edit an image by editing its prompt."""

from comfy_api.latest import io, ui

from ..attention.alignment import OPERATIONS
from ..attention.local_blend import LocalBlend
from ..attention.prompt_edits import Words
from ..attention.prompt_to_prompt import Settings, Window
from .host.attention import local_blend, prompt_to_prompt, prompt_to_prompt_dit
from .host.attention.dit import is_joint
from .host.attention.unet import is_unet
from .host.prompts import encoded
from .inputs.widgets import advanced, choice, schema, share, text, whole

_ALIASES = [
    "p2p", "prompt to prompt", "prompt-to-prompt image editing with cross attention control", "attention control", "word swap",
    "attention reweighting", "word weight", "cross attention", "local blend",
]  # fmt: skip
JOINT_END = 0.2  # of the sampling
_BLEND_WORDS = "Edit only where these words look: words between commas, * for those that change and the things they describe. Empty: everywhere."
_PROTECT_WORDS = "Nothing changes where these words look. Words between commas."
_THRESHOLD = "Share of the words' range of attention above which a place counts. Lower = larger areas."
_START = "Percent of the sampling from which {} used. 0 = noisiest."
_BLEND_START = "Percent of the sampling before which everything may differ. Typical: 0.2."


def _window(start: float, end: float, *names: str) -> Window:
    """A window of two inputs. Raises ValueError that names them."""
    if start > end:
        raise ValueError(
            f"{names[0]} is {start}, but {names[1]} is {end}: a window cannot end before it starts. Give {names[0]} at most {end}, or a "
            f"larger {names[1]}; where both are the same nothing is taken over."
        )
    return Window(start, end)


def _prompt(name: str, tooltip: str):
    return text(name, "", tooltip, multiline=True, dynamic_prompts=True)


class P2PAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "P2PAttentionPatch", "P2P Attention Patch", "attention", _ALIASES,
            "Prompt-to-Prompt: draws the source prompt and edited prompts side by side, the edits with the attention maps of the source, "
            "so that layout and everything not named stay. Connect all four outputs to a KSampler; the source is the first image.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or a DiT such as Flux, SD3, Qwen-Image, Z-Image or Wan."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                _prompt("source", "The prompt of the source image."),
                _prompt("targets", "The edited prompts, one a line, with only the edit changed. Empty: the source, to change its weights."),
                _prompt("negative", "The negative prompt of all images; usually empty."),
                choice("operation", OPERATIONS, "How words are matched. 'auto': swaps, insertions, deletions, moved words and degree words "
                    "('very'). 'replace': changed phrases share the maps of those they replace. 'refine': only words that stay keep their "
                    "maps. 'reweight only': weights alone act."),
                share("cross_start", Settings.cross.start, _START.format("words' maps are"), advanced=True),
                share("cross_end", Settings.cross.end,
                    "Percent of the sampling up to which words' maps are used; keeps the layout. Typical: 0.4–0.8. 0 = off."),
                share("self_start", Settings.self.start, _START.format("self-attention is"), advanced=True),
                share("self_end", Settings.self.end, "Percent of the sampling up to which self-attention (shapes and layout) is used. "
                    "Low to change a shape, high to change a color or texture. Typical: 0.2–0.6. 0 = off."),
                _prompt("word_weights", "How strongly words act: 'blue: 1.5, (hat:0.5)'. Typical: 0–3. 1 = neutral, below 0 the opposite "
                    "(UNets). One line for all targets, or one a target; with one target every line makes an image."),
                text("blend_words", "", _BLEND_WORDS),
                text("protect_words", "", _PROTECT_WORDS),
                share("blend_threshold", LocalBlend.threshold, f"{_THRESHOLD} Typical: 0.2–0.5."),
                *advanced(
                    share("blend_start", LocalBlend.start, _BLEND_START),
                    share("alpha", Settings.alpha, "Share of the source's attention. 1 = neutral, 0 = none. Typical: 0.3–0.8 (style)."),
                    text("word_windows", "", "cross_start and cross_end of single words: 'blue: 0-0.4, hat: 0.2-1'."),
                    text("cross_layers", "all", "Layers whose words' maps are taken over; with joint attention, where word_weights act. "
                        "UNet: all, input, middle, output, output3-5, 1/2 (at most half the latent's side). DiT: all, early, middle, late, "
                        "or blocks, 8-15. Several between commas."),
                    text("self_layers", "1/2", "Layers whose self-attention is used, written alike. 1/2 = 32 x 32 and below at 512 x 512."),
                ),
                whole("width", 512, 16, 4096, "Width in pixels, where no latent is connected.", step=8),
                whole("height", 512, 16, 4096, "Height in pixels, where no latent is connected.", step=8),
                whole("batch_size", 1, 1, 4096, "Images of the source; each target gets as many."),
                io.Latent.Input("latent", optional=True, tooltip="A latent to start from, instead of width, height and batch_size."),
                share("joint_end", JOINT_END, "Replaces self_end for models in which image and text share one attention (Flux, SD3, "
                    "Qwen-Image, Z-Image and others): percent of the sampling up to which the image's queries and keys are used. Typical: "
                    "0.1–0.4. 0 = off.", advanced=True),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a KSampler, a guider or Inversion Sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="All prompts as rows, the source first."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
                io.Latent.Output(display_name="latent", tooltip="A row for each prompt, all with the same noise; the source first."),
                io.String.Output(display_name="alignment", tooltip="Which word matches which, readable."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, targets, negative, cross_start, cross_end, self_start, self_end, word_weights, blend_words, protect_words,
        blend_threshold, alpha, word_windows, width, height, batch_size, latent=None, joint_end=JOINT_END, **shared,
    ) -> io.NodeOutput:  # fmt: skip
        self_last = (joint_end, "joint_end") if is_joint(model) else (self_end, "self_end")
        cross = _window(cross_start, cross_end, "cross_start", "cross_end")
        task = prompt_to_prompt.Task(
            targets=[line.strip() for line in targets.splitlines() if line.strip()],
            words=Words(word_weights, word_windows, blend_words, protect_words),
            settings=Settings(cross, _window(self_start, self_last[0], "self_start", self_last[1]), alpha),
            threshold=blend_threshold,
            latent=lambda branches: prompt_to_prompt.batch_latent(model, latent, (height, width), batch_size, branches),
            **shared,
        )
        prepare = prompt_to_prompt.prepare if is_unet(model) else prompt_to_prompt_dit.prepare
        patched, positive, batch, alignment = prepare(model, clip, task)
        return io.NodeOutput(patched, positive, encoded(clip, negative), batch, alignment)


class P2PLocalBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "P2PLocalBlend", "P2P Local Blend", "attention", _ALIASES,
            "Keeps the edits of P2P Attention Patch to the places where words look; everywhere else the image stays the source's. Replaces "
            "that node's blend_words, with more to set.",
            inputs=[
                io.Model.Input("model", tooltip="From P2P Attention Patch; LoRA and other patches may be between."),
                text("words", "*", _BLEND_WORDS),
                text("protect_words", "", _PROTECT_WORDS),
                share("threshold", LocalBlend.threshold, _THRESHOLD),
                share("start_percent", LocalBlend.start, _BLEND_START),
                share("end_percent", LocalBlend.end, "Percent of the sampling after which everything may differ. 1 = never."),
                whole("spread", LocalBlend.spread, 0, 32, "Map cells to widen the areas by (32 pixels with SD1.5). Paper: 1. 0 = tight."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler, and for P2P Blend Mask.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, words, protect_words, threshold, start_percent, end_percent, spread) -> io.NodeOutput:
        shape = dict(threshold=threshold, start=start_percent, end=end_percent, spread=spread)
        return io.NodeOutput(local_blend.with_blend(model, words, protect_words, **shape))


class P2PBlendMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "P2PBlendMask", "P2P Blend Mask", "attention", [*_ALIASES, "mask from words", "mask from text", "word mask"],
            "Shows where a finished Prompt-to-Prompt run with a local blend let the edits differ from the source: as masks, and as an "
            "image of the masks over the steps. Costs no evaluation.",
            inputs=[
                io.MultiType.Input("source", types=[io.Model, io.Guider], tooltip="The model of P2P Attention Patch or P2P Local Blend, or "
                    "the guider over it, with which the latent was sampled."),
                io.Latent.Input("latent", tooltip="The sampled latent, unchanged: the masks of its own run are shown. It is passed on."),
                share("percent", 1.0, "Percent of the sampling whose mask is given; 1 is the last."),
                io.Image.Input("image", optional=True, tooltip="The decoded latent, to lay the masks over."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="A mask for each edited image, 1 = may differ; at the image's size."),
                io.Image.Output(display_name="table", tooltip="A row for each edited image: its mask at several times of the sampling."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
                io.String.Output(display_name="text", tooltip="How much of each edited image may differ, with a warning at nearly all or nothing."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, latent, percent, image=None) -> io.NodeOutput:
        control = local_blend.control_of(source)
        masks = local_blend.masks_of(control, latent)
        table, told = local_blend.over_time(masks, image, control), local_blend.coverage(control, masks)
        return io.NodeOutput(local_blend.mask_at(masks, percent, control.pixels), table, latent, told, ui=ui.PreviewText(told))


NODES = [P2PAttentionPatch, P2PLocalBlend, P2PBlendMask]
