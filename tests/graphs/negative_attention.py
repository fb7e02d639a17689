"""A negative prompt at cfg 1."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def negative_attention(graph):
    graph.note(
        "# A negative prompt at cfg 1\n\nThe prompt says no more than *a castle*, and one of two seeds makes it night. **Negative "
        "Attention** keeps the night out, with one evaluation of the model a step; the other image hardly changes. The negative of a "
        "sampler does nothing at cfg 1. It is made for turbo and lightning models.\n\n"
        "Try: *scale* 2 or 11; *alpha* 0.5; another place in **unwanted**; a mask."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        text, negative, empty = prompt_nodes(graph, model, prompt="a castle", unwanted="a castle at night", empty="")
        size = latent_size(graph, 2)
    with graph.group("2 Negative"):
        patched = graph.add("NegativeAttention", model=model["model"], negative=negative)["model"]
    with graph.group("3 Sample"):
        latents = [ksampler(graph, m, text, empty, size, seed=3, cfg=1.0) for m in (model["model"], patched)]
    with graph.group("4 Images"):
        for title, latent in zip(("without", "with the negative"), latents):
            saved(graph, model["vae"], latent, "negative_attention", title)


WORKFLOWS = [negative_attention]
