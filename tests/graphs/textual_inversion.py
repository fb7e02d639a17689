"""Textual inversion."""

from .dreambooth import lesson
from .parts import compared


def textual_inversion(graph):
    graph.note(
        "# Textual inversion\n\nEight images have a look in common that the demo model has no word for: dark outlines. A new word is "
        "trained for it; the captions describe everything else, so the word means only that. Nothing else in the model changes. Then a "
        "prompt uses it for a thing that was in none of the images. The images of **without** have the same seeds.\n\nThe word is a file "
        "in the embeddings folder: use `embedding:outlined` in any prompt. Try: other images and captions; more vectors; "
        "`(embedding:outlined:1.3)`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images"):
        images, captions = lesson(graph, "an outlined style", 8, 0, "outlined style", "<outlined>")
        graph.add("PreviewImage", title="images to learn from", images=images)
    with graph.group("3 Train a word"):
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions=captions, caption_dropout=0.0),
            validation_options=graph.add("ValidationOptions", count=0, cfg=4.0),
        )
        trained = graph.add(
            "TIEmbeddingTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name="outlined",
            placeholder="<outlined>", initial_words="drawing", vectors=2, steps=100, learning_rate=0.02, validation_prompt="a car on grass, {}", **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("4 Use it"):
        text = "a cat on grass, <outlined>"
        named = graph.add("StringReplace", title="prompt with the word", string=text, find="<outlined>", replace=trained["word"])
        ways = (("without", model["model"], text.replace(", <outlined>", "")), ("with the word", model["model"], named))
        compared(graph, model, ways, 2, "textual_inversion")


WORKFLOWS = [textual_inversion]
