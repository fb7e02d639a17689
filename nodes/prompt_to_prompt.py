"""Prompt-to-Prompt: edit an image by editing its prompt."""

from comfy_api.latest import io, ui

from ..attention.alignment import OPERATIONS
from .host.attention import local_blend, prompt_to_prompt, prompt_to_prompt_dit
from .host.attention.unet import is_unet
from .host.inversion import invert
from .host.prompts import encoded
from .inputs import sockets
from .inputs.widgets import auto_number, auto_whole, choice, schema, share, text

_ALIASES = [
    "p2p", "prompt to prompt", "prompt-to-prompt image editing with cross attention control", "attention control", "word swap",
    "attention reweighting", "word weight", "cross attention", "local blend",
]  # fmt: skip
_OWN = prompt_to_prompt.Options()


def _prompt(name: str, tooltip: str):
    return text(name, "", tooltip, multiline=True, dynamic_prompts=True)


class P2PAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "P2PAttentionPatch", "P2P Attention Patch", "attention", [*_ALIASES, "word weight"],
            "Prompt-to-Prompt: draws the source prompt and edited prompts side by side, the edits with the attention maps of the source, "
            "so that layout and everything not named stay. Connect model, positive, negative and latent to a sampler; the source is the "
            "first image.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or a DiT such as Flux, SD3, Qwen-Image, Z-Image or Wan."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.MultiType.Input("latent", types=[io.Latent, sockets.Inversion], tooltip="The images to edit: an empty latent for "
                    "generated ones, or the inversion of real ones. Each target gets as many."),
                choice("operation", OPERATIONS, "How words are matched. 'auto': swaps, insertions, deletions, moved words and degree words "
                    "('very'). 'replace': changed phrases share the maps of those they replace. 'refine': only words that stay keep their "
                    "maps. 'reweight only': weights alone act."),
                _prompt("source", "The prompt of the source image. Empty, with an inversion: the text that the image was inverted under."),
                _prompt("targets", "The edited prompts, one a line, with only the edit changed. Empty: the source, to change its weights."),
                _prompt("negative", "The negative prompt of all images; usually empty."),
                _prompt("word_weights", "How strongly words act: 'blue: 1.5, (hat:0.5)'. Typical: 0–3. 1 = neutral, below 0 the opposite "
                    "(UNets). One line for all targets, or one a target; with one target every line makes an image."),
                auto_number("cross_end", 0.0, 1.0, "Percent of the sampling up to which words' maps are used; keeps the layout. Typical: "
                    "0.4–0.8. 0 = off."),
                auto_number("self_end", 0.0, 1.0, "Percent of the sampling up to which self-attention, or the image's part of joint attention, "
                    "is used. Low to change a shape, high to change a color or texture. Typical: 0.1–0.6. 0 = off."),
                sockets.P2POptions.Input("options", optional=True, tooltip="P2P Options. Not connected: its defaults."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a KSampler, a guider or Inversion Sampler; or for P2P Local Blend."),
                io.Conditioning.Output(display_name="positive", tooltip="All prompts as rows, the source first."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
                io.Latent.Output(display_name="latent", tooltip="A row for each prompt, all with the same noise; the source first. Of an "
                    "inversion its noise, for samplers that add none."),
                io.String.Output(display_name="alignment", tooltip="Which word matches which, readable."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, latent, source, targets, negative, options=_OWN, **asked) -> io.NodeOutput:
        lines = [line.strip() for line in targets.splitlines() if line.strip()]
        source, latent = (source, latent) if isinstance(latent, dict) else _of_inversion(model, latent, source)
        task = prompt_to_prompt.Task(source, lines, latent, options, **asked)
        prepare = prompt_to_prompt.prepare if is_unet(model) else prompt_to_prompt_dit.prepare
        patched, positive, batch, alignment = prepare(model, clip, task)
        return io.NodeOutput(patched, positive, encoded(clip, negative), batch, alignment)


def _of_inversion(model, inversion: invert.Inversion, source: str) -> tuple[str, dict]:
    """The source prompt of an inversion, and its noise as a LATENT. Raises ValueError where no prompt is known."""
    found = source.strip() or inversion.text
    if not found:
        raise ValueError(
            "source is empty, and the inversion does not know its prompt: the inverter got a conditioning, or an empty text. Write the prompt "
            "in source, or connect a text and the clip to the inverter."
        )
    return found, invert.noisy_latent(model, inversion)


class P2POptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        start = "Percent of the sampling from which {} used. 0 = noisiest."
        return schema(
            "P2POptions", "P2P Options", "attention", [*_ALIASES, "style injection"],
            "What else P2P Attention Patch can do: take over a share of the source's attention, later, in some layers, or of single words.",
            inputs=[
                share("alpha", _OWN.alpha, "Share of the source's attention. 1 = all, 0 = none. Typical: 0.3–0.8 (style)."),
                share("cross_start", _OWN.cross_start, start.format("words' maps are")),
                share("self_start", _OWN.self_start, start.format("self-attention is")),
                text("word_windows", "", "cross_start and cross_end of single words: 'blue: 0-0.4, hat: 0.2-1'."),
                text("cross_layers", _OWN.cross_layers, "Layers whose words' maps are taken over; with joint attention, where word_weights act. "
                    "UNet: all, input, middle, output, output3-5, 1/2 (at most half the latent's side). DiT: all, early, middle, late, "
                    "or blocks, 8-15. Several between commas."),
                text("self_layers", _OWN.self_layers, "Layers whose self-attention is used, written alike. 1/2 = 32 x 32 and below at 512 x 512."),
            ],
            outputs=[sockets.P2POptions.Output(display_name="options", tooltip="For P2P Attention Patch.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **asked) -> io.NodeOutput:
        return io.NodeOutput(prompt_to_prompt.Options(**asked))


class P2PLocalBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "P2PLocalBlend", "P2P Local Blend", "attention", _ALIASES,
            "Keeps the edits of P2P Attention Patch to the places where words look; everywhere else the image stays the source's.",
            inputs=[
                io.Model.Input("model", tooltip="From P2P Attention Patch; LoRA and other patches may be between."),
                text("words", "*", "Edit only where these words look: words between commas, * for those that change and the things they "
                    "describe. Empty: everywhere."),
                text("protect_words", "", "Nothing changes where these words look. Words between commas."),
                auto_number("threshold", 0.0, 1.0, "Share of the words' range of attention above which a place counts. Lower = larger areas. "
                    "Typical: 0.2–0.6."),
                auto_number("start_percent", 0.0, 1.0, "Percent of the sampling before which everything may differ. Typical: 0.1–0.2."),
                auto_number("end_percent", 0.0, 1.0, "Percent of the sampling after which everything may differ. 1 = never."),
                auto_whole("spread", 0, 32, "Map cells to widen the areas by (32 pixels with SD1.5). Paper: 1. 0 = tight."),
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
                io.MultiType.Input("source", types=[io.Model, io.Guider], tooltip="The model of P2P Local Blend, or the guider over "
                    "it, with which the latent was sampled."),
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
        control, masks = local_blend.masks_of(source, latent)
        table, told = local_blend.over_time(masks, image, control), local_blend.coverage(control, masks)
        return io.NodeOutput(local_blend.mask_at(masks, percent, control.pixels), table, latent, told, ui=ui.PreviewText(told))


NODES = [P2PAttentionPatch, P2POptions, P2PLocalBlend, P2PBlendMask]
