"""SDEdit."""

from .parts import color, half, ksampler, prompt_nodes, stroke


def sdedit(graph):
    graph.note(
        "# SDEdit: strokes to image\n\nTwo rough strokes of paint show where things go. The sampler adds noise up to the *strength* and "
        "denoises with the prompt.\n\nTry strengths from 0.3 (faithful to the strokes) to 0.8 (realistic); *repeats* 2; process VE."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        positive, negative = prompt_nodes(
            graph, model, positive="a red star on the left and a blue circle on the right on a white background", negative=""
        )
    with graph.group("2 Paint"):
        paper = graph.add("EmptyImage", title="paper", width=128, height=128, batch_size=1, color=color(245, 245, 245))
        strokes = stroke(graph, stroke(graph, paper, (214, 40, 40), 14, 42, 42, 40), (48, 92, 214), 74, 44, 40, 42)
    with graph.group("3 Sample"):
        result = graph.add(
            "SDEditSampler",
            model=model["model"],
            positive=positive,
            negative=negative,
            guide=strokes,
            vae=model["vae"],
            seed=2,
            steps=20,
            cfg=4.0,
            sampler_name="euler_ancestral",
            scheduler="normal",
            strength=0.65,
            strength_unit="percent",
            process="VP",
            repeats=1,
        )
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
        before, after, negative = prompt_nodes(
            graph,
            model,
            before="a green square on the left on a white background",
            after="a green square on the left and a red circle on the right on a white background",
            negative="",
        )
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        latent = ksampler(graph, model["model"], before, negative, size, seed=4)
        original = graph.add("VAEDecode", samples=latent, vae=model["vae"])
    with graph.group("2 Paint and mask"):
        painted = stroke(graph, original, (214, 40, 40), 74, 44, 42, 42)
        mask = half(graph, False)
    with graph.group("3 Sample"):
        result = graph.add(
            "SDEditSampler",
            model=model["model"],
            positive=after,
            negative=negative,
            guide=painted,
            original=original,
            mask=mask,
            vae=model["vae"],
            seed=2,
            steps=20,
            cfg=4.0,
            sampler_name="euler_ancestral",
            scheduler="normal",
            strength=0.7,
            strength_unit="percent",
            process="VP",
            repeats=1,
        )
    with graph.group("4 Image"):
        for title, image in (("before", original), ("painted", painted)):
            graph.add("PreviewImage", title=title, images=image)
        graph.add("SaveImage", title="after", images=result["image"], filename_prefix="sdedit_masked")


WORKFLOWS = [sdedit, sdedit_masked]
