"""A ControlNet as a channel."""

from .parts import SHAPES_SIDE, guidance_channel, guided, prompt_nodes, saved, stroke


def structure_channel(graph):
    graph.note(
        "# Structure as a channel\n\nA ControlNet gets the silhouette. The channel compares *the prompt with it* to *the prompt without "
        "it*, so the structure has its own weight next to the prompt's. The images of **the prompt alone** lack it.\n\nTry the weight of the "
        "structure from 0 to 3, another prompt, your own silhouette (white on black)."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader", world="shapes")
        text, empty = prompt_nodes(graph, model, text="a purple cross on a gray background", unconditional="")
        size = graph.add("EmptyLatentImage", width=SHAPES_SIDE, height=SHAPES_SIDE, batch_size=2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Silhouette"):
        black = graph.add("EmptyImage", title="black", width=SHAPES_SIDE, height=SHAPES_SIDE, batch_size=1, color=0)
        white = (255, 255, 255)
        silhouette = stroke(graph, stroke(graph, black, white, 80, 20, 20, 52), white, 64, 36, 52, 20)
        control = graph.add("ControlNetLoader", control_net_name="shapes_model_silhouette.safetensors")
        whole = dict(strength=1.0, start_percent=0.0, end_percent=1.0)
        controlled = graph.add("ControlNetApplyAdvanced", positive=text, negative=empty, control_net=control, image=silhouette, **whole)
    with graph.group("3 Channels"):
        words = guidance_channel(graph, title="the prompt", conditioning=text, weight=4.0, role="positive", name="prompt")
        shown = dict(conditioning=controlled["positive"], null=text, weight=1.0, role="positive", name="structure")
        structure = guidance_channel(graph, title="the structure", previous=words, **shown)
    with graph.group("4 Sample"):
        latents = [guided(graph, model, empty, channel, size, sigmas, seed=21) for channel in (words, structure)]
    with graph.group("5 Image"):
        graph.add("PreviewImage", title="silhouette", images=silhouette)
        for title, latent in zip(("the prompt alone", "with the structure"), latents):
            saved(graph, model["vae"], latent, "structure_channel", title)


WORKFLOWS = [structure_channel]
