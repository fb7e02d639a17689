"""All inversions side by side."""

from .parts import TWO_SQUARES, square_prompts, two_squares

STEPS = 16
EXACT = {"cfg": 3.0, "scheduler": "karras"}
# title: inverter, its settings, cfg and branches of Inversion Sampler
METHODS = {
    "DDIM": ("DDIMInverter", {}, 7.5, "source and edit"),
    "fixed point": ("DDIMInverter", {"fixed_point_iterations": 5}, 1.0, "source and edit"),
    "direct": ("DDIMInverter", {}, 7.5, "direct"),
    "negative-prompt": ("NegativePromptInverter", {}, 7.5, "source and edit"),
    "null-text": ("NullTextInverter", {}, 7.5, "source and edit"),
    "edit-friendly": ("EditFriendlyInverter", {"cfg": 3.5, "skip": 0.2}, 3.5, "source and edit"),
    "EDICT": ("EDICTInverter", EXACT, 3.0, "source and edit"),
    "BDIA": ("BDIAInverter", EXACT, 3.0, "source and edit"),
    "O-BELM": ("BELMInverter", EXACT, 3.0, "source and edit"),
}
BRING_THEIR_OWN = ("NegativePromptInverter", "NullTextInverter")  # negative


def inversion_methods(graph):
    graph.note(
        "# Which inversion when\n\nOne painted image, every inversion, one edit. For each method the sheet shows the image, the "
        "reconstruction under its own prompt, and the edit under the new one, both from one run of *Inversion Sampler*.\n\nDDIM with "
        "guidance loses the image; *direct* keeps it on its trajectory; the exact methods reconstruct it with any guidance. The help page "
        "of Inversion Sampler says which to use.\n\nTry another color, shape or thing in the target; more steps; your own image."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = square_prompts(graph, model, TWO_SQUARES.replace("blue", "yellow"))
    with graph.group("2 Image"):
        image = two_squares(graph)
    with graph.group("3 Inversions"):
        found = {title: inverted(graph, model, source, negative, image, title) for title in METHODS}
    with graph.group("4 Reconstruct and edit"):
        images = {}
        for title, (node, _, cfg, branches) in METHODS.items():
            given = {} if node in BRING_THEIR_OWN else {"negative": negative}
            way = dict(inversion=found[title], cfg=cfg, branches=branches, positive=target)
            latent = graph.add("InversionSampler", title=title, model=model["model"], **way, **given)
            images[title] = graph.add("VAEDecode", title=title, samples=latent, vae=model["vae"])
    with graph.group("5 Reports"):
        reports = [report(graph, image, found[title], both, title) for title, both in images.items()]
    with graph.group("6 The sheet"):
        rows = [stitched(graph, reports[i : i + 3], "right") for i in range(0, len(reports), 3)]
        graph.add("SaveImage", title="all methods", images=stitched(graph, rows, "down"), filename_prefix="inversion_methods")


def inverted(graph, model, source, negative, image, title: str):
    node, knobs, *_ = METHODS[title]
    given = {} if node in ("DDIMInverter", *BRING_THEIR_OWN) else {"negative": negative}
    shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], steps=STEPS)
    return graph.add(node, title=title, **shared, **given, **{"scheduler": "normal"} | knobs)["inversion"]


def report(graph, image, inversion, both, title: str):
    """A report of the reconstruction and the edit next to the image; `both` holds one of each."""
    parts = enumerate(("back", "edit"))
    back, edit = (graph.add("ImageFromBatch", title=f"{title}: {t}", image=both, batch_index=i, length=1) for i, t in parts)
    given = dict(reference=image, inversion=inversion, reconstruction=back, edit=edit, headline=title)
    return graph.add("InversionReport", title=title, **given)["report"]


def stitched(graph, images, direction: str):
    """Images as one, in their own sizes."""
    whole = images[0]
    for image in images[1:]:
        whole = graph.add("ImageStitch", image1=whole, image2=image, direction=direction, match_image_size=False)
    return whole


WORKFLOWS = [inversion_methods]
