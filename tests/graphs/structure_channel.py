"""A ControlNet as a channel."""

from .parts import demo_images, guidance_channel, guided, latent_size, prompt_nodes, saved


def structure_channel(graph):
    graph.note(
        "# Structure as a channel\n\nA ControlNet gets the silhouette of a cat. The channel compares *the prompt with it* to *the prompt "
        "without it*, so the structure has its own weight next to the prompt's. The images of **the prompt alone** lack it.\n\nTry the "
        "weight of the structure from 0 to 3, another prompt, your own silhouette (white on black)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        text, empty = prompt_nodes(graph, model, text="a cat in the snow", unconditional="")
        size = latent_size(graph, 2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Silhouette"):
        silhouette = graph.add("MaskToImage", mask=demo_images(graph, "scenes", 1, 2495)["masks"])
        control = graph.add("ControlNetLoader", control_net_name="demo_model_silhouette.safetensors")
        whole = dict(strength=1.0, start_percent=0.0, end_percent=1.0)
        controlled = graph.add("ControlNetApplyAdvanced", positive=text, negative=empty, control_net=control, image=silhouette, **whole)
    with graph.group("3 Channels"):
        words = guidance_channel(graph, title="the prompt", conditioning=text, weight=3.0, role="positive", name="prompt")
        shown = dict(conditioning=controlled["positive"], null=text, weight=2.0, role="positive", name="structure")
        structure = guidance_channel(graph, title="the structure", previous=words, **shown)
    with graph.group("4 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=21) for channel in (words, structure)]
    with graph.group("5 Image"):
        graph.add("PreviewImage", title="silhouette", images=silhouette)
        for title, latent in zip(("the prompt alone", "with the structure"), latents):
            saved(graph, model["vae"], latent, "structure_channel", title)


WORKFLOWS = [structure_channel]
