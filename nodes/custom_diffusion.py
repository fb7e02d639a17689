"""Custom Diffusion: a concept as the keys and values of cross-attention and a new word, and several concepts merged in closed form."""

from comfy_api.latest import io

from ..training.custom_diffusion import REGULAR
from ..training.textual_inversion import Word
from .dreambooth import OPTIONS, VALIDATION_PROMPT, outputs, shown, trained
from .host.training import adapters
from .host.training import custom_diffusion as host
from .host.training.dreambooth import Subject
from .inputs import training as inputs
from .inputs import widgets
from .inputs.families import AUTO_NUMBER
from .inputs.widgets import schema

_NAME = "Train Keys and Values (Custom Diffusion)"
_REGULAR = "Prompts, one a line, that stay as they are. Typical: some hundred. Empty = a list of common things."
_SENTENCES = 8  # of each word, for merging


class CustomDiffusionTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        name = "File in the loras folder, and the embedding. 'dogs/rex' = in a subfolder."
        instance = "What the images show, with the placeholder of the new word. An image's caption replaces it."
        return inputs.trainer_schema(
            "CustomDiffusionTrainer", _NAME, "training",
            ["custom diffusion", "multi-concept", "cross-attention fine-tuning", "k v", "personalization"],
            "Trains a concept as a new word and the keys and values with which a UNet reads the prompt, nothing else. Several of them can "
            "be merged into one file without further training.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2, SDXL or another UNet. It is not changed; LoRAs on it act during training."),
                *inputs.parts("Its text encoders; the word is trained for each of them. They are not changed."),
                io.Image.Input("images", tooltip="3–20 images of the concept: a batch, or a list of any sizes as folder loaders give it."),
                *inputs.options(*OPTIONS, word=f"{Word.placeholder}, from the mean of all words."),
                widgets.text("name", "my-concept", name),
                widgets.text("instance_prompt", f"a photo of a {Word.placeholder} dog", instance),
                *inputs.course("Typical: 200–600.", 4, "Learning rate of keys and values. Typical: 0.00001–0.0001."),
                widgets.text("validation_prompt", "", VALIDATION_PROMPT),
                inputs.if_exists("a file"),
            ],
            outputs=[
                *outputs("the concept", "Its file in the loras folder."),
                io.String.Output(display_name="concept", tooltip="Lines 'name = prompt' for Merge Concepts (Custom Diffusion)."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(adapters.LORAS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        result = trained(lists, _NAME, host.KeysAndValues(), Subject(words=(Word(),), word_rate=AUTO_NUMBER))
        sentences = result.sentences[: _SENTENCES * len(result.word.split())]
        return shown(result, "\n".join(f"{result.name} = {text}" for text in sentences))


class CustomDiffusionMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "CustomDiffusionMerge", "Merge Concepts (Custom Diffusion)", "training",
            ["custom diffusion", "merge concepts", "multi-concept", "closed form", "combine lora", "merge lora"],
            "One file of several concepts: each concept's words read as in its own file, everything else stays as close as possible. "
            "Solved in closed form within seconds; no training.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the concepts were trained on. It is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoders."),
                widgets.text("concepts", "", "Two or more lines 'name = prompt': the file in the loras folder and a prompt with its word, "
                    "as 'rex = a embedding:rex dog'. A concept may have several lines.", multiline=True),
                widgets.text("name", "my-concepts", "Name of the merged file in the loras folder."),
                inputs.text("regular_prompts", "", _REGULAR, multiline=True),
                inputs.choice("if_exists", ("number it", "refuse", "replace"), "If a file of this name exists."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with all concepts, to sample with at once."),
                io.LoraModel.Output(display_name="lora", tooltip="For ComfyUI's Load LoRA Model and Save LoRA nodes."),
                io.String.Output(display_name="name", tooltip="Of the file in the loras folder."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, concepts, **given):
        return host.stamps(concepts or "")  # of a text that is linked the node before knows

    @classmethod
    def execute(cls, model, clip, concepts, name, regular_prompts, if_exists) -> io.NodeOutput:
        found = host.concepts_of(concepts)
        regular = [line.strip() for line in regular_prompts.splitlines() if line.strip()] or REGULAR
        merged = host.merge(model, clip, found, regular)
        name = host.save_merged(name, merged, found, if_exists)
        return io.NodeOutput(adapters.patched(model, merged), merged, f"{name}.safetensors")


NODES = [CustomDiffusionTrainer, CustomDiffusionMerge]
