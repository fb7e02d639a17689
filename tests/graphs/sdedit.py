"""SDEdit."""

from .parts import SIDE, color, half, prompt_nodes, scene, stroke

KNOBS = dict(seed=2, steps=20, cfg=4.0, sampler_name="euler_ancestral", scheduler="normal")
KNOBS |= dict(strength_unit="percent", process="VP", repeats=1)
SKY, SAND, RED = (110, 175, 240), (225, 195, 140), (205, 45, 45)


def car_of_paint(graph, image, x: int, y: int):
    """Two strokes: a body and a roof."""
    return stroke(graph, stroke(graph, image, RED, x, y, 80, 28), RED, x + 20, y - 22, 44, 22)


def sdedit(graph):
    graph.note(
        "# SDEdit: strokes to image\n\nA few rough strokes of paint show where sky, sand and car go. The sampler adds noise up to the "
        "*strength* and denoises with the prompt: at 0.4 it is faithful to the strokes, at 0.8 it is free to draw a real car.\n\nTry: "
        "another prompt, as *a strawberry on the beach*; *repeats* 2; process VE."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        positive, negative = prompt_nodes(graph, model, positive="a red car on the beach", negative="")
    with graph.group("2 Paint"):
        sky = graph.add("EmptyImage", title="sky", width=SIDE, height=SIDE, batch_size=1, color=color(*SKY))
        strokes = car_of_paint(graph, stroke(graph, sky, SAND, 0, 96, SIDE, 96), 60, 104)
        graph.add("PreviewImage", title="strokes", images=strokes)
    with graph.group("3 Sample"):
        given = dict(model=model["model"], positive=positive, negative=negative, guide=strokes, vae=model["vae"])
        for strength in (0.4, 0.6, 0.8):
            result = graph.add("SDEditSampler", title=f"strength {strength}", strength=strength, **given, **KNOBS)
            graph.add("SaveImage", title=f"image at {strength}", images=result["image"], filename_prefix="sdedit")


def sdedit_masked(graph):
    graph.note(
        "# SDEdit with a mask\n\nStrokes of paint on the right half of an image become a car, and a mask allows changes only there: the "
        "left half stays the same, to the last pixel; **without the mask** the palm tree changes too.\n\nConnect your own image and mask "
        "instead (right click, *Open in MaskEditor*)."
    )
    with graph.group("1 Model and image"):
        model = graph.add("DemoModelLoader")
        text = "a small palm tree on the left and a red car on the right on the beach"
        positive, negative = prompt_nodes(graph, model, positive=text, negative="")
        original = scene(graph, 750)
    with graph.group("2 Paint and mask"):
        painted, mask = car_of_paint(graph, original, 104, 124), half(graph, False)
        graph.add("PreviewImage", title="before", images=original)
        graph.add("PreviewImage", title="painted", images=painted)
    with graph.group("3 Sample"):
        given = dict(model=model["model"], positive=positive, negative=negative, guide=painted, vae=model["vae"], original=original)
        for title, only in (("without the mask", {}), ("after", dict(mask=mask))):
            result = graph.add("SDEditSampler", title=title, strength=0.6, **only, **given, **KNOBS | {"seed": 8})
            graph.add("SaveImage", title=title, images=result["image"], filename_prefix="sdedit_masked")


WORKFLOWS = [sdedit, sdedit_masked]
