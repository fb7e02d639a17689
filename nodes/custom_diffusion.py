"""Custom Diffusion: a concept as the keys and values of cross-attention and a new word, and several concepts merged in closed form."""

from comfy_api.latest import io

from ..training.custom_diffusion import REGULAR
from .dreambooth import batches, clean_words, images, learnt, outputs, shown, subject, word
from .host.training import adapters
from .host.training import custom_diffusion as host
from .inputs import training as inputs

_SENTENCES = 8  # of each word, for merging


class CustomDiffusionTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CustomDiffusionTrainer",
            display_name="Train Keys and Values (Custom Diffusion)",
            category="controlled diffusion/training",
            description="Learns a concept as a new word and the keys and values with which a UNet reads the prompt, nothing else. Several of "
            "them can be merged into one file without further training.",
            search_aliases=["custom diffusion", "multi-concept", "cross-attention fine-tuning", "k v", "personalization"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2, SDXL or another UNet. It is not changed; LoRAs on it act while it learns."),
                io.Clip.Input("clip", tooltip="Its text encoders; the word is learnt for each of them. They are not changed."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.Image.Input(
                    "images", tooltip="3 to 20 images of the concept: a batch, or a list as folder loaders give it. Sizes may differ."
                ),
                *subject(
                    "Of the file in the loras folder and of the embedding. 'dogs/rex' goes into a subfolder.",
                    "a photo of a <concept> dog",
                    "What the images show, with the placeholder of the new word. An image's caption takes its place.",
                    200,
                ),
                *inputs.course(
                    300,
                    "Steps of the optimiser. Usual 200 to 600.",
                    4,
                    0.00008,
                    "Of keys and values: usual 0.00001 to 0.0001. With prodigy 1.",
                ),
                *inputs.validation_prompt("", "Images of this prompt are shown while it learns. Empty = the instance prompt."),
                *word("<concept>"),
                *batches(),
                inputs.flip(),
                *inputs.objective(),
                *inputs.run("a file", " and of class images"),
                *images(),
                clean_words(),
            ],
            outputs=[
                *outputs("the concept"),
                io.String.Output(display_name="concept", tooltip="Lines 'name = prompt' for Merge Concepts (Custom Diffusion)."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(adapters.LORAS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        made = learnt(lists, host.KeysAndValues(), True)
        told = made.sentences[: _SENTENCES * len(made.word.split())]
        return io.NodeOutput(*shown(made), "\n".join(f"{made.name} = {text}" for text in told))


class CustomDiffusionMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CustomDiffusionMerge",
            display_name="Merge Concepts (Custom Diffusion)",
            category="controlled diffusion/training",
            description="One file of several concepts: each concept's words read as its own file has them, everything else as nearly as before as "
            "can be. Solved in closed form within seconds; no training.",
            search_aliases=["custom diffusion", "merge concepts", "multi-concept", "closed form", "combine lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the concepts were learnt on. It is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoders."),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip="Two or more: lines 'name = prompt', the file in the loras folder and a prompt with its word, as 'rex = a "
                    "embedding:rex dog'. A concept may have several lines.",
                ),
                io.String.Input("name", default="my-concepts", tooltip="Of the merged file in the loras folder."),
                io.String.Input(
                    "regular_prompts",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Ordinary prompts, one a line, that shall stay as they are. Some hundred; empty = a list of common things.",
                ),
                inputs.choice("if_exists", ("number it", "refuse", "replace"), "Where a file of this name exists: number the new one, refuse, or replace."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with all concepts, to sample with at once."),
                io.LoraModel.Output(display_name="lora", tooltip="For the host's Load LoRA Model and Save LoRA nodes."),
                io.String.Output(display_name="name", tooltip="Of the file in the loras folder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, concepts, name, regular_prompts, if_exists) -> io.NodeOutput:
        found = host.concepts_of(concepts)
        regular = [line.strip() for line in regular_prompts.splitlines() if line.strip()] or REGULAR
        merged = host.merge(model, clip, found, regular)
        name = host.save_merged(name, merged, found, if_exists)
        return io.NodeOutput(adapters.patched(model, merged), merged, f"{name}.safetensors")


NODES = [CustomDiffusionTrainer, CustomDiffusionMerge]
