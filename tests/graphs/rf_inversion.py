"""RF-Inversion on a flow model."""

from .parts import prompt_nodes, saved, scene

SEED, UMBRELLA = 8274, "a large red umbrella on a table, in the center"


def rf_inversion(graph):
    graph.note(
        "# RF-Inversion: edit images with flow models\n\nThe inversion of a drawn image is pulled towards noise that the model knows; "
        "the first steps back are pulled towards the image. So the umbrella becomes blue, or a flower grows in its place, and table and "
        "wall stay.\n\n*Model Sampling as Flow* makes the demo model a flow model, exactly. A longer *eta* keeps more, a shorter one "
        "edits more.\n\nTry: *eta_end_percent* 0 and 0.5; *gamma* 0 and 1. With SD3 or Flux remove *Model Sampling as Flow*: 28 steps, "
        "eta up to 0.25, an empty source."
    )
    with graph.group("1 Model"):
        demo = graph.add("DemoModelLoader")
        model = graph.add("ModelSamplingAsFlow", model=demo["model"])["model"]
    with graph.group("2 Prompts"):
        edits = {"another color": UMBRELLA.replace("red", "blue"), "another thing": UMBRELLA.replace("umbrella", "flower")}
        source, *targets, negative = prompt_nodes(graph, demo, **{"source: describes the image": UMBRELLA, **edits, "negative": ""})
    with graph.group("3 Image and inversion"):
        image = scene(graph, SEED)
        knobs = dict(steps=20, scheduler="normal", gamma=0.5, eta=0.9, eta_end_percent=0.3, seed=1)
        found = graph.add("RFInverter", model=model, source=source, image=image, vae=demo["vae"], **knobs)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model, inversion=found, branches="edit")
        ways = {"back": dict(cfg=1.0), **{title: dict(cfg=7.5, negative=negative, positive=text) for title, text in zip(edits, targets)}}
        latents = {title: graph.add("InversionSampler", title=title, **how, **way)["latent"] for title, how in ways.items()}
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in latents.items():
            saved(graph, demo["vae"], latent, "rf_inversion", title)


WORKFLOWS = [rf_inversion]
