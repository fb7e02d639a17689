"""What came of an inversion."""

from .parts import scene, scene_prompts

SEED, STRAWBERRY = 94, "a large strawberry in the middle on a beach"


def inversion_report(graph):
    graph.note(
        "# Inversion Report: how good is an inversion?\n\nDDIM inverts a drawn image. Inversion Sampler reconstructs it with guidance "
        "and makes the strawberry an apple: in the first report plainly, in the second with the *direct* branch, which keeps the source "
        "on its trajectory. Each report shows the image, the round trip of the VAE alone, the reconstruction and the edit. A higher PSNR "
        "is closer to the image.\n\nTry: cfg 1; more steps; *fixed_point_iterations* 5. The inversion is saved in output/inversions."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, STRAWBERRY.replace("a large strawberry", "a large apple"), STRAWBERRY)
    with graph.group("2 Image"):
        image = scene(graph, SEED)
    with graph.group("3 Inversion"):
        given = dict(model=model["model"], source=source, image=image, vae=model["vae"])
        found = graph.add("DDIMInverter", steps=30, scheduler="normal", **given)
        kept = graph.add("SaveInversion", inversion=found["inversion"], filename_prefix="inversion_report")["inversion"]
    with graph.group("4 Reconstruct and edit"):
        shared = dict(model=model["model"], inversion=kept, cfg=7.5, negative=negative, positive=target, vae=model["vae"])
        ways = {"plain": "source and edit", "direct": "direct"}
        both = {title: graph.add("InversionSampler", title=title, branches=way, **shared)["image"] for title, way in ways.items()}
    with graph.group("5 Reports"):
        reports = [report(graph, image, kept, images, title, vae=model["vae"]) for title, images in both.items()]
    with graph.group("6 Both"):
        graph.add("SaveImage", title="the reports", images=stitched(graph, reports), filename_prefix="inversion_report")


def report(graph, image, inversion, both, title: str, **given):
    """A report of the reconstruction and the edit next to the image; `both` holds one of each."""
    parts = enumerate(("back", "edit"))
    back, edit = (graph.add("ImageFromBatch", title=f"{title}: {t}", image=both, batch_index=i, length=1) for i, t in parts)
    given |= dict(reference=image, inversion=inversion, reconstruction=back, edit=edit, headline=title)
    return graph.add("InversionReport", title=title, **given)["report"]


def stitched(graph, images):
    """Images as one, below each other in their own sizes."""
    whole = images[0]
    for image in images[1:]:
        whole = graph.add("ImageStitch", image1=whole, image2=image, direction="down", match_image_size=False)
    return whole


WORKFLOWS = [inversion_report]
