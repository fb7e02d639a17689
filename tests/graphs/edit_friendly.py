"""Edit-friendly inversion."""

from .parts import prompt_nodes, saved, scene

SEED, CAR = 5237, "a large red car on a lawn"


def edit_friendly(graph):
    graph.note(
        "# Edit-friendly inversion: big changes, same layout\n\nA stochastic sampler adds new noise at each step. This finds the noises "
        "that make exactly this drawn image. With the same prompt they give it back; with another prompt the car becomes blue or stands "
        "in the desert, at the same place.\n\nTry: *skip* 0 for freer edits, 0.6 for gentler ones; another seed; cfg 7.5; *a large red "
        "car in the snow*."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        edits = {"another color": CAR.replace("red", "blue"), "another ground": CAR.replace("on a lawn", "in the desert")}
        source, *targets, negative = prompt_nodes(graph, model, **{"source: describes the image": CAR, **edits, "negative": ""})
    with graph.group("2 Image"):
        image = scene(graph, SEED)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, image=image, vae=model["vae"])
        found = graph.add("EditFriendlyInverter", steps=20, scheduler="normal", skip=0.3, cfg=1.0, seed=2, **shared)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        way = dict(model=model["model"], inversion=found, branches="edit")
        ways = {"back": dict(cfg=1.0), **{title: dict(cfg=5.0, negative=negative, positive=text) for title, text in zip(edits, targets)}}
        latents = {title: graph.add("InversionSampler", title=title, **how, **way)["latent"] for title, how in ways.items()}
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in latents.items():
            saved(graph, model["vae"], latent, "edit_friendly", title)


WORKFLOWS = [edit_friendly]
