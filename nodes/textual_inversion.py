"""Textual inversion: a new word for a concept, trained on a few images."""

from dataclasses import fields, replace

from comfy_api.latest import io

from ..training.settings import Data
from ..training.textual_inversion import KINDS, TEMPLATES, Word, own_templates
from .host.progress import keep
from .host.training import textual_inversion as host
from .host.training.embeddings import EMBEDDINGS
from .inputs import training as inputs
from .inputs import widgets

_NAME = "Train Embedding (Textual Inversion)"
_DROPOUT = 0.1  # of captions, so that the word stands alone at times


class TIEmbeddingTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        rate = "Learning rate of the word, as for SD1.5; encoders with larger word vectors get it in proportion. Typical: 0.0005–0.01."
        own = "With templates 'own': one a line, {} is the word and {caption} the image's caption, as in '{caption} with {}'."
        return inputs.trainer_schema(
            "TIEmbeddingTrainer", _NAME, "training",
            ["textual inversion", "TI", "train embedding", "An Image is Worth One Word", "personalization", "new concept"],
            "Trains a new word on a few images, and saves it as an embedding that every prompt can use at once: embedding:name. Only the "
            "word's own vectors are trained; the model and the text encoders stay as they are.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the word is for: eps, v or flow. It is not changed."),
                *inputs.parts("Its text encoders; the word is trained for each of them. They are not changed."),
                io.Image.Input("images", tooltip="3–20 images of the concept: a batch, or a list of any sizes as folder loaders give it."),
                *inputs.options("training_options", "dataset_options", "validation_options"),
                widgets.choice("templates", KINDS, "Sentences that the word is trained in: for an object, a style or a face, or your own."),
                widgets.text("name", "my-concept", "File in the embeddings folder, used as embedding:name. 'toys/bear' = in a subfolder."),
                widgets.text("initial_words", Word.initial_words, "Start meaning of the word: 'cat', 'small toy'. Empty = the mean of all words."),
                inputs.vectors(),
                *inputs.course("Typical: 500–5000 for SD1.5; fewer at a higher learning_rate.", 4, rate),
                widgets.text("validation_prompt", "a photo of {}", "Prompt of the images shown during training; {} = the word."),
                inputs.text("placeholder", Word.placeholder, "A made-up word for the concept in captions, templates and prompts."),
                widgets.only_with(inputs.text("own_templates", "", own, multiline=True), "templates", "own"),
                *inputs.norms(),
                inputs.if_exists("an embedding"),
            ],
            outputs=[
                io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name."),
                inputs.loss_curve(),
                inputs.validation_images(),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(EMBEDDINGS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = inputs.with_autos(inputs.first(lists), {"validation_options": ["cfg"]})
        word = Word(**{f.name: given[f.name] for f in fields(Word)})
        parts, how = [given[k] for k in ("model", "clip", "vae")], [read(given, _NAME) for read in (inputs.objective, inputs.settings, inputs.validation)]
        result = host.learn(*parts, _data(lists), word, _templates(given), *how, given["name"], given["if_exists"])
        return inputs.trained(result, f"embedding:{result.name}")


def _data(lists: dict) -> Data:
    """The training data; without captions none can be left out."""
    data = inputs.data(lists, _NAME)
    if not data.captions:
        for name, *_ in inputs.changed(data, Data(), ("caption_dropout", "clean_caption_dropout")):
            keep(f"{name} of Dataset Options is not used where there are no captions")
    return data if data.caption_dropout >= 0 else replace(data, caption_dropout=_DROPOUT)


def _templates(given: dict) -> tuple[str, ...]:
    kind = given["templates"]
    return own_templates(given["own_templates"], given["placeholder"]) if kind == "own" else TEMPLATES[kind]


NODES = [TIEmbeddingTrainer]
