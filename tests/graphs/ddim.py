"""DDIM inversion, reconstruction and edit."""

from .parts import SCENE, half, saved, scene, scene_prompts


def ddim_inversion(graph):
    graph.note(
        "# DDIM inversion: from an image back to its noise\n\nThe model did not make this image. DDIM inversion finds the noise from "
        "which it *would* make it, so that the image can be edited with a new prompt: **edit in the mask** makes the umbrella red and "
        "keeps the left half.\n\nThe other images show how exact that noise is. Without guidance it gives almost the same image, with "
        "fixed-point iterations exactly what the VAE keeps of it; with guidance the result drifts away.\n\nTry: another color, or *a "
        "yellow balloon*; more *steps*; *branches* `direct`."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, SCENE.replace("yellow", "red"))
    with graph.group("2 Image and mask"):
        image, mask = scene(graph), half(graph, False)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], steps=20, scheduler="normal")
        plain = graph.add("DDIMInverter", title="DDIM", **shared)["inversion"]
        exact = graph.add("DDIMInverter", title="with fixed point", fixed_point_iterations=5, **shared)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        ways = {
            "back": dict(inversion=plain, cfg=1.0),
            "back, fixed point": dict(inversion=exact, cfg=1.0),
            "back with guidance": dict(inversion=plain, cfg=7.5, negative=negative),
            "edit in the mask": dict(inversion=plain, cfg=4.0, negative=negative, positive=target, mask=mask),
        }
        latents = {title: graph.add("InversionSampler", title=title, model=model["model"], **way)["latent"] for title, way in ways.items()}
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in latents.items():
            saved(graph, model["vae"], latent, "ddim_inversion", title)


WORKFLOWS = [ddim_inversion]
