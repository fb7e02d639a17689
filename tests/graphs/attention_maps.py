"""Attention maps."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def attention_maps(graph):
    graph.note(
        "# Attention maps\n\nWhere the model looks at each word while it draws: one table by parts of the sampling, one by size of the "
        "layers. You can use the mask of a word without drawing: here only the area of *circle* is painted again, in another color.\n\n"
        "Try: *mask_word* `star`; *threshold* 0 for a soft mask; other *words* in the capture (empty = all)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 2)
    with graph.group("2 Prompts"):
        text, words = "a blue circle on the left and a red star on the right on a white background", "blue, circle, red, star, background"
        capture = graph.add("AttentionMapCapture", model=model["model"], clip=model["clip"], prompt=text, words=words)
        negative, other = prompt_nodes(graph, model, **{"negative": "", "paint again": text.replace("blue", "yellow")})
    with graph.group("3 Sample"):
        latent = ksampler(graph, capture["model"], capture["positive"], negative, size, seed=4)
        images = graph.add("VAEDecode", samples=latent, vae=model["vae"])
        graph.add("SaveImage", title="images", images=images, filename_prefix="attention_maps")
    with graph.group("4 Maps"):
        given = dict(source=capture["model"], latent=latent, image=images)
        view = graph.add("AttentionMapView", rows="steps", mask_word="circle", threshold=0.3, **given)
        graph.add("SaveImage", title="by steps", images=view["table"], filename_prefix="attention_maps_steps")
        layers = graph.add("AttentionMapView", title="by layers", source=view["maps"], latent=view["latent"], rows="layers")
        graph.add("PreviewImage", title="by layers", images=layers["table"])
        graph.add("PreviewImage", title="mask of the circle", images=graph.add("MaskToImage", mask=view["mask"]))
    with graph.group("5 Paint again where the circle is"):
        masked = graph.add("SetLatentNoiseMask", samples=latent, mask=view["mask"])
        again = ksampler(graph, model["model"], other, negative, masked, seed=4, denoise=0.9)
        saved(graph, model["vae"], again, "attention_maps_painted", "painted again")


WORKFLOWS = [attention_maps]
