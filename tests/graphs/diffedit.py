"""DiffEdit."""

from .parts import ksampler, latent_size, prompt_nodes, saved

EDIT = dict(steps=20, cfg=4.0, scheduler="normal", encode_ratio=0.8)


def diffedit_start(graph, before: str, after: str, dilate: float):
    """(what the nodes of an edit take, the target prompt, the mask node): an image of the demo model itself, to be replaced by the user's own."""
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        texts = {"source: describes the image": before, "target: describes the result": after}
        source, target, negative = prompt_nodes(graph, model, **texts, negative="")
    with graph.group("2 Image"):
        size = latent_size(graph, 1)
        latent = ksampler(graph, model["model"], source, negative, size, seed=8)
        image = graph.add("VAEDecode", samples=latent, vae=model["vae"])
    with graph.group("3 Mask"):
        given = dict(model=model["model"], source=source, image=image, vae=model["vae"])
        found = graph.add("DiffEditMask", method="DiffEdit", target=target, seed=0, dilate=dilate, **given)
        return given | dict(negative=negative), target, found


def diffedit(graph):
    graph.note(
        "# DiffEdit: change only what two prompts disagree about\n\nThe mask node adds noise to the image, predicts it under both "
        "prompts, and masks where the predictions differ. The sampler encodes the image with DDIM and denoises it with the target prompt. "
        "Outside the mask every pixel stays.\n\nTry another word in the target: a color, a shape, *striped*. Replace the image with *Load "
        "Image*."
    )
    before = "a red star on the left and a blue circle on the right on a white background"
    given, target, found = diffedit_start(graph, before, before.replace("blue", "yellow"), dilate=0.025)
    with graph.group("4 Edit"):
        result = graph.add("DiffEditSampler", positive=target, mask=found["mask"], **EDIT, **given)
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="before", images=given["image"])
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
        graph.add("SaveImage", title="after", images=result["image"], filename_prefix="diffedit")


def diffedit_ksampler(graph):
    graph.note(
        "# The mask in a KSampler\n\nThe same mask without the inversion: the latent output of DiffEdit Mask carries the mask, so any "
        "KSampler changes only the masked area. Here a triangle becomes a square, and the whole mask is drawn anew (denoise 1).\n\nThe "
        "mask is enlarged a little (*dilate*) to give the new thing room. Try denoise 0.8."
    )
    before = "a large green triangle on a pink background"
    given, target, found = diffedit_start(graph, before, before.replace("triangle", "square"), dilate=0.03)
    with graph.group("4 Sample"):
        latent = ksampler(graph, given["model"], target, given["negative"], found["latent"], seed=3)
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="before", images=given["image"])
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
        saved(graph, given["vae"], latent, "diffedit_ksampler", "after")


WORKFLOWS = [diffedit, diffedit_ksampler]
