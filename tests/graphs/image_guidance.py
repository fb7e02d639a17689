"""Guidance by an image."""

from .parts import SIDE, guidance_channel, guided, latent_size, prompt_nodes, saved, sheet, stroke

BEACH = (  # paint, x, y, width, height
    ((96, 160, 236), 0, 0, SIDE, 92),
    ((36, 108, 196), 0, 84, SIDE, 30),
    ((232, 202, 150), 0, 112, SIDE, 80),
    ((214, 44, 44), 104, 52, 72, 40),
    ((140, 30, 30), 136, 92, 8, 56),
)


def image_guidance(graph):
    graph.note(
        "# Image guidance\n\nThe prompt only says *an umbrella*. A rough painting says the rest: five strokes guide the image at every step "
        "towards their colors in their places, and it becomes a red umbrella on the right of a beach. The images of **without** have the "
        "same seeds.\n\n"
        "Try *kind* `color` and `brightness`; another prompt, or an empty one; *through_denoiser* (slower, exact)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        prompt, empty = prompt_nodes(graph, model, prompt="an umbrella", unconditional="")
        size = latent_size(graph, 2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Reference"):
        reference = sheet(graph)
        for paint, *place in BEACH:
            reference = stroke(graph, reference, paint, *place)
        words = guidance_channel(graph, title="prompt", conditioning=prompt, weight=4.0, name="an umbrella")
        like = dict(model=model["model"], vae=model["vae"], kind="layout", image=reference, end_percent=0.9, previous=words)
        off, on = (graph.add("ImageGuidanceChannel", title=t, weight=w, **like) for t, w in (("switched off", 0.0), ("layout", 16.0)))
    with graph.group("3 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=2) for channel in (off, on)]
    with graph.group("4 Image"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("without", "with the reference"), latents):
            saved(graph, model["vae"], latent, "image_guidance", title)


WORKFLOWS = [image_guidance]
