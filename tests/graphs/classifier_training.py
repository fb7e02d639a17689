"""Training a noisy classifier."""

from .parts import guidance_channel, ksampler, latent_size, moonlit, prompt_nodes, sampled_with, saved


def classifier_training(graph):
    graph.note(
        "# Train a noisy classifier\n\nA classifier is trained to recognize images with a moon at the top right at every noise level; no "
        "word of the demo model says where the moon is. Then its channel guides images of a prompt towards the label. The images of "
        "**without** have the same seeds.\n\nThe charts show the loss, and the accuracy from high to low noise. With your own images use "
        "a few hundred of each label."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        empty, many, prompt = prompt_nodes(graph, model, unconditional="", training="something at night", prompt="a castle at night")
    with graph.group("2 Labeled images"):
        latents = ksampler(graph, model["model"], many, empty, latent_size(graph, 48), seed=5, steps=8, cfg=1.0)
        plain = graph.add("VAEDecode", samples=latents, vae=model["vae"])
        images = graph.add("BatchImagesNode", images=[plain, moonlit(graph, plain)])
    with graph.group("3 Train"):
        how = graph.add("TrainingOptions", average=0.95)
        trained = graph.add(
            "NoisyClassifierTrainer", training_options=how, model=model["model"], vae=model["vae"], images=images, name="moon",
            kind="exclusive", labels="\n".join(["plain"] * 48 + ["moon"] * 48), steps=250, batch_size=32, learning_rate=0.002,
        )  # fmt: skip
        for title in ("loss_curve", "accuracy"):
            graph.add("PreviewImage", title=title.replace("_", " "), images=trained[title])
    with graph.group("4 Use it"):
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
        four = latent_size(graph, 4)
        for title, weight in (("without", 0.0), ("with the classifier", 25.0)):
            text = guidance_channel(graph, title="the prompt", conditioning=prompt, weight=4.0, role="positive")
            moon = graph.add("ClassifierChannel", title=title, classifier=trained["classifier"], labels="moon", weight=weight, previous=text)
            guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[moon], conflict="sum")
            saved(graph, model["vae"], sampled_with(graph, guider["guider"], four, sigmas, seed=3), "classifier_training", title)


WORKFLOWS = [classifier_training]
