"""A subject taught to the model."""

from .parts import compared, demo_images

IMAGES, SEED = 6, 0


def lesson(graph, name: str, count: int = IMAGES, seed: int = SEED, show: str = "", named: str = ""):
    """(images, captions) of Load Demo Images whose captions say `<name>`."""
    shown = demo_images(graph, show or f"a {name}", count, seed)
    captions = graph.add("StringReplace", title="captions", string=shown["captions"], find=named or name, replace=f"<{name}>")
    return shown["images"], captions


def with_word(graph, text: str, name: str, word):
    """A prompt in which a trained word stands in the place of its placeholder."""
    return graph.add("StringReplace", title="prompt", string=text, find=f"<{name}>", replace=word)


def dreambooth(graph):
    graph.note(
        "# DreamBooth\n\nThe demo model has never seen a whale. Six images show one; a LoRA and a new word learn it. Class images, which "
        "the model makes itself, preserve the things that it knows. Then the word puts a whale where none of the images had one. The "
        "images of **the model as it was** have the same seeds.\n\nThis is a short training. Try: more steps; *a rocket*; **Class Images** "
        "disconnected, and see what happens to the other things; *if_exists* `continue`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images of the subject"):
        images, captions = lesson(graph, "whale")
        graph.add("PreviewImage", title="the subject", images=images)
    with graph.group("3 What to keep and to add"):
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions=captions),
            class_images=graph.add("ClassImages", class_prompt="an elephant on grass\na dog in the snow", class_count=4, prior_weight=0.5),
            new_word=graph.add("NewWord", placeholder="<whale>", initial_words="elephant", word_rate=0.01),
            validation_options=graph.add("ValidationOptions", count=0, steps=10, cfg=4.0),
        )
    with graph.group("4 Train"):
        trained = graph.add(
            "DreamBoothTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name="whale",
            instance_prompt="a <whale>", steps=110, batch_size=2, learning_rate=0.005, **{"train.layers": "-out.2, -emb"}, **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("5 Use it"):
        named = with_word(graph, "a large <whale> in the desert", "whale", trained["word"])
        ways = (("the model as it was", model["model"], named), ("with the LoRA", trained["model"], named))
        compared(graph, model, ways, 2, "dreambooth")


WORKFLOWS = [dreambooth]
