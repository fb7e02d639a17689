"""FlowEdit."""

from .parts import half, scene, scene_prompts

SEED, CAT = 2674, "an orange balloon on the left and a cat on the right on the water"


def flow_edit(graph):
    graph.note(
        "# FlowEdit: edit an image without inverting it\n\nTwo prompts, one for the drawn image and one for the result. Each step adds "
        "the same noise for both and moves the image by the difference of the predictions, so the cat becomes a penguin and the rest "
        "stays. A mask keeps the other half to the last pixel.\n\nIt is for flow models; *Model Sampling as Flow* makes the demo model "
        "one, exactly. The same rule also works directly with eps and v models: **edit, eps model**.\n\nTry: *a green balloon* without "
        "the mask; n_max 0, which gives the image back, and 0.9. With SD3 remove *Model Sampling as Flow*: 50 steps, n_max 0.66, "
        "source_cfg 3.5, cfg 13.5."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        flow = graph.add("ModelSamplingAsFlow", model=model["model"])["model"]
        source, target, negative = scene_prompts(graph, model, CAT.replace("cat", "penguin"), CAT)
    with graph.group("2 Image and mask"):
        image, mask = scene(graph, SEED), half(graph, False)
    with graph.group("3 Edit"):
        shared = dict(source=source, positive=target, negative=negative, image=image, vae=model["vae"], seed=1)
        knobs = {"steps": 20, "method.source_cfg": 1.5, "method.cfg": 7.5, "scheduler": "normal", "n_max": 0.75}
        ways = {"edit": dict(model=flow), "edit in the mask": dict(model=flow, mask=mask), "edit, eps model": dict(model=model["model"])}
        edits = {title: graph.add("FlowEditLatentSampler", title=title, **way, **shared, **knobs)["image"] for title, way in ways.items()}
    with graph.group("4 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, edit in edits.items():
            graph.add("SaveImage", title=title, images=edit, filename_prefix="flow_edit")


WORKFLOWS = [flow_edit]
