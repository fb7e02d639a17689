"""Attention maps."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def attention_maps(graph):
    graph.note(
        "# Attention maps\n\nWhere the model looks at each word while it draws: one table by parts of the sampling, one by size of the "
        "layers. So a word is a mask that nobody has to paint: only where *car* is, the model paints again, in blue.\n\n"
        "Try: *mask_word* `cat`, and another animal in the prompt of **paint again**; *threshold* 0 for a soft mask; other *words* in "
        "the capture (empty = all)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 1)
    with graph.group("2 Prompts"):
        text = "a red car on the left and a cat on the right on grass"
        given = dict(model=model["model"], clip=model["clip"], prompt=text)
        capture = graph.add("AttentionMapCapture", words="car, cat, grass", phases=3, **given)
        negative, other = prompt_nodes(graph, model, **{"negative": "", "paint again": text.replace("red", "blue")})
    with graph.group("3 Sample"):
        latent = ksampler(graph, capture["model"], capture["positive"], negative, size, seed=4)
        images = graph.add("VAEDecode", samples=latent, vae=model["vae"])
        graph.add("SaveImage", title="image", images=images, filename_prefix="attention_maps")
    with graph.group("4 Maps"):
        given = dict(source=capture["model"], latent=latent, image=images)
        view = graph.add("AttentionMapView", rows="steps", mask_word="car", threshold=0.2, **given)
        graph.add("SaveImage", title="by steps", images=view["table"], filename_prefix="attention_maps_steps")
        layers = graph.add("AttentionMapView", title="by layers", source=view["maps"], latent=view["latent"], rows="layers", image=images)
        graph.add("PreviewImage", title="by layers", images=layers["table"])
        graph.add("PreviewImage", title="mask of the car", images=graph.add("MaskToImage", mask=view["mask"]))
    with graph.group("5 Paint again where the car is"):
        masked = graph.add("SetLatentNoiseMask", samples=latent, mask=view["mask"])
        again = ksampler(graph, model["model"], other, negative, masked, seed=4, denoise=0.9)
        saved(graph, model["vae"], again, "attention_maps_painted", "painted again")


WORKFLOWS = [attention_maps]
