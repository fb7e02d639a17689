"""Classifier guidance."""

from .parts import guidance_channel, guided, latent_size, prompt_nodes, saved


def classifier_guidance(graph):
    graph.note(
        "# Classifier guidance\n\nThe prompt says *a castle* and no more. A small classifier of noisy images guides towards its label, *in "
        "the snow*. The images of **without** have the same seeds.\n\nTry: `at night, watercolor:2`; `on grass:-1` (not on grass); the "
        "weight; a mask; no prompt (remove the link to *previous*)."
    )
    with graph.group("1 Model and prompt"):
        model = graph.add("DemoModelLoader")
        empty, prompt = prompt_nodes(graph, model, unconditional="", prompt="a castle")
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Labels"):
        classifier = graph.add("NoisyClassifierLoader", classifier_name="demo_model.safetensors")
        text = guidance_channel(graph, title="the prompt", conditioning=prompt, weight=4.0, role="positive")
        snow = dict(classifier=classifier["classifier"], labels="in the snow", start_percent=0.0, previous=text)
        off, on = (graph.add("ClassifierChannel", title=t, weight=w, **snow) for t, w in (("switched off", 0.0), ("in the snow", 10.0)))
    with graph.group("3 Sample"):
        size = latent_size(graph, 4)
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=8) for channel in (off, on)]
    with graph.group("4 Image"):
        for title, latent in zip(("without", "with the classifier"), latents):
            saved(graph, model["vae"], latent, "classifier_guidance", title)


WORKFLOWS = [classifier_guidance]
