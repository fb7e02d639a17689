"""Prompt-to-Prompt: edit an image by editing its prompt."""

from comfy_api.latest import io

from ..attention import prompt_edits
from ..attention.alignment import OPERATIONS
from ..attention.prompt_to_prompt import Settings, Window
from .host.attention import local_blend, prompt_to_prompt_dit
from .host.attention import prompt_to_prompt as editing
from .host.attention.dit import is_joint
from .host.attention.unet import is_unet
from .host.prompts import encoded

_CATEGORY = "controlled diffusion/attention"
_ALIASES = [
    "p2p",
    "prompt to prompt",
    "prompt-to-prompt image editing with cross attention control",
    "attention control",
    "word swap",
    "attention reweighting",
    "cross attention",
    "local blend",
]


def _percent(name: str, default: float, tooltip: str, advanced: bool = False):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, advanced=advanced, tooltip=tooltip)


def _window(start: float, end: float, *names: str) -> Window:
    """A window of two inputs. Raises ValueError that names them."""
    if start > end:
        raise ValueError(
            f"{names[0]} is {start}, but {names[1]} is {end}: a window cannot end before it starts. Give {names[0]} at most {end}, or a larger "
            f"{names[1]}; where both are the same nothing is taken over."
        )
    return Window(start, end)


def _text(name: str, tooltip: str, default: str = "", multiline: bool = False, advanced: bool = False):
    return io.String.Input(name, default=default, multiline=multiline, dynamic_prompts=multiline, advanced=advanced, tooltip=tooltip)


