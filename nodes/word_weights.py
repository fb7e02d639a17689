"""Word weights in the attention, on any model."""

from comfy_api.latest import io, ui

from ..attention.prompt_to_prompt import Window
from .host.attention import word_weights as weights
from .inputs.widgets import advanced, schema, share, text


class WordWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "WordWeights", "Word Weights", "attention",
            ["prompt weights", "word weight", "emphasis", "attention weight", "attention reweighting", "prompt emphasis", "token weight"],
            "Encodes a prompt and scales how much attention its words get, on any model: also where the text encoder ignores (word:1.4), as "
            "those of Qwen-Image and Z-Image do, and at cfg 1. Takes the place of CLIP Text Encode.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or a DiT such as Flux, SD3, Qwen-Image, Z-Image or Wan."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                text("text", "", "The prompt. (word:1.4) sets a weight, (word) is 1.1; \\( and \\) are brackets. Typical: 0–3. 0 = no attention, "
                    "1 = neutral.", multiline=True, dynamic_prompts=True),
                text("word_weights", "", "More weights as a list: 'blue: 1.5, red hat: 0.5'; multiplies those in the prompt. Below 0 the opposite "
                    "(text with its own attention only). 'hat#2' is the second hat. Empty = none."),
                share("start_percent", 0.0, "Percent of the sampling at which the weights start. 0 is the noisiest moment."),
                share("end_percent", 1.0, "Percent of the sampling at which the weights end. 1 is the clean image."),
                *advanced(
                    text("layers", "all", "Layers where the weights act. UNet: all, input, middle, output, output3-5, 1/2 (at most half the "
                        "latent's side). DiT: all, early, middle, late, or blocks, 8-15. Several between commas."),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler or guider, or the next Word Weights."),
                io.Conditioning.Output(display_name="positive", tooltip="The encoded prompt; the weights act on it alone."),
                io.String.Output(display_name="weights", tooltip="The words that have a weight, readable."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, text, word_weights, start_percent, end_percent, layers) -> io.NodeOutput:
        patched, positive, told = weights.prepare(model, clip, text, word_weights, Window(start_percent, end_percent), layers)
        return io.NodeOutput(patched, positive, told, ui=ui.PreviewText(told))


NODES = [WordWeights]
