"""RF-Inversion on a flow model."""

from .parts import SCENE, prompt_nodes, saved, scene


def rf_inversion(graph):
    graph.note(
        "# RF-Inversion\n\nFor flow models. *Model Sampling as Flow* makes the demo model one, exactly. The inversion is pulled towards "
        "noise that the model knows, the reconstruction towards the image while *eta* acts: a longer range keeps more, a shorter one "
        "edits more.\n\nTry *eta_end_percent* 0 and 0.5; *gamma* 0 and 1. With SD3 or Flux remove *Model Sampling as Flow*: 28 steps, eta "
        "up to 0.25, an empty source."
    )
    with graph.group("1 Model"):
        demo = graph.add("DemoModelLoader")
        model = graph.add("ModelSamplingAsFlow", model=demo["model"])["model"]
    with graph.group("2 Prompts"):
        other = {"another color": SCENE.replace("blue", "yellow"), "another shape": SCENE.replace("blue square", "blue star")}
        texts = {"source: describes the image": SCENE, **other, "negative": ""}
        source, recolored, shape, negative = prompt_nodes(graph, demo, **texts)
    with graph.group("3 Image and inversion"):
        image = scene(graph)
        knobs = dict(steps=20, scheduler="normal", gamma=0.5, eta=0.9, eta_end_percent=0.3, seed=1)
        found = graph.add("RFInverter", model=model, source=source, image=image, vae=demo["vae"], **knobs)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model, inversion=found, branches="edit")
        edit = dict(cfg=7.5, negative=negative)
        ways = {"back": dict(cfg=1.0), "another color": dict(positive=recolored, **edit), "another shape": dict(positive=shape, **edit)}
        latents = {title: graph.add("InversionSampler", title=title, **how, **way)["latent"] for title, how in ways.items()}
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in latents.items():
            saved(graph, demo["vae"], latent, "rf_inversion", title)


WORKFLOWS = [rf_inversion]
