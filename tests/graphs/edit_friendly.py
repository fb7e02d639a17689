"""Edit-friendly inversion."""

from .parts import SCENE, saved, scene, scene_prompts


def edit_friendly(graph):
    graph.note(
        "# Edit-friendly inversion\n\nFinds the noise of stochastic sampling that makes exactly this painted image. The same prompt gives "
        "the image back exactly; another prompt keeps its layout, even with a large cfg.\n\nTry: *skip* 0 and 0.6; another seed."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, SCENE.replace("blue square", "yellow circle"))
    with graph.group("2 Image"):
        image = scene(graph)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, image=image, vae=model["vae"])
        found = graph.add("EditFriendlyInverter", steps=20, scheduler="normal", skip=0.2, cfg=1.0, **shared)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model["model"], inversion=found, branches="edit")
        ways = {"back": dict(cfg=1.0), "edit": dict(cfg=7.5, positive=target, negative=negative)}
        latents = {title: graph.add("InversionSampler", title=title, **how, **way)["latent"] for title, how in ways.items()}
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in latents.items():
            saved(graph, model["vae"], latent, "edit_friendly", title)


WORKFLOWS = [edit_friendly]
