"""Classifier guidance."""

from .parts import SHAPES_SIDE, guided, prompt_nodes, saved


def classifier_guidance(graph):
    graph.note(
        "# Classifier guidance\n\nThere is no prompt here. A small classifier of noisy images guides towards its labels. The images "
        "of **without** have the same seeds.\n\nTry: `red:1, star:2`; `striped:-1` (without stripes); the weight; a mask; a prompt as another "
        "channel."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader", world="shapes")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = graph.add("EmptyLatentImage", width=SHAPES_SIDE, height=SHAPES_SIDE, batch_size=4)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Labels"):
        classifier = graph.add("NoisyClassifierLoader", classifier_name="shapes_model.safetensors")
        blue = dict(classifier=classifier["classifier"], labels="blue", start_percent=0.0)
        off, on = (graph.add("ClassifierChannel", title=t, weight=w, **blue) for t, w in (("switched off", 0.0), ("blue", 12.0)))
    with graph.group("3 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=8) for channel in (off, on)]
    with graph.group("4 Image"):
        for title, latent in zip(("without", "with the classifier"), latents):
            saved(graph, model["vae"], latent, "classifier_guidance", title)


WORKFLOWS = [classifier_guidance]
