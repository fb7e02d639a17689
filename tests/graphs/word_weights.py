"""Word weights in the attention."""

from .parts import ksampler, latent_size, prompt_nodes, saved

WEIGHTS = (0, 1, 2, 3)


def word_weights(graph):
    graph.note(
        "# Words stronger and weaker\n\nOne prompt at cfg 1, with *watercolor* at the weights 0, 1, 2 and 3: from no watercolor at all to a "
        "pale one. **Word Weights** scales the attention to the word, so it works on any model, also where the text encoder ignores "
        "`(word:1.4)`.\n\nTry: `castle` instead; `(watercolor:1.4)` in the text; *end_percent* 0.3, which only changes the layout."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 1)
    with graph.group("2 Prompt and weights"):
        (negative,) = prompt_nodes(graph, model, negative="")
        given = dict(model=model["model"], clip=model["clip"], text="a watercolor of a castle on grass")
        prompts = [graph.add("WordWeights", title=f"weight {w}", word_weights=f"watercolor: {w}", **given) for w in WEIGHTS]
    with graph.group("3 Sample"):
        latents = [ksampler(graph, p["model"], p["positive"], negative, size, seed=1, cfg=1.0) for p in prompts]
    with graph.group("4 Images"):
        for weight, latent in zip(WEIGHTS, latents):
            saved(graph, model["vae"], latent, "word_weights", f"weight {weight}")


WORKFLOWS = [word_weights]
