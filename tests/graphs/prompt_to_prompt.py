"""Prompt-to-Prompt: of generated images and of real ones."""

from .parts import SCENE, ksampler, latent_size, saved, scene


def prompt_to_prompt(graph):
    graph.note(
        "# Prompt-to-Prompt\n\nOne source prompt and three edits of it. The first image is the source; then a word is swapped (another "
        "color), a word is inserted (a texture), and the setting changes (another background). All use the source's attention maps, so "
        "everything unnamed stays. The tables show where source and edits look at words: *yellow* where the source looks at *blue*.\n\n"
        "Try: another target line, or a word removed, and the same in **Attention Map Capture**, whose *prompt* holds the source and "
        "every target, one per line; *self_end* 0, which frees shapes; **P2P Options** with *alpha* 0.5, which takes over less."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    source = "a red star on the left and a blue circle on the right on a white background"
    targets = source.replace("blue", "yellow"), source.replace("blue", "striped blue"), source.replace("white", "pink")
    with graph.group("2 Prompts"):
        patch = patched(graph, model, one_image(graph), source, *targets)
    with graph.group("3 What they look at"):
        given = dict(model=patch["model"], clip=model["clip"], conditioning=patch["positive"])
        capture = graph.add("AttentionMapCapture", prompt="\n".join((source, *targets)), words="star, circle, blue, yellow", **given)
    with graph.group("4 Sample"):
        latent = ksampler(graph, capture["model"], capture["positive"], patch["negative"], patch["latent"], seed=5)
    with graph.group("5 Images"):
        images = graph.add("VAEDecode", samples=latent, vae=model["vae"])
        graph.add("SaveImage", title="source, then the edits", images=images, filename_prefix="prompt_to_prompt")
        view = graph.add("AttentionMapView", source=capture["model"], latent=latent, image=images)
        graph.add("PreviewImage", title="where each looks at words", images=view["table"])


def prompt_to_prompt_weights(graph):
    graph.note(
        "# Words as sliders\n\nOne prompt with *circle* at strength -1, 0, 1, 2 and 4. Every line of *word_weights* is an image; the "
        "first image is the source, and 1 is the same again. The demo model reads size and shape from the noun.\n\n**source, then a degree "
        "each** is the same with words: *barely*, *slightly*, *very* and *super* before it. The demo model was not trained on them: they only scale the map of "
        "the word after them.\n\nTry: `red: -1`; several words in a line, `circle: 3, white: 0.5`; *self_end* 0.4, which keeps the "
        "outline."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt and weights"):
        weights, source = "\n".join(f"circle: {w}" for w in (-1, 0, 1, 2, 4)), "a red circle on a white background"
        degrees = (source.replace("red", f"red {word}") for word in ("barely", "slightly", "very", "super"))
        whole = dict(cross_end=1.0, self_end=0.0)
        latent = one_image(graph)
        weighed = patched(graph, model, latent, source, word_weights=weights, **whole)
        graded = patched(graph, model, latent, source, *degrees, **whole)
    with graph.group("3 Sample"):
        latents = [ksampler(graph, p["model"], p["positive"], p["negative"], p["latent"], seed=1) for p in (weighed, graded)]
    with graph.group("4 Images"):
        saved(graph, model["vae"], latents[0], "prompt_to_prompt_weights", "source, then a weight each")
        saved(graph, model["vae"], latents[1], "prompt_to_prompt_degrees", "source, then a degree each")


def prompt_to_prompt_style(graph):
    graph.note(
        "# Style injection\n\nNew textures and backgrounds for the same things. At *alpha* 0 nothing is taken over from the source, and "
        "the things move freely. At 1, in all layers and to the end, they stay and the style has no room. A third of it keeps the places "
        "and lets the style in. So do all maps of the coarse layers alone (*cross_layers* and *self_layers* `1/2`), which hold places "
        "while the fine layers hold texture; but they suppress the pink background.\n\nTry: *alpha* 0.5 or 0.8; other words for the "
        "style; *cross_layers* `output`. All three are inputs of **P2P Options**."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    rows = [(0.0, "all"), (1.0, "all"), (0.3, "all"), (1.0, "1/2")]
    with graph.group("2 Prompts"):
        source = "a red star on the left and a blue circle on the right on a white background"
        striped, dotted = (source.replace("red", f"{t} red").replace("blue", f"{t} blue") for t in ("striped", "dotted"))
        targets, whole = (dotted.replace("white", "black"), striped, dotted.replace("white", "pink")), dict(cross_end=1.0, self_end=1.0)
        options = [graph.add("P2POptions", alpha=a, cross_layers=where, self_layers=where) for a, where in rows]
        latent = one_image(graph)
        patches = [patched(graph, model, latent, source, *targets, options=each, **whole) for each in options]
    with graph.group("3 Sample"):
        latents = [ksampler(graph, p["model"], p["positive"], p["negative"], p["latent"], seed=5) for p in patches]
    with graph.group("4 Images"):
        images = [graph.add("VAEDecode", samples=latent, vae=model["vae"]) for latent in latents]
        first = graph.add("ImageFromBatch", image=images[0], batch_index=0, length=1)
        graph.add("SaveImage", title="source", images=first, filename_prefix="prompt_to_prompt_style")
        for (alpha, layers), batch in zip(rows, images):
            title = f"alpha {alpha:g}, {layers} layers" if layers == "all" else f"alpha {alpha:g}, layers {layers}"
            edits = graph.add("ImageFromBatch", image=batch, batch_index=1, length=len(targets))
            graph.add("SaveImage", title=title, images=edits, filename_prefix="prompt_to_prompt_style")


def prompt_to_prompt_blend(graph):
    graph.note(
        "# Prompt-to-Prompt with a local blend\n\nA shape is swapped, which needs freedom (*self_end* 0): without a blend the other thing "
        "moves too. With a blend, only the places where the changed words look can differ. The table shows these places over the steps.\n\n"
        "Try: *words* `star`; a lower *threshold* for larger places; *protect_words* `square`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompts"):
        source = "a red circle on the left and a blue square on the right on a gray background"
        targets = source.replace("circle", "star"), source.replace("circle", "cross")
        patch = patched(graph, model, one_image(graph), source, *targets, cross_end=0.2, self_end=0.0)
    with graph.group("3 Blend"):
        blend = graph.add("P2PLocalBlend", model=patch["model"], words="*")
    with graph.group("4 Sample"):
        rest = patch["positive"], patch["negative"], patch["latent"]
        plain, kept = (ksampler(graph, m["model"], *rest, seed=3) for m in (patch, blend))
    with graph.group("5 Images"):
        saved(graph, model["vae"], plain, "prompt_to_prompt_free", "source, then the edits, without a blend")
        saved(graph, model["vae"], kept, "prompt_to_prompt_blend", "source, then the edits, with it")
        images = graph.add("VAEDecode", samples=kept, vae=model["vae"])
        masks = graph.add("P2PBlendMask", source=blend["model"], latent=kept, image=images)
        graph.add("SaveImage", title="where they may differ", images=masks["table"], filename_prefix="prompt_to_prompt_masks")


def prompt_to_prompt_real(graph):
    graph.note(
        "# Prompt-to-Prompt on a real image\n\nA painted image is inverted under a text that describes it, which **P2P Attention Patch** takes "
        "from the inversion. In the reconstruction the source row stays on the inversion's trajectory (*branches* `direct`), so it is the "
        "image again, and the edits use its attention.\n\n"
        "Try: another target line; EDICT Inverter instead of DDIM Inverter with *branches* `source and edit`; *self_end* 0 for another "
        "shape."
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
        changes = (("blue", "yellow"), ("blue", "striped blue"), ("white", "pink"))
        patch = patched(graph, model, inversion, "", *(SCENE.replace(*change) for change in changes))
    with graph.group("5 Reconstruct and edit"):
        given = dict(model=patch["model"], positive=patch["positive"], negative=patch["negative"])
        latent = graph.add("InversionSampler", inversion=inversion, cfg=4.0, branches="direct", **given)["latent"]
    with graph.group("6 Images"):
        graph.add("PreviewImage", title="image", images=image)
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
