"""DiffEdit."""

from .parts import ksampler, prompt_nodes, saved, scene

EDIT = dict(steps=20, cfg=4.0, scheduler="normal", encode_ratio=0.8)


def diffedit_start(graph, seed: int, before: str, after: str, dilate: float):
    """(what the nodes of an edit take, the target prompt, the mask node) for a scene, to be replaced by the user's own image."""
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        texts = {"source: describes the image": before, "target: describes the result": after}
        source, target, negative = prompt_nodes(graph, model, **texts, negative="")
    with graph.group("2 Image"):
        image = scene(graph, seed)
    with graph.group("3 Mask"):
        given = dict(model=model["model"], source=source, image=image, vae=model["vae"])
        found = graph.add("DiffEditMask", method="DiffEdit", target=target, seed=0, dilate=dilate, **given)
        graph.add("PreviewImage", title="before", images=image)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
        return given | dict(negative=negative), target, found


def diffedit(graph):
    graph.note(
        "# DiffEdit: change only what two prompts disagree about\n\nOne word changes, *blue* to *red*, and nobody paints a mask: the mask "
        "node adds noise to the image, predicts it under both prompts, and masks where the predictions differ. The sampler encodes the "
        "image with DDIM and denoises it with the target prompt. Outside the mask every pixel stays; **without the mask** the cat changes "
        "too.\n\nTry another word in the target: *dog* for *cat*, *yellow* for *blue*. Replace the image with *Load Image*."
    )
    before = "a cat on the left and a blue car on the right on a beach"
    given, target, found = diffedit_start(graph, 7269, before, before.replace("blue", "red"), dilate=0.025)
    with graph.group("4 Edit"):
        for title, mask in (("without the mask", {}), ("after", dict(mask=found["mask"]))):
            result = graph.add("DiffEditSampler", title=title, positive=target, **mask, **EDIT, **given)
            graph.add("SaveImage", title=title, images=result["image"], filename_prefix="diffedit")


def diffedit_ksampler(graph):
    graph.note(
        "# The mask in a KSampler\n\nThe same mask without the inversion: the latent output of DiffEdit Mask carries the mask, so any "
        "KSampler changes only the masked area. Here a cat becomes a dog, and the whole mask is drawn anew (denoise 1): each seed draws "
        "another dog.\n\nThe mask is enlarged a little (*dilate*) to give the new thing room. Try denoise 0.8."
    )
    before = "a cat in a meadow, in the middle"
    given, target, found = diffedit_start(graph, 2495, before, before.replace("cat", "dog"), dilate=0.05)
    with graph.group("4 Sample"):
        twice = graph.add("RepeatLatentBatch", samples=found["latent"], amount=2)
        latent = ksampler(graph, given["model"], target, given["negative"], twice, seed=7)
        saved(graph, given["vae"], latent, "diffedit_ksampler", "after")


WORKFLOWS = [diffedit, diffedit_ksampler]
