"""What came of an inversion."""

from .parts import scene, scene_prompts

SEED, STRAWBERRY = 94, "a large strawberry in the middle on a beach"


def inversion_report(graph):
    graph.note(
        "# Inversion Report: how good is an inversion?\n\nDDIM inverts a drawn image, and Inversion Sampler reconstructs it with "
        "guidance: plainly, and with the *direct* branch, which keeps the source on its trajectory and edits next to it. Each report "
        "shows the image, the round trip of the VAE alone, the reconstruction and the edit, with numbers: a higher PSNR is closer to the "
        "image.\n\nTry: cfg 1 in **plain**; more steps; *fixed_point_iterations* 5. The inversion is saved in output/inversions."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, STRAWBERRY.replace("a large strawberry", "a large apple"), STRAWBERRY)
    with graph.group("2 Image"):
        drawn = scene(graph, SEED)
    with graph.group("3 Inversion"):
        given = dict(model=model["model"], source=source, image=drawn, vae=model["vae"])
        found = graph.add("DDIMInverter", steps=30, scheduler="normal", **given)
        kept = graph.add("SaveInversion", inversion=found["inversion"], filename_prefix="inversion_report")
    shared = dict(model=model["model"], inversion=kept["inversion"], cfg=7.5, negative=negative, vae=model["vae"])
    with graph.group("4 Reconstruct and edit"):
        back = graph.add("InversionSampler", title="plain", branches="edit", **shared)["image"]
        both = graph.add("InversionSampler", title="direct", branches="direct", positive=target, **shared)["image"]
        parts = enumerate(("source", "edit"))
        first, second = (graph.add("ImageFromBatch", title=title, image=both, batch_index=i, length=1) for i, title in parts)
    with graph.group("5 Reports"):
        about = dict(reference=drawn, inversion=kept["inversion"], vae=model["vae"])
        made = {"plain": dict(reconstruction=back), "direct": dict(reconstruction=first, edit=second)}
        reports = {title: graph.add("InversionReport", title=title, **images, **about) for title, images in made.items()}
        for title, report in reports.items():
            graph.add("SaveImage", title=title, images=report["report"], filename_prefix=f"inversion_report_{title}")
    with graph.group("6 Images"):
        for title, image in (("image", drawn), ("plain", back), ("direct", first), ("edit", second)):
            graph.add("PreviewImage", title=title, images=image)


WORKFLOWS = [inversion_report]
