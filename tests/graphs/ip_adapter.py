"""An image as a prompt."""

from .parts import guidance_channel, ksampler, latent_size, prompt_nodes, sampled_with, saved

OWN = "\n\nFor your own model use its checkpoint loader, *Load CLIP Vision* (ViT-H) and an SD1.5 or SDXL adapter in models/ipadapter."


def reference_and_adapter(graph, model, text: str, empty):
    """(adapter, image encoder, reference): an image of the demo model itself, to be replaced by the user's own."""
    with graph.group("2 Reference"):
        (prompt,) = prompt_nodes(graph, model, **{"what the reference shows": text})
        drawn = ksampler(graph, model["model"], prompt, empty, latent_size(graph, 1), seed=5)
        reference = graph.add("VAEDecode", samples=drawn, vae=model["vae"])
    with graph.group("3 Adapter"):
        adapter = graph.add("IPAdapterLoader", adapter_name="demo_model.safetensors")
        encoder = graph.add("DemoImageEncoderLoader")
    return adapter, encoder, reference


def patch(graph, model, adapter, encoder, reference, **more):
    given = dict(model=model["model"], adapter=adapter, clip_vision=encoder, image=reference)
    return graph.add("IPAdapterPatch", weight=1.0, combine="concat", **given, **more)


def ip_adapter(graph):
    graph.note(
        "# IP-Adapter: an image instead of words\n\nThe prompt says where and on which ground, and names neither color nor thing: "
        "these come from the reference. The images of **the prompt alone** lack it.\n\nTry *weight* from 0 to 1.5, another "
        "reference (*Load Image*), a mask, *start_percent* 0.3." + OWN
    )
    with graph.group("1 Model and prompt"):
        model = graph.add("DemoModelLoader")
        text, empty = prompt_nodes(graph, model, text="something on the left on a beach", negative="")
        size = latent_size(graph, 2)
    adapter, encoder, reference = reference_and_adapter(graph, model, "a red car in the snow", empty)
    with graph.group("4 Sample"):
        patched = patch(graph, model, adapter, encoder, reference)
        latents = [ksampler(graph, m, text, empty, size, seed=11) for m in (model["model"], patched["model"])]
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("the prompt alone", "with the reference"), latents):
            saved(graph, model["vae"], latent, "ip_adapter", title)


def ip_adapter_channel(graph):
    graph.note(
        "# Image and text as two channels\n\nThe patch gets the prompt: its *conditioning* sees the reference, and its *null* is the same "
        "with the adapter's empty image. Their difference is the guidance of the image alone, with its own weight next to the text's. The "
        "images of **the text alone** have the same seeds.\n\nTry the image's weight from 0 to 5, a schedule or a mask on its channel." + OWN
    )
    with graph.group("1 Model and prompt"):
        model = graph.add("DemoModelLoader")
        text, empty = prompt_nodes(graph, model, text="something on the right on grass", unconditional="")
        size = latent_size(graph, 2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    adapter, encoder, reference = reference_and_adapter(graph, model, "a blue umbrella in the snow", empty)
    with graph.group("4 Channels"):
        patched = patch(graph, model, adapter, encoder, reference, conditioning=text)
        words = guidance_channel(graph, title="the text", conditioning=text, weight=4.0, role="positive", name="text")
        shown = dict(conditioning=patched["conditioning"], null=patched["null"], weight=5.0, role="positive", name="image")
        image = guidance_channel(graph, title="the image", previous=words, **shown)
    with graph.group("5 Sample"):
        guiders = [
            graph.add("MultiCFGGuider", model=patched["model"], unconditional=empty, channels=[channel], conflict="sum")["guider"]
            for channel in (words, image)
        ]
        latents = [sampled_with(graph, guider, size, sigmas, seed=11) for guider in guiders]
    with graph.group("6 Images"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("the text alone", "with the image"), latents):
            saved(graph, model["vae"], latent, "ip_adapter_channel", title)


WORKFLOWS = [ip_adapter, ip_adapter_channel]
