"""Inversions as files."""

from .parts import prompt_nodes, saved

PENGUIN = "a penguin on the left and a small red umbrella on the right before a brick wall"  # as tests/demo/make_inversion.py says


def inversion_files(graph):
    graph.note(
        "# Invert once, edit many times\n\nAn inversion of a drawn image, loaded from a file, and two edits of it: a blue umbrella, and "
        "an owl for the penguin. **reconstruct** has no new prompt: it gives the image back. No edit inverts again.\n\nTry: *a large red "
        "umbrella*, *a cat*; cfg 2 to 7.5. To save your own inversions, connect *Save Inversion* to any inverter."
    )
    with graph.group("1 Model and inversion"):
        model = graph.add("DemoModelLoader")
        found = graph.add("LoadInversion", model=model["model"], name="demo_model.safetensors")
    with graph.group("2 Prompts"):
        texts = {"another color": PENGUIN.replace("red", "blue"), "another animal": PENGUIN.replace("a penguin", "an owl")}
        first, second, negative = prompt_nodes(graph, model, **texts, negative="")

    def replayed(title: str, cfg: float, **prompts):
        way = dict(model=model["model"], inversion=found["inversion"], cfg=cfg, branches="edit")
        return graph.add("InversionSampler", title=title, **way, **prompts)["latent"]

    with graph.group("3 Reconstruct and edit"):
        latents = {
            "reconstructed": replayed("reconstruct", 1.0),
            "another color": replayed("first edit", 4.0, positive=first, negative=negative),
            "another animal": replayed("second edit", 4.0, positive=second, negative=negative),
        }
    with graph.group("4 Images"):
        graph.add("PreviewImage", title="image", images=graph.add("VAEDecode", samples=found["image"], vae=model["vae"]))
        for title, latent in latents.items():
            saved(graph, model["vae"], latent, "inversion_files", title)


WORKFLOWS = [inversion_files]
