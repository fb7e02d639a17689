"""SDEdit."""

from .parts import half, ksampler, latent_size, prompt_nodes, sheet, stroke

KNOBS = dict(seed=2, steps=20, cfg=4.0, sampler_name="euler_ancestral", scheduler="normal")
KNOBS |= dict(strength_unit="percent", process="VP", repeats=1)


def sdedit(graph):
    graph.note(
        "# SDEdit: strokes to image\n\nTwo rough strokes of paint show where things go. The sampler adds noise up to the *strength* and "
        "denoises with the prompt.\n\nTry strengths from 0.3 (faithful to the strokes) to 0.8 (realistic); *repeats* 2; process VE."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        text = "a red star on the left and a blue circle on the right on a white background"
        positive, negative = prompt_nodes(graph, model, positive=text, negative="")
    with graph.group("2 Paint"):
        strokes = stroke(graph, stroke(graph, sheet(graph), (214, 40, 40), 14, 42, 42, 40), (48, 92, 214), 74, 44, 40, 42)
    with graph.group("3 Sample"):
        given = dict(model=model["model"], positive=positive, negative=negative, guide=strokes, vae=model["vae"])
        result = graph.add("SDEditSampler", strength=0.65, **given, **KNOBS)
    with graph.group("4 Image"):
        graph.add("PreviewImage", title="strokes", images=strokes)
        graph.add("PreviewImage", title="noisy start", images=graph.add("VAEDecode", samples=result["noisy_start"], vae=model["vae"]))
        graph.add("SaveImage", title="image", images=result["image"], filename_prefix="sdedit")


def sdedit_masked(graph):
    graph.note(
        "# SDEdit with a mask\n\nAn image from the model, a stroke of paint on its right half, and a mask that allows changes only there. "
        "The left half stays the same, to the last pixel.\n\nConnect your own image and mask instead (right click, *Open in MaskEditor*)."
    )
    with graph.group("1 Model and image"):
        model = graph.add("DemoModelLoader")
        text = "a green square on the left on a white background"
        changed = text.replace("left", "left and a red circle on the right")
        before, after, negative = prompt_nodes(graph, model, before=text, after=changed, negative="")
        size = latent_size(graph, 1)
        latent = ksampler(graph, model["model"], before, negative, size, seed=4)
        original = graph.add("VAEDecode", samples=latent, vae=model["vae"])
    with graph.group("2 Paint and mask"):
        painted, mask = stroke(graph, original, (214, 40, 40), 74, 44, 42, 42), half(graph, False)
    with graph.group("3 Sample"):
        given = dict(model=model["model"], positive=after, negative=negative, guide=painted, vae=model["vae"])
        result = graph.add("SDEditSampler", original=original, mask=mask, strength=0.7, **given, **KNOBS)
    with graph.group("4 Image"):
        for title, image in (("before", original), ("painted", painted)):
            graph.add("PreviewImage", title=title, images=image)
        graph.add("SaveImage", title="after", images=result["image"], filename_prefix="sdedit_masked")


WORKFLOWS = [sdedit, sdedit_masked]
