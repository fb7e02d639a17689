"""Templates for published models: a negative prompt at cfg 1, and words with weights where the text encoder knows none."""

import re

from . import models
from .parts import ksampler, prompt_nodes
from .real import before_and_after, loading, note, template
from .thumbnails import Shown

PORTRAIT = "portrait photo of an old fisherman on a pier at dawn"
STREET = "a rainy street in Tokyo at night, a woman with a (red umbrella:1.6), neon signs, (reflections:0.6) on the ground"


def parts(graph, network: models.Model, encoder: models.Model, kind: str, vae: models.Model, shift: float) -> dict:
    """The loaders of a model that comes in three files, with the shift that it is used with."""
    loaded = loading(graph.add("UNETLoader", unet_name=network.name, weight_dtype="default"), network)
    text = loading(graph.add("CLIPLoader", clip_name=encoder.name, type=kind), encoder)
    model = graph.add("ModelSamplingAuraFlow", model=loaded, shift=shift)
    return {"model": model, "clip": text, "vae": loading(graph.add("VAELoader", vae_name=vae.name), vae)}


def compared(graph, loaded, pairs, negative, name: str, **knobs) -> None:
    """Images of two (model, positive) from the same noise."""
    with graph.group("4 Sample"):
        size = graph.add("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
        latents = [ksampler(graph, model, positive, negative, size, scheduler="simple", **knobs) for model, positive in pairs]
    with graph.group("5 Result"):
        before_and_after(graph, *(graph.add("VAEDecode", samples=latent, vae=loaded["vae"]) for latent in latents), name)


@template("16 A negative prompt on a turbo model (Z-Image Turbo)", Shown.of("A negative prompt\non a turbo model", "negative_attention", a_castle=0, not_at_night=2))
def negative_on_turbo(graph):
    note(
        graph,
        "A negative prompt on a turbo model",
        "Turbo models run at cfg 1, where the sampler's negative does nothing. Here it acts inside the attention, in the same number of steps.",
        "**First:** change both texts. The slider at the end compares the same seed without and with the negative.",
        "**Too little changes:** *scale* 8, then *alpha* 0.5. **Colors or shapes break:** *alpha* 0.15, or *end_percent* 0.5.",
        "**Needs:** about 16 GB of memory, a GPU of 12 GB or more, and 20 seconds on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = parts(graph, models.Z_IMAGE, models.QWEN3, "lumina2", models.AE, shift=3.0)
    with graph.group("2 Your words"):
        positive, negative = prompt_nodes(graph, loaded, **{"what you want": PORTRAIT, "what should not be there": "beard, hat"})
        unused = graph.add("ConditioningZeroOut", title="unused at cfg 1", conditioning=positive)
    with graph.group("3 Negative"):
        patched = graph.add("NegativeAttention", model=loaded["model"], negative=negative)["model"]
    pairs = [(loaded["model"], positive), (patched, positive)]
    compared(graph, loaded, pairs, unused, "negative_attention", steps=9, cfg=1.0, sampler_name="res_multistep")


@template("17 Words stronger and weaker (Qwen-Image)", Shown.of("Words stronger\nand weaker", "word_weights", weight_0=0, weight_1=1, weight_2=2))
def word_weights_qwen(graph):
    note(
        graph,
        "Words stronger and weaker",
        "Qwen-Image's text encoder ignores `(word:1.4)`. Here the attention to the words is scaled, so weights work.",
        "**First:** write your prompt with weights: `(word:1.6)` is stronger, `(word:0.5)` weaker, `(word:0)` without.",
        "**Too little changes:** weights of 2 to 3, or weigh the noun too. **The image breaks:** *end_percent* 0.5.",
        "**Needs:** about 32 GB of memory, a GPU of 12 GB or more, and 3 minutes on an RTX 4090 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = parts(graph, models.QWEN, models.QWEN_VL, "qwen_image", models.QWEN_VAE, shift=3.1)
    with graph.group("2 Your words"):
        weighed = graph.add("WordWeights", model=loaded["model"], clip=loaded["clip"], text=STREET)
        plain, negative = prompt_nodes(graph, loaded, **{"the same without weights": re.sub(r"\((.*?):.*?\)", r"\1", STREET), "negative": ""})
    compared(graph, loaded, [(loaded["model"], plain), (weighed["model"], weighed["positive"])], negative, "word_weights", steps=20, cfg=2.5)


WORKFLOWS = [negative_on_turbo, word_weights_qwen]
