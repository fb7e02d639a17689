"""Textual inversion."""

from .parts import compared, images_of

SHOWN = tuple(f"a watercolor of {what}" for what in ("a cat on grass", "a house in the snow", "a red car on the beach", "an owl at night"))


def textual_inversion(graph):
    captions = [text.replace("watercolor", "<look>") for text in SHOWN for _ in range(2)]
    graph.note(
        "# Textual inversion\n\nEight images have a look in common. A new word is trained for it: in the captions it takes the place of "
        "the style, and the captions describe everything else, so the word means only that look. Nothing in the model changes. Then a "
        "prompt uses it for a thing that was in none of the images. The images of **without** have the same seeds.\n\nThe word is a file "
        "in the embeddings folder: use `embedding:look` in any prompt. It names what the model can draw. Try: other images and captions; "
        "more vectors; `(embedding:look:1.3)`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images"):
        images = graph.add("BatchImagesNode", images=images_of(graph, model, SHOWN, each=2))
        graph.add("PreviewImage", title="images to learn from", images=images)
    with graph.group("3 Train a word"):
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions="\n".join(captions), caption_dropout=0.0),
            validation_options=graph.add("ValidationOptions", count=0),
        )
        trained = graph.add(
            "TIEmbeddingTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name="look", placeholder="<look>",
            initial_words="cartoon", steps=80, learning_rate=0.02, validation_prompt="a {} of a car on grass", **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("4 Use it"):
        plain = "a large castle in the desert"
        text = f"a <look> of {plain}"
        named = graph.add("StringReplace", title="prompt with the word", string=text, find="<look>", replace=trained["word"])
        ways = (("without", model["model"], plain), ("with the word", model["model"], named))
        compared(graph, model, ways, 2, "textual_inversion")


WORKFLOWS = [textual_inversion]
