"""Guidance by an image."""

from .parts import guided, latent_size, prompt_nodes, saved, sheet, stroke


def image_guidance(graph):
    graph.note(
        "# Image guidance\n\nThere is no prompt: the layout of two strokes of paint guides the image at every step. It says where things are; "
        "their shapes and colors stay free. The images of **without** have the same seeds.\n\nTry *kind* `color` and `brightness`; a prompt as another channel; *through_denoiser* (slower, "
        "exact)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = latent_size(graph, 2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Reference"):
        reference = stroke(graph, stroke(graph, sheet(graph), (52, 158, 70), 10, 44, 44, 44), (138, 58, 176), 74, 44, 44, 44)
        like = dict(model=model["model"], vae=model["vae"], kind="layout", image=reference, end_percent=0.9)
        off, on = (graph.add("ImageGuidanceChannel", title=t, weight=w, **like) for t, w in (("switched off", 0.0), ("layout", 8.0)))
    with graph.group("3 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=2) for channel in (off, on)]
    with graph.group("4 Image"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("without", "with the reference"), latents):
            saved(graph, model["vae"], latent, "image_guidance", title)


WORKFLOWS = [image_guidance]
