"""A negative prompt at cfg 1."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def negative_attention(graph):
    graph.note(
        "# A negative prompt at cfg 1\n\nThe prompt leaves open where the castle is. **Negative Attention** keeps the brick wall out of "
        "the same seeds, with one evaluation of the model a step; the negative of a sampler does nothing at cfg 1. It is made for turbo "
        "and lightning models.\n\nTry: *scale* 2 or 11; *alpha* 0.5; another place; a mask."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        text, negative, empty = prompt_nodes(graph, model, prompt="a castle", unwanted="a castle in front of a brick wall", empty="")
        size = latent_size(graph, 2)
    with graph.group("2 Negative"):
        patched = graph.add("NegativeAttention", model=model["model"], negative=negative)["model"]
    with graph.group("3 Sample"):
        latents = [ksampler(graph, m, text, empty, size, seed=1, cfg=1.0) for m in (model["model"], patched)]
    with graph.group("4 Images"):
        for title, latent in zip(("without", "with the negative"), latents):
            saved(graph, model["vae"], latent, "negative_attention", title)


WORKFLOWS = [negative_attention]
