"""A subject taught to the model."""

from .parts import compared, demo_images


def dreambooth(graph):
    graph.note(
        "# DreamBooth\n\nThe demo model has never seen a whale. Six images show one; a LoRA and a new word learn it. Then the word puts "
        "the same whale into a desert, where none of the images had it. The images of **the model as it was** have the same seeds.\n\nThis "
        "is a short training. Try: other grounds; more steps; *a rocket*; *if_exists* `continue`. Other things become a bit like the "
        "whale: connect *Class Images*, and they stay as they were."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images of the subject"):
        shown = demo_images(graph, "a whale", 6, 3100)
        captions = graph.add("StringReplace", title="captions", string=shown["captions"], find="whale", replace="<whale>")
        graph.add("PreviewImage", title="the subject", images=shown["images"])
    with graph.group("3 Options"):
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions=captions),
            training_options=graph.add("TrainingOptions", timesteps="shifted"),
            new_word=graph.add("NewWord", placeholder="<whale>", initial_words="elephant", word_rate=0.01),
            validation_options=graph.add("ValidationOptions", count=0),
        )
    with graph.group("4 Train"):
        trained = graph.add(
            "DreamBoothTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=shown["images"], name="whale",
            instance_prompt="a <whale>", steps=120, batch_size=4, learning_rate=0.005,
            **{"train.rank": 16, "train.layers": "-out.2, -emb"}, **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("5 Use it"):
        text = "a large <whale> in the desert"
        named = graph.add("StringReplace", title="prompt", string=text, find="<whale>", replace=trained["word"])
        ways = (("the model as it was", model["model"], named), ("with the LoRA", trained["model"], named))
        compared(graph, model, ways, 2, "dreambooth", seed=7)


WORKFLOWS = [dreambooth]
