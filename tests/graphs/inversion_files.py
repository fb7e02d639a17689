"""Inversions as files."""

from .parts import prompt_nodes, saved


def inversion_files(graph):
    graph.note(
        "# Invert once, edit many times\n\nAn inversion of a painted image, loaded from a file, and two edits of it. **reconstruct** "
        "has no new prompt: it reconstructs the image.\n\nTry another color or shape; cfg 2 to 7.5. To save your own inversions, connect "
        "*Save Inversion* to any inverter."
    )
    with graph.group("1 Model and inversion"):
        model = graph.add("DemoModelLoader")
        found = graph.add("LoadInversion", model=model["model"], name="shapes_model.safetensors")
    with graph.group("2 Prompts"):
        texts = {
            "another color": "a yellow circle on the left and a blue star on the right on a white background",
            "another shape": "a red circle on the left and a blue cross on the right on a white background",
        }
        first, second, negative = prompt_nodes(graph, model, **texts, negative="")

    def replayed(title: str, cfg: float, **prompts):
        way = dict(model=model["model"], inversion=found["inversion"], cfg=cfg, branches="edit")
        return graph.add("InversionSampler", title=title, **way, **prompts)["latent"]

    with graph.group("3 Reconstruct and edit"):
        latents = {
            "reconstructed": replayed("reconstruct", 1.0),
            "another color": replayed("first edit", 4.0, positive=first, negative=negative),
            "another shape": replayed("second edit", 4.0, positive=second, negative=negative),
        }
    with graph.group("4 Images"):
        graph.add("PreviewImage", title="image", images=graph.add("VAEDecode", samples=found["image"], vae=model["vae"]))
        for title, latent in latents.items():
            saved(graph, model["vae"], latent, "inversion_files", title)


WORKFLOWS = [inversion_files]