class P2PAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="P2PAttentionPatch",
            display_name="P2P Attention Patch",
            category=_CATEGORY,
            description="Prompt-to-Prompt: draws the source prompt and edited prompts side by side, the edits with the attention maps of the source, "
            "so that layout and everything not named stay. Connect all four outputs to a KSampler; the source is the first image.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A UNet (SD1.5, SD2, SDXL and their like), or a DiT such as Flux, SD3, Qwen-Image, Z-Image, Chroma or Wan; eps, v or flow.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                _text("source", "The prompt of the source image.", multiline=True),
                _text(
                    "targets",
                    "The edited prompts, one a line; the same words as the source but for the edit. Empty: the source's own words, to change "
                    "their weights.",
                    multiline=True,
                ),
                _text("negative", "The negative prompt of all images; usually empty.", multiline=True),
                io.Combo.Input(
                    "operation",
                    options=list(OPERATIONS),
                    tooltip="How words are matched. 'auto': swaps, insertions, deletions, moved words and degree words ('very') as the prompts "
                    "show. 'replace': changed phrases share the maps of those they stand for. 'refine': only words that stay keep their maps. "
                    "'reweight only': weights alone act.",
                ),
                _percent(
                    "cross_start",
                    0.0,
                    "Percent of the sampling at which the words' maps are taken over from; 0 is the noisiest moment.",
                    True,
                ),
                _percent(
                    "cross_end",
                    0.8,
                    "Percent of the sampling up to which the words' maps are taken over. More keeps the layout, less gives freedom; 0 is off. "
                    "Usual 0.4 to 0.8.",
                ),
                _percent("self_start", 0.0, "Percent of the sampling at which the self-attention is taken over from.", True),
                _percent(
                    "self_end",
                    0.4,
                    "Percent of the sampling up to which self-attention, which holds shapes and layout, is taken over. 0 is off. Usual 0.2 to "
                    "0.6; low to change a shape, high to change a colour or texture.",
                ),
                _text(
                    "word_weights",
                    "How strongly words act: 'blue: 1.5, (hat:0.5)'. 1 is neutral, usual 0 to 3, below 0 the opposite (UNets). One line for all "
                    "targets, or one a target; with one target every line makes an image.",
                    multiline=True,
                ),
                _text(
                    "blend_words",
                    "Only where these words look may the edit differ from the source: words between commas, or * for those "
                    "that change. Empty: everywhere.",
                ),
                _text("protect_words", "Where these words look nothing changes. Words between commas."),
                _percent(
                    "blend_threshold",
                    0.3,
                    "Share of a word's strongest attention above which a place counts. Lower gives larger areas. Usual 0.2 to 0.5.",
                ),
                _percent("blend_start", 0.2, "Percent of the sampling before which everything may differ. Usual 0.2.", True),
                io.Float.Input(
                    "alpha",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the source's attention that is taken over. 1 = all (neutral), less lets a style change more, 0 = none. "
                    "Usual 0.3 to 0.8 for a style.",
                ),
                _text(
                    "word_windows",
                    "Percents for single words in the place of cross_start and cross_end: 'blue: 0-0.4, hat: 0.2-1'.",
                    advanced=True,
                ),
                _text(
                    "cross_layers",
                    "Layers whose words' maps are taken over: all, input, middle, output, output3-5, 1/2 (at most half the "
                    "latent's side); of a DiT all, early, middle, late, or numbers of blocks, 8-15; several between commas. With joint attention they say where "
                    "word_weights act.",
                    "all",
                    advanced=True,
                ),
                _text(
                    "self_layers",
                    "Layers whose self-attention is taken over, written alike. 1/2 is 32 x 32 and below at 512 x 512.",
                    "1/2",
                    advanced=True,
                ),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width in pixels, where no latent is connected."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height in pixels, where no latent is connected."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Images of the source; each target gets as many."),
                io.Latent.Input("latent", optional=True, tooltip="A latent to start from, instead of width, height and batch_size."),
                _percent(
                    "joint_end",
                    0.2,
                    "For models in which image and text share one attention (Flux, SD3, Qwen-Image, Z-Image and others), in the place of "
                    "self_end: percent of the sampling up to which the image's queries and keys are taken over. 0 is off; usual 0.1 to 0.4.",
                    True,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a KSampler, a guider or Inversion Sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="All prompts as rows, the source first."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
                io.Latent.Output(display_name="latent", tooltip="A row for each prompt, all with the same noise; the source first."),
                io.String.Output(display_name="alignment", tooltip="Which word stands for which, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        source,
        targets,
        negative,
        operation,
        cross_start,
        cross_end,
        self_start,
        self_end,
        word_weights,
        blend_words,
        protect_words,
        blend_threshold,
        blend_start,
        alpha,
        word_windows,
        cross_layers,
        self_layers,
        width,
        height,
        batch_size,
        latent=None,
        joint_end=0.2,
    ) -> io.NodeOutput:
        prepared = editing.prepared if is_unet(model) else prompt_to_prompt_dit.prepared
        shared = (joint_end, "joint_end") if is_joint(model) else (self_end, "self_end")
        patched, positive, batch, alignment = prepared(
            model,
            clip,
            (source, [line.strip() for line in targets.splitlines() if line.strip()]),
            operation,
            prompt_edits.Words(word_weights, word_windows, blend_words, protect_words),
            Settings(
                _window(cross_start, cross_end, "cross_start", "cross_end"), _window(self_start, shared[0], "self_start", shared[1]), alpha
            ),
            (cross_layers, self_layers),
            (blend_threshold, blend_start),
            lambda branches: editing.batch_latent(model, latent, (height, width), batch_size, branches),
        )
        return io.NodeOutput(patched, positive, encoded(clip, negative), batch, alignment)


class P2PLocalBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="P2PLocalBlend",
            display_name="P2P Local Blend",
            category=_CATEGORY,
            description="Keeps the edits of P2P Attention Patch to the places where words look; everywhere else the image stays the source's. In "
            "the place of that node's blend_words, with more to set.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="From P2P Attention Patch; LoRA and other patches may lie between."),
                _text(
                    "words",
                    "Only where these look may an edit differ: words of the prompts between commas, or * for those that change. Empty: "
                    "everywhere.",
                    "*",
                ),
                _text("protect_words", "Where these words look nothing changes. Words between commas."),
                _percent("threshold", 0.3, "Share of a word's strongest attention above which a place counts. Lower gives larger areas."),
                _percent("start_percent", 0.2, "Percent of the sampling before which everything may differ. Usual 0.2."),
                _percent("end_percent", 1.0, "Percent of the sampling after which everything may differ. 1 keeps the rest exactly."),
                io.Int.Input(
                    "spread",
                    default=1,
                    min=0,
                    max=32,
                    tooltip="How far the areas are widened, in cells of the maps (a cell is 32 pixels with SD1.5). 1 in the paper, 0 is tight.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler, and for P2P Blend Mask.")],
        )

    @classmethod
    def execute(cls, model, words, protect_words, threshold, start_percent, end_percent, spread) -> io.NodeOutput:
        shape = dict(threshold=threshold, start=start_percent, end=end_percent, spread=spread)
        return io.NodeOutput(local_blend.with_blend(model, words, protect_words, **shape))


class P2PBlendMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="P2PBlendMask",
            display_name="P2P Blend Mask",
            category=_CATEGORY,
            description="Shows where a finished Prompt-to-Prompt run with a local blend let the edits differ from the source: as masks, and as a "
            "image of the masks over the steps. Costs no evaluation.",
            search_aliases=[*_ALIASES, "mask from words", "word mask"],
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[io.Model, io.Guider],
                    tooltip="The model of P2P Attention Patch or P2P Local Blend, or the guider over it, with which the latent was sampled.",
                ),
                io.Latent.Input("latent", tooltip="The sampled latent; it is passed on. It makes the node wait for the run."),
                _percent("percent", 1.0, "Percent of the sampling whose mask is given; 1 is the last."),
                io.Image.Input("image", optional=True, tooltip="The decoded latent, to lay the masks over."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="A mask for each edited image, 1 = may differ; at the image's size."),
                io.Image.Output(display_name="table", tooltip="A row for each edited image: its mask at several moments."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
            ],
        )

    @classmethod
    def execute(cls, source, latent, percent, image=None) -> io.NodeOutput:
        run = local_blend.run_of(source)
        return io.NodeOutput(local_blend.mask_at(run, percent), local_blend.over_time(run, image), latent)


NODES = [P2PAttentionPatch, P2PLocalBlend, P2PBlendMask]
