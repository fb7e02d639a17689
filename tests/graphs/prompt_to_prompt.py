"""Prompt-to-Prompt: of generated images and of real ones."""

from .parts import SCENE, ksampler, latent_size, saved, scene


def prompt_to_prompt(graph):
    graph.note(
        "# Prompt-to-Prompt\n\nEdit an image by editing its prompt. The first image is the source; then one word after the other is changed: "
        "the cat becomes a dog, the umbrella yellow, the beach snow. Everything that the prompt still says stays as it is, down to the "
        "pose, because the edits use the source's attention. Without it a changed word gives another image.\n\n"
        "Try: another target line, with the words of the demo model; *cross_end* and *self_end* 0, which is the model without it; "
        "**P2P Options** with *alpha* 0.5, which takes over less."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    source = "a cat on the left and a red umbrella on the right on the beach"
    changes = ("cat", "dog"), ("red", "yellow"), ("on the beach", "in the snow")
    with graph.group("2 Prompts"):
        patch = patched(graph, model, one_image(graph), source, *(source.replace(*change) for change in changes), self_end=0.4)
    with graph.group("3 Sample"):
        latent = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], seed=7)
    with graph.group("4 Images"):
        saved(graph, model["vae"], latent, "prompt_to_prompt", "source, then the edits")


def prompt_to_prompt_weights(graph):
    graph.note(
        "# Words as sliders\n\nOne prompt with *watercolor* at the strengths 0, 2 and 4. Every line of *word_weights* is an image; the "
        "first image is the source, whose words have strength 1. At 0 the paint and its white edge are gone, at 4 the colors are pale, and "
        "it is the same castle throughout.\n\n"
        "Try: `watercolor: -1`, the opposite; several words in a line, `watercolor: 2, castle: 0.5`; *self_end* 0.4, which keeps the "
        "outline."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt and weights"):
        weights = "\n".join(f"watercolor: {weight}" for weight in (0, 2, 4))
        given = dict(word_weights=weights, cross_end=1.0, self_end=0.0)
        patch = patched(graph, model, one_image(graph), "a watercolor of a castle on grass", **given)
    with graph.group("3 Sample"):
        latent = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], seed=3)
    with graph.group("4 Images"):
        saved(graph, model["vae"], latent, "prompt_to_prompt_weights", "source, then a weight each")


