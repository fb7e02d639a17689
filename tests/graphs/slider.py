"""A slider trained from two prompts."""

from .parts import ksampler, latent_size, saved

PRESERVE = """red car on grass
cat in the snow
house on the beach
tree in the desert
yellow umbrella in front of a brick wall
castle at night"""


def slider(graph):
    graph.note(
        "# Concept slider\n\nA LoRA whose strength is the size of things: it is trained from *a large ...* and *a small ...* alone, with no "
        "images. The model samples its own images of *a ...* to train on. What stands in *preserve* takes turns in place of `{}`, so that "
        "things, colors and places stay as they are.\n\nOne prompt and one seed at strengths -2 to 2. Try: `a watercolor of {}` and "
        "`a 3d render of {}`; another prompt; **Load LoRA** with the saved file."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 The two ends"):
        ends = {"learn.positive": "a large {}", "learn.negative": "a small {}", "learn.preserve": PRESERVE, "learn.count": 18}
        asked = graph.add("ConceptSlider", learn="prompts", **ends)
        look = graph.add("ValidationOptions", count=0, steps=10)
    with graph.group("3 Train"):
        trained = graph.add(
            "DreamBoothTrainer", **{k: model[k] for k in ("model", "clip", "vae")}, concept_slider=asked, validation_options=look,
            name="size-slider", instance_prompt="a {}", steps=40, batch_size=2, learning_rate=0.002, **{"train.rank": 4},
        )  # fmt: skip
    with graph.group("4 Use it"):
        positive = graph.add("CLIPTextEncode", title="positive", clip=model["clip"], text="a red car in the middle on grass")
        negative = graph.add("CLIPTextEncode", title="negative", clip=model["clip"], text="")
        size = latent_size(graph, 1)
        for strength in (-2.0, -1.0, 1.0, 2.0):
            used = graph.add("LoraModelLoader", title=f"strength {strength:g}", model=model["model"], lora=trained["lora"], strength_model=strength)
            saved(graph, model["vae"], ksampler(graph, used, positive, negative, size, seed=3), "slider", f"strength {strength:g}")


WORKFLOWS = [slider]
