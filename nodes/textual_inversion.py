"""Textual inversion: a new word for a concept, trained on a few images."""

from dataclasses import fields

from comfy_api.latest import io

from ..training.textual_inversion import KINDS, TEMPLATES, Word, own_templates
from .host.training import textual_inversion as host
from .host.training.embeddings import EMBEDDINGS
from .inputs import training as inputs
from .inputs import widgets


class TIEmbeddingTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        rate = "As published for SD1.5; encoders with larger word vectors get it in proportion. Typical: 0.0005–0.01."
        own = "With templates 'own': one a line, {} is the word and {caption} the image's caption, as in '{caption} with {}'."
        dropout = "How often a caption is left out, so that the word stands alone. 0 = never. Typical: 0–0.3."
        return inputs.trainer_schema(
            "TIEmbeddingTrainer", "Train Embedding (Textual Inversion)", "training",
            ["textual inversion", "TI", "train embedding", "An Image is Worth One Word", "personalization", "new concept"],
            "Trains a new word on a few images, and saves it as an embedding that every prompt can use at once: embedding:name. Only the "
            "word's own vectors are trained; the model and the text encoders stay as they are.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the word is for: eps, v or flow. It is not changed."),
                *inputs.parts("Its text encoders; the word is trained for each of them. They are not changed."),
                io.Image.Input("images", tooltip="3–20 images of the concept: a batch, or a list of any sizes as folder loaders give it."),
                widgets.text("name", "my-concept", "File in the embeddings folder, used as embedding:name. 'toys/bear' = in a subfolder."),
                widgets.text("placeholder", "<concept>", "A made-up word for the concept in captions, templates and prompts."),
                widgets.text("initial_words", "", "Start meaning of the word: 'cat', 'small toy'. Empty = the mean of all words."),
                widgets.whole("vectors", Word.vectors, 1, 64, "Vectors (tokens) of the word. 1 combines best with others. Typical: 1–8."),
                widgets.choice("templates", KINDS, "Sentences that the word is trained in: for an object, a style or a face, or your own."),
                *inputs.course(1000, "Typical: 500–5000 for SD1.5; fewer at a higher learning_rate.", 4, 0.005, rate),
                *inputs.validation_prompt("a photo of {}", "Prompt of the images shown during training; {} = the word."),
                widgets.text("own_templates", "", own, multiline=True),
                inputs.number("caption_dropout", 0.1, 0.0, 0.99, dropout),
                inputs.flip(),
                *inputs.norms(),
                *inputs.objective(),
                *inputs.run("an embedding"),
                inputs.captions("What else each image shows, so that the word need not learn it: a list, or one a line. A caption with the "
                    "placeholder is the whole prompt; variants between | take turns. Empty = none."),
                inputs.masks(),
                inputs.checkpointing(),
                *inputs.augmentation(),
                inputs.clean_dropout("clean_caption_dropout", "caption_dropout", "a caption is"),
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
        given = {k: v[0] for k, v in lists.items() if v}
        word = Word(**{f.name: given[f.name] for f in fields(Word)})
        parts = (given[k] for k in ("model", "clip", "vae"))
        data = inputs.data(lists, given)
        result = host.learn(*parts, data, word, _templates(given), *inputs.read(given), given["name"], given["if_exists"])
        return inputs.trained(result, f"embedding:{result.name}")


def _templates(given: dict) -> tuple[str, ...]:
    kind = given["templates"]
    return own_templates(given["own_templates"], given["placeholder"]) if kind == "own" else TEMPLATES[kind]


NODES = [TIEmbeddingTrainer]