def prompt_to_prompt_style(graph):
    graph.note(
        "# Another style, the same image\n\nA cartoon as a pencil drawing and as a watercolor. At *alpha* 0 nothing is taken over from the "
        "source: the style is there, but clouds and towers are others. At 1, in all layers and to the end, all stays, and the style has "
        "no room. At 0.3 the style is there on the same castle.\n\n"
        "Try: *alpha* 0.5; `a 3d render of` as another target; *cross_layers* and *self_layers* `1/2`, the coarse layers alone. "
        "All three are inputs of **P2P Options**."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    shares = 0.0, 1.0, 0.3
    with graph.group("2 Prompts"):
        source = "a cartoon of a castle on grass"
        targets = [source.replace("cartoon", style) for style in ("pencil drawing", "watercolor")]
        options = [graph.add("P2POptions", alpha=a, cross_layers="all", self_layers="all") for a in shares]
        latent, whole = one_image(graph), dict(cross_end=1.0, self_end=1.0)
        patches = [patched(graph, model, latent, source, *targets, options=each, **whole) for each in options]
    with graph.group("3 Sample"):
        latents = [ksampler(graph, p["model"], p["positive"], p["negative"], p["latent"], seed=5) for p in patches]
    with graph.group("4 Images"):
        images = [graph.add("VAEDecode", samples=latent, vae=model["vae"]) for latent in latents]
        first = graph.add("ImageFromBatch", image=images[0], batch_index=0, length=1)
        graph.add("SaveImage", title="source", images=first, filename_prefix="prompt_to_prompt_style")
        for share, batch in zip(shares, images):
            edits = graph.add("ImageFromBatch", image=batch, batch_index=1, length=len(targets))
            graph.add("SaveImage", title=f"alpha {share:g}", images=edits, filename_prefix="prompt_to_prompt_style")


def prompt_to_prompt_blend(graph):
    graph.note(
        "# Prompt-to-Prompt with a local blend\n\nOnly the car is to become blue. But no word says which color the umbrella has: without a "
        "blend it changes along. With a blend, only the places where the changed words look can differ; everywhere else the edit is the "
        "source. The table shows these places over the steps.\n\n"
        "Try: a lower *threshold* for larger places; *words* empty and *protect_words* `umbrella`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompts"):
        source = "a red car on the left and an umbrella on the right on the beach"
        patch = patched(graph, model, one_image(graph), source, source.replace("red", "blue"), cross_end=0.2, self_end=0.0)
    with graph.group("3 Blend"):
        blend = graph.add("P2PLocalBlend", model=patch["model"], words="*")
    with graph.group("4 Sample"):
        rest = patch["positive"], patch["negative"], patch["latent"]
        latents = [ksampler(graph, m["model"], *rest, seed=2) for m in (patch, blend)]
    with graph.group("5 Images"):
        plain, kept = (graph.add("VAEDecode", samples=latent, vae=model["vae"]) for latent in latents)
        for title, images, row in (("source", plain, 0), ("edit without a blend", plain, 1), ("edit with the blend", kept, 1)):
            one = graph.add("ImageFromBatch", image=images, batch_index=row, length=1)
            graph.add("SaveImage", title=title, images=one, filename_prefix="prompt_to_prompt_blend")
        masks = graph.add("P2PBlendMask", source=blend["model"], latent=latents[1], image=kept)
        graph.add("SaveImage", title="where it may differ", images=masks["table"], filename_prefix="prompt_to_prompt_masks")


def prompt_to_prompt_real(graph):
    graph.note(
        "# Prompt-to-Prompt on a real image\n\nAn image that the model did not make: it is inverted under a text that describes it, which "
        "**P2P Attention Patch** takes from the inversion. Drawn again, the first image follows the inversion's trajectory (*branches* "
        "`direct`), so it is the image. The edits use its attention: another color, another thing, another place.\n\n"
        "Try: another target line; EDICT Inverter instead of DDIM Inverter with *branches* `source and edit`; **P2P Local Blend** behind "
        "the patch, which keeps everything else."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Image"):
        image = scene(graph)
    with graph.group("3 Inversion"):
        text = graph.add("PrimitiveStringMultiline", title="what the image shows", value=SCENE)
        given = dict(model=model["model"], clip=model["clip"], vae=model["vae"], source=text, image=image)
        inversion = graph.add("DDIMInverter", steps=20, scheduler="normal", **given)["inversion"]
    with graph.group("4 Edits"):
        changes = ("yellow", "red"), ("tree", "castle"), ("on a beach", "in the snow")
        patch = patched(graph, model, inversion, "", *(SCENE.replace(*change) for change in changes), self_end=0.4)
    with graph.group("5 Reconstruct and edit"):
        given = dict(model=patch["model"], positive=patch["positive"], negative=patch["negative"])
        latent = graph.add("InversionSampler", inversion=inversion, cfg=4.0, branches="direct", **given)["latent"]
    with graph.group("6 Images"):
        saved(graph, model["vae"], latent, "prompt_to_prompt_real", "the image, then the edits")


def one_image(graph):
    return latent_size(graph, 1)


def patched(graph, model, latent, source: str, *targets: str, **inputs):
    """The patch of the demo model for a latent or an inversion, and its alignment to read."""
    usual = dict(model=model["model"], clip=model["clip"], latent=latent, source=source, targets="\n".join(targets), negative="")
    patch = graph.add("P2PAttentionPatch", **usual | inputs)
    graph.add("PreviewAny", title="alignment", source=patch["alignment"])
    return patch


WORKFLOWS = [prompt_to_prompt, prompt_to_prompt_weights, prompt_to_prompt_style, prompt_to_prompt_blend, prompt_to_prompt_real]
