"""Classifier guidance."""

from .parts import prompt_nodes, sampled_with


def classifier_guidance(graph):
    graph.note(
        "# Classifier guidance\n\nThere is no prompt here. A small classifier of noisy images guides towards its labels. The upper images "
        "have the same seeds without it.\n\nTry: `red:1, star:2`; `striped:-1` (without stripes); the weight; a mask; a prompt as another "
        "channel."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Labels"):
        classifier = graph.add("NoisyClassifierLoader", classifier_name="demo_model.safetensors")
        off, on = (
            graph.add(
                "ClassifierChannel", title=title, classifier=classifier["classifier"], labels="blue", weight=weight, start_percent=0.0
            )
            for title, weight in (("switched off", 0.0), ("blue", 12.0))
        )
    with graph.group("3 Sample"):
        latents = [
            sampled_with(
                graph,
                graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[channel], conflict="sum")["guider"],
                size,
                sigmas,
                seed=8,
            )
            for channel in (off, on)
        ]
    with graph.group("4 Image"):
        for title, latent in zip(("without", "with the classifier"), latents):
            graph.add(
                "SaveImage",
                title=title,
                images=graph.add("VAEDecode", samples=latent, vae=model["vae"]),
                filename_prefix="classifier_guidance",
            )


WORKFLOWS = [classifier_guidance]
