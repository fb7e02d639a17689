"""Exact inversions: EDICT, BDIA and O-BELM."""

from .parts import SCENE, saved, scene, scene_prompts


def exact_inversion(graph):
    graph.note(
        "# Exact inversion\n\nEDICT inverts a painted image *with* guidance, and its latent comes back to the last digit; the remaining "
        "difference comes from the VAE. Another prompt edits it. BDIA and O-BELM are as exact at half of EDICT's cost.\n\nTry another "
        "color or shape in the target; cfg 1 in the inverter and 3 in the sampler, which changes more; 10 steps."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, SCENE.replace("blue", "yellow"))
    with graph.group("2 Image"):
        image = scene(graph)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, negative=negative, image=image, vae=model["vae"])
        found = {name: graph.add(node, steps=20, scheduler="karras", cfg=3.0, **shared)["inversion"] for name, node in INVERTERS.items()}
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model["model"], cfg=3.0, branches="edit")
        latents = {f"{name}, back": graph.add("InversionSampler", title=name, inversion=i, **way)["latent"] for name, i in found.items()}
        edit = graph.add("InversionSampler", title="EDICT, edit", inversion=found["EDICT"], positive=target, **way)["latent"]
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in {"EDICT, edit": edit, **latents}.items():
            saved(graph, model["vae"], latent, f"exact_inversion_{title.replace(', ', '_')}", title)


INVERTERS = {"EDICT": "EDICTInverter", "BDIA": "BDIAInverter", "O-BELM": "BELMInverter"}
WORKFLOWS = [exact_inversion]
