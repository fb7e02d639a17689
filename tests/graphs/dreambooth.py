"""A subject taught to the model."""

from .parts import color, ksampler, latent_size, saved

PAPERS = {"white": (245, 245, 245), "black": (20, 20, 20), "pink": (247, 188, 200), "gray": (150, 150, 150)}
PAINTS = {"red": (214, 40, 40), "yellow": (245, 214, 66), "blue": (48, 92, 214), "orange": (242, 140, 40)}
SHOWN = (("white", "red", 40, 40), ("black", "yellow", 38, 42), ("pink", "blue", 42, 38), ("gray", "orange", 40, 42))


def tee(graph):
    """A mask of a shape that the demo model never saw."""
    bars = [graph.add("SolidMask", title=t, value=1.0, width=w, height=h) for t, w, h in (("bar", 48, 16), ("stem", 16, 48))]
    nothing = graph.add("SolidMask", title="nothing", value=0.0, width=48, height=48)
    half = graph.add("MaskComposite", title="bar of the T", destination=nothing, source=bars[0], x=0, y=0, operation="add")
    return graph.add("MaskComposite", title="T", destination=half, source=bars[1], x=16, y=0, operation="add")


def subjects(graph, mask):
    """Painted images of it."""
    made = []
    for paper, paint, x, y in SHOWN:
        ground = graph.add("EmptyImage", title=paper, width=128, height=128, batch_size=1, color=color(*PAPERS[paper]))
        fill = graph.add("EmptyImage", title=paint, width=48, height=48, batch_size=1, color=color(*PAINTS[paint]))
        made.append(graph.add("ImageCompositeMasked", destination=ground, source=fill, mask=mask, x=x, y=y, resize_source=False))
    return graph.add("BatchImagesNode", images=made)


def dreambooth(graph):
    graph.note(
        "# DreamBooth\n\nFour painted images show a shape that is new to the demo model. A LoRA and a new word learn it. Class images, "
        "which the model makes itself, preserve the shapes that it knows. Then the word is used in new colors and places. The "
        "images of **the model as it was** have the same seeds.\n\nThis is a short training. Try: more steps; **Class Images** disconnected, and see "
        "what happens to the other shapes; *if_exists* `continue`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Images of the subject"):
        images = subjects(graph, tee(graph))
        graph.add("PreviewImage", title="the subject", images=images)
    with graph.group("3 What to keep and to add"):
        captions = "\n".join(f"a {paint} <tee> in the center on a {paper} background" for paper, paint, _, _ in SHOWN)
        known = "a red circle on a white background\na blue star in the center on a pink background"
        options = dict(
            dataset_options=graph.add("DatasetOptions", captions=captions),
            class_images=graph.add("ClassImages", class_prompt=known, class_count=4, prior_weight=0.5),
            new_word=graph.add("NewWord", placeholder="<tee>", initial_words="shape", word_rate=0.01),
            validation_options=graph.add("ValidationOptions", count=0, steps=10, cfg=4.0),
        )
    with graph.group("4 Train"):
        trained = graph.add(
            "DreamBoothTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name="tee", instance_prompt="a <tee>",
            steps=110, batch_size=2, learning_rate=0.005, **{"train.layers": "-out.2, -emb"}, **options,
        )  # fmt: skip
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("5 Use it"):
        text = "a green <tee> in the center on a white background"
        named = graph.add("StringReplace", title="prompt", string=text, find="<tee>", replace=trained["word"])
        positive = graph.add("CLIPTextEncode", title="positive", clip=model["clip"], text=named)
        negative = graph.add("CLIPTextEncode", title="negative", clip=model["clip"], text="")
        size = latent_size(graph, 2)
        for title, used in (("the model as it was", model["model"]), ("with the LoRA", trained["model"])):
            saved(graph, model["vae"], ksampler(graph, used, positive, negative, size, seed=3), "dreambooth", title)


WORKFLOWS = [dreambooth]
