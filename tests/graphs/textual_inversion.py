"""Textual inversion."""

from .parts import compared, images_of

SHOWN = ("a large striped blue circle on a black background", "a striped red square on a white background")


def textual_inversion(graph):
    captions = [text.replace("striped", "<pattern>") for text in SHOWN for _ in range(4)]
    graph.note(
        "# Textual inversion\n\nEight images have something in common. A new word is trained for it: in the captions it takes the place "
        "of an adjective, and the captions describe everything else, so the word means only that. Then a prompt uses it for things that "
        "were in none of the images. The images of **without** have the same seeds.\n\nThe word is a file in the embeddings "
        "folder: use `embedding:pattern` in any prompt. Try: other images and captions; more vectors; `(embedding:pattern:1.3)`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images"):
        images = graph.add("BatchImagesNode", images=images_of(graph, model, SHOWN, each=4))
        graph.add("PreviewImage", title="images to learn from", images=images)
    with graph.group("3 Train a word"):
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions="\n".join(captions)),
            validation_options=graph.add("ValidationOptions", cfg=4.0),
        )
        trained = graph.add(
            "TIEmbeddingTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name="pattern", placeholder="<pattern>",
            steps=100, learning_rate=0.02, validation_prompt="a {} yellow cross on a gray background", **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("4 Use it"):
        text = "a <pattern> green triangle on a pink background"
        named = graph.add("StringReplace", title="prompt with the word", string=text, find="<pattern>", replace=trained["word"])
        ways = (("without", model["model"], text.replace(" <pattern>", "")), ("with the word", model["model"], named))
        compared(graph, model, ways, 4, "textual_inversion")


WORKFLOWS = [textual_inversion]
