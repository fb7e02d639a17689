"""Exact inversions: EDICT, BDIA and O-BELM."""

from .parts import SCENE, saved, scene, scene_prompts

INVERTERS = {"EDICT": "EDICTInverter", "BDIA": "BDIAInverter", "O-BELM": "BELMInverter"}


def exact_inversion(graph):
    graph.note(
        "# Exact inversion: back to the last digit\n\nWith guidance, DDIM changes the image: compare **DDIM, back**. EDICT inverts the "
        "same image *with* guidance, and its latent comes back to the last digit; the remaining difference comes from the VAE. Another "
        "prompt makes the tree a cactus and keeps the rest. BDIA and O-BELM are as exact at half of EDICT's cost.\n\nTry: *a palm tree*; "
        "cfg 1 in the inverter and 3 in the sampler, which changes more and suits other colors; 10 steps."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, SCENE.replace("a tree", "a cactus"))
    with graph.group("2 Image"):
        image = scene(graph)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], steps=20, scheduler="karras")
        found = {name: graph.add(node, cfg=3.0, negative=negative, **shared)["inversion"] for name, node in INVERTERS.items()}
        plain = graph.add("DDIMInverter", **shared)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model["model"], cfg=3.0, branches="edit")
        back = {f"{name}, back": graph.add("InversionSampler", title=name, inversion=i, **way)["latent"] for name, i in found.items()}
        drift = graph.add("InversionSampler", title="DDIM", inversion=plain, negative=negative, **way)["latent"]
        edit = graph.add("InversionSampler", title="EDICT, edit", inversion=found["EDICT"], positive=target, **way)["latent"]
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        exact = back.pop("EDICT, back")
        for title, latent in {**back, "DDIM, back": drift, "EDICT, back": exact, "EDICT, edit": edit}.items():
            saved(graph, model["vae"], latent, f"exact_inversion_{title.replace(', ', '_')}", title)


WORKFLOWS = [exact_inversion]
