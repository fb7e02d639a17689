"""Templates for published flow models: edits without inversion, of images and of a video, and by instruction."""

from . import models
from .parts import prompt_nodes
from .real import DRAWN, before_and_after, checkpoint, image_at, loading, note, template

EDITED = {"what the image shows": DRAWN, "what it should show": DRAWN.replace("pink dress", "red dress"), "negative": ""}


def flow_note(graph, title: str, n_max: int, needs: str) -> None:
    note(
        graph,
        title,
        "Moves your image along the difference of what the two prompts predict. Nothing is inverted (FlowEdit).",
        "**First:** load your image, describe it, and write the same with one thing changed.",
        f"**Too little changes:** raise *n_max* ({n_max} now) or *cfg*. **Too much changes:** lower *n_max*.",
        f"**Needs** {needs} (an estimate).",
    )


def flux_parts(graph, model) -> dict:
    """The loaders of a Flux model."""
    network = loading(graph.add("UNETLoader", unet_name=model.name, weight_dtype="default"), model)
    names = dict(clip_name1=models.CLIP_L.name, clip_name2=models.T5.name)
    text = loading(graph.add("DualCLIPLoader", type="flux", **names), models.CLIP_L, models.T5)
    return {"MODEL": network, "CLIP": text, "VAE": loading(graph.add("VAELoader", vae_name=models.AE.name), models.AE)}


@template("07 Edit an image by words without inversion (SD3.5)")
def flow_edit_sd35(graph):
    title = "Edit an image by words without inversion"
    flow_note(graph, title, 33, "about 10 GB of GPU memory, and a minute on an RTX 4070")
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SD35)
    with graph.group("2 Your image"):
        image = image_at(graph, 1.0)
    with graph.group("3 Your words"):
        source, target, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **EDITED)
    with graph.group("4 Edit"):
        given = dict(model=loaded["MODEL"], source=source, positive=target, negative=negative, image=image, vae=loaded["VAE"])
        knobs = dict(seed=1, steps=50, n_max=33, source_cfg=3.5, cfg=13.5, scheduler="simple")
        latent = graph.add("FlowEditLatentSampler", **given, **knobs)
        edit = graph.add("VAEDecode", samples=latent, vae=loaded["VAE"])
    with graph.group("5 Result"):
        before_and_after(graph, image, edit, "flow_edit")


@template("08 Edit an image by words without inversion (Flux)")
def flow_edit_flux(graph):
    title = "Edit an image by words without inversion"
    flow_note(graph, title, 24, "about 30 GB of memory, of which a GPU of 12 GB holds what it can, and 2 minutes on an RTX 4070")
    with graph.group("1 Model"):
        loaded = flux_parts(graph, models.FLUX)
    with graph.group("2 Your image"):
        image = image_at(graph, 1.0)
    with graph.group("3 Your words"):
        source, target, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **EDITED)
        source = graph.add("FluxGuidance", title="guidance of the source", conditioning=source, guidance=1.5)
        target = graph.add("FluxGuidance", title="guidance of the result", conditioning=target, guidance=5.5)
    with graph.group("4 Edit"):
        given = dict(model=loaded["MODEL"], source=source, positive=target, negative=negative, image=image, vae=loaded["VAE"])
        knobs = dict(seed=1, steps=28, n_max=24, source_cfg=1.0, cfg=1.0, scheduler="simple")
        latent = graph.add("FlowEditLatentSampler", **given, **knobs)
        edit = graph.add("VAEDecode", samples=latent, vae=loaded["VAE"])
    with graph.group("5 Result"):
        before_and_after(graph, image, edit, "flow_edit")


WORKFLOWS = [flow_edit_sd35, flow_edit_flux]
