"""Attention maps: which words the model looks at, where in the image and when."""

from comfy_api.latest import io

from .host.attention import attention_maps
from .inputs import channel, sockets
from .inputs.widgets import advanced, choice, number, schema, text, whole

_ALIASES = [
    "attention maps", "cross attention visualization", "daam", "what the daam: interpreting stable diffusion using cross attention",
    "word heat map", "attention mask", "explain",
]  # fmt: skip


class AttentionMapCapture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "AttentionMapCapture", "Attention Map Capture", "attention", _ALIASES,
            "Records while sampling where in the image the model looks at each word of the prompt. Connect both outputs to the sampler, "
            "then Attention Map View. The image stays as it is.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1.5, SD2, SDXL), or a DiT such as Flux, SD3, Qwen-Image, Z-Image or Wan."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                text("prompt", "", "The positive prompt; a line for each text of the conditioning.", multiline=True, dynamic_prompts=True),
                text("words", "", "Words or phrases of the prompt between commas ('cat#2' is the second of two). Empty: every word."),
                *advanced(
                    text("layers", "all", "UNet: all, input, middle, output, output3-5, 1/2 (at most half the latent's side). DiT: all, "
                        "early, middle, late, or blocks, 8-15. Several between commas."),
                ),
                *channel.percent_range("capturing"),
                *advanced(
                    whole("phases", 4, 1, 20, "Equal parts of that range, to see how the maps change. Typical: 4. 1 = only the mean."),
                ),
                io.Conditioning.Input("conditioning", optional=True, tooltip="The same prompt from other nodes (ControlNet, FluxGuidance), "
                    "or several (positive of P2P Attention Patch). Not connected: the prompt encoded plainly."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler or guider, and for Attention Map View."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt whose maps are captured."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, prompt, words, layers, start_percent, end_percent, phases, conditioning=None) -> io.NodeOutput:
        return io.NodeOutput(*attention_maps.prepare(model, clip, prompt, words, layers, start_percent, end_percent, phases, conditioning))


class AttentionMapView(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "AttentionMapView", "Attention Map View", "attention", [*_ALIASES, "mask from words", "mask from text", "word mask"],
            "Shows what Attention Map Capture recorded of a finished run: a heat map for every word, over the image if you connect it, by "
            "layers or by steps; and a mask of where a word is looked at.",
            inputs=[
                io.MultiType.Input("source", types=[io.Model, io.Guider, sockets.AttentionMaps], tooltip="The model of Attention Map "
                    "Capture, or the guider over it, with which the latent was sampled; or the maps of another view."),
                io.Latent.Input("latent", tooltip="The sampled latent, unchanged: the maps of its own run are shown. It is passed on."),
                text("words", "", "Which of the captured words to show, between commas. Empty: all."),
                choice("rows", ["mean", "layers", "steps"], "Rows of the table: the mean, each group of layers, or parts of the sampling."),
                *advanced(text("layers", "all", "Groups of layers between commas: 1/1, 1/2, 1/4 of a UNet; early, middle, late of a DiT.")),
                text("mask_word", "", "Word of the mask; several between commas are added. Empty: the first captured."),
                number("threshold", 0.4, 0.0, 0.99,
                    "Share of the word's range of attention above which the mask is 1. Typical: 0.3–0.6. 0 = the heat itself, soft."),
                io.Image.Input("image", optional=True, tooltip="The decoded image, to lay the maps over. It also gives the mask its size."),
            ],
            outputs=[
                io.Image.Output(display_name="table", tooltip="Heat maps with names, one table for each image."),
                io.Mask.Output(display_name="mask", tooltip="Where the word is looked at; for regions, inpainting or DiffEdit Sampler."),
                sockets.AttentionMaps.Output(display_name="maps", tooltip="The maps, for further views."),
                io.Latent.Output(display_name="latent", tooltip="The latent as it came in."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, latent, words, rows, layers, mask_word, threshold, image=None) -> io.NodeOutput:
        maps = attention_maps.maps_of(source, latent)
        table = attention_maps.table(maps, words, layers, rows, image)
        return io.NodeOutput(table, attention_maps.mask(maps, mask_word, layers, threshold, image), maps, latent)


NODES = [AttentionMapCapture, AttentionMapView]
