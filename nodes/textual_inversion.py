"""Textual inversion: a new word for a concept, learnt from a few images."""

from dataclasses import fields

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..training import settings
from ..training.textual_inversion import KINDS, TEMPLATES, own_templates
from .host.training import textual_inversion as host
from .host.training.embeddings import EMBEDDINGS
from .inputs import training as inputs

_LISTS = ("images", "captions", "masks")


class TIEmbeddingTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TIEmbeddingTrainer",
            display_name="Train Embedding (Textual Inversion)",
            category="controlled diffusion/training",
            description="Learns a new word for what a few images show, and saves it as an embedding that every prompt can use at once: "
            "embedding:name. Only the word's own vectors are learnt; the model and the text encoders stay as they are.",
            search_aliases=["textual inversion", "TI", "train embedding", "An Image is Worth One Word", "personalization", "new concept"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the word is for: eps, v or flow. It is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoders; the word is learnt for each of them. They are not changed."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.Image.Input(
                    "images",
                    tooltip="3 to 20 images of the concept: a batch, or a list as folder loaders give it. Their sizes may differ.",
                ),
                io.String.Input(
                    "name",
                    default="my-concept",
                    tooltip="The word is saved in the embeddings folder under this name and used as embedding:name. 'toys/bear' goes into a subfolder.",
                ),
                io.String.Input(
                    "placeholder",
                    default="<concept>",
                    tooltip="A made-up word that stands for the concept in captions, templates and the validation prompt.",
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="What the word means at first, as 'cat' or 'small toy': a short name of the kind of thing. Empty = the mean of all words.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Vectors, that is tokens, of the word. 1 is easiest to combine with other words; usual 1 to 8, more for details.",
                ),
                io.Combo.Input(
                    "templates",
                    options=list(KINDS),
                    tooltip="Sentences in which the word is learnt: for an object, a style or a face, or your own.",
                ),
                *inputs.course(
                    1000,
                    "Steps of the optimiser. Usual 500 to 5000 for SD1.5; fewer at a higher learning_rate.",
                    4,
                    0.005,
                    "As published for SD1.5: usual 0.0005 to 0.01. Encoders with larger word vectors get it in proportion. With prodigy 1.",
                ),
                *inputs.validation_prompt(
                    "a photo of {}", "Images of this prompt are shown while it learns; {} or the placeholder is the word."
                ),
                io.String.Input(
                    "own_templates",
                    default="",
                    multiline=True,
                    tooltip="With templates 'own': one a line, {} is the word and {caption} the image's caption, as in '{caption} with {}'.",
                ),
                inputs.number(
                    "caption_dropout",
                    0.1,
                    0.0,
                    0.99,
                    "How often a caption is left out, so that the word learns to stand alone; 0 = never. Usual 0 to 0.3.",
                ),
                inputs.flip(),
                *inputs.norms(),
                *inputs.objective(),
                *inputs.run("an embedding"),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What else each image shows, so that the word need not learn it: a list as folder loaders give it, or one a line. A "
                    "caption that holds the placeholder is the whole sentence; one that says it in several ways, between |, is used in each by turns. "
                    "Empty = none.",
                ),
                inputs.masks(),
                inputs.checkpointing(),
                *inputs.augmentation(),
                inputs.clean_dropout("clean_caption_dropout", "caption_dropout", "a caption is"),
            ],
            outputs=[
                io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps."),
                io.Image.Output(display_name="validation", tooltip="All validation images, the last at the end."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(EMBEDDINGS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = {k: v[0] for k, v in lists.items() if k not in _LISTS}
        word = host.Word(**{f.name: given[f.name] for f in fields(host.Word)})
        data = settings.Data(*inputs.lists_of(lists, *_LISTS), given["flip"], augmentation=inputs.augmented(given), **inputs.dropout(given))
        parts = (given[k] for k in ("model", "clip", "vae"))
        made = host.learn(*parts, data, word, _templates(given), *inputs.read(given), given["name"], given["if_exists"])
        seen = ExecutionBlocker("Train Embedding: no validation image was made.") if made.images is None else made.images
        return io.NodeOutput(f"embedding:{made.name}", made.curve, seen)


def _templates(given: dict) -> tuple[str, ...]:
    kind = given["templates"]
    return own_templates(given["own_templates"], given["placeholder"]) if kind == "own" else TEMPLATES[kind]


NODES = [TIEmbeddingTrainer]
