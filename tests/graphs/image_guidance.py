"""Guidance by an image."""

from .parts import SIDE, guided, latent_size, prompt_nodes, saved, sheet, stroke

BEACH = (  # paint, x, y, width, height
    ((96, 160, 236), 0, 0, SIDE, 92),
    ((36, 108, 196), 0, 84, SIDE, 30),
    ((232, 202, 150), 0, 112, SIDE, 80),
    ((214, 44, 44), 104, 52, 72, 40),
    ((140, 30, 30), 136, 92, 8, 56),
)


def image_guidance(graph):
    graph.note(
        "# Image guidance\n\nThere is no prompt at all: five strokes of paint say where which color is, and guide the image at every step. "
        "The model makes of them what it knows, a beach with something red on it. The images of **without** have the same seeds.\n\n"
        "Try *kind* `color` and `brightness`; a prompt as another channel; *through_denoiser* (slower, exact)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = latent_size(graph, 2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Reference"):
        reference = sheet(graph)
        for paint, *place in BEACH:
            reference = stroke(graph, reference, paint, *place)
        like = dict(model=model["model"], vae=model["vae"], kind="layout", image=reference, end_percent=0.9)
        off, on = (graph.add("ImageGuidanceChannel", title=t, weight=w, **like) for t, w in (("switched off", 0.0), ("layout", 8.0)))
    with graph.group("3 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=2) for channel in (off, on)]
    with graph.group("4 Image"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("without", "with the reference"), latents):
            saved(graph, model["vae"], latent, "image_guidance", title)


WORKFLOWS = [image_guidance]
