"""Templates for published flow models: edits without inversion, of images and of a video, and by instruction."""

from . import models
from .parts import prompt_nodes, sampled_with
from .real import DRAWN, VIDEO, before_and_after, checkpoint, loading, masked_image_at, note, template
from .thumbnails import Shown

EDITED = {"what the image shows": DRAWN, "what it should show": DRAWN.replace("pink dress", "red dress"), "negative": ""}


OF_INSTRUCTIONS = {"method": "DiffEdit", "method.start_percent": 0.1, "method.end_percent": 0.3, "method.threshold": 0.4}  # of DiffEdit Mask
BY_WORDS = "Only the region that the two prompts disagree about changes. To choose it yourself, right-click the image and paint it in the MaskEditor."
PAINT = "Right-click the image, *Open in MaskEditor*, and paint what may change; what you leave out stays exactly as it is."


def flow_edit_cfg(source: float, target: float) -> dict:
    return {"method.source_cfg": source, "method.cfg": target}


def flow_note(graph, title: str, n_max: float, needs: str, what: str = "image", region: str = BY_WORDS) -> None:
    note(
        graph,
        title,
        f"Moves your {what} along the difference of what the two prompts predict. Nothing is inverted (FlowEdit).",
        f"**First:** load your {what}, describe it, and write the same with one thing changed. {region}",
        f"**Too little changes:** raise *n_max* ({n_max} now) or *cfg*. **Too much changes:** lower *n_max*.",
        f"**Needs:** {needs} (an estimate).",
    )


def flux_parts(graph, model) -> dict:
    """The loaders of a Flux model."""
    network = loading(graph.add("UNETLoader", unet_name=model.name, weight_dtype="default"), model)
    names = dict(clip_name1=models.CLIP_L.name, clip_name2=models.T5.name)
    text = loading(graph.add("DualCLIPLoader", type="flux", **names), models.CLIP_L, models.T5)
    return {"MODEL": network, "CLIP": text, "VAE": loading(graph.add("VAELoader", vae_name=models.AE.name), models.AE)}


def qwen_parts(graph) -> dict:
    """The loaders of Qwen-Image-Edit, with the shift and the norm of its guidance that it is used with."""
    network = loading(graph.add("UNETLoader", unet_name=models.QWEN_EDIT.name, weight_dtype="default"), models.QWEN_EDIT)
    text = loading(graph.add("CLIPLoader", clip_name=models.QWEN_VL.name, type="qwen_image"), models.QWEN_VL)
    vae = loading(graph.add("VAELoader", vae_name=models.QWEN_VAE.name), models.QWEN_VAE)
    network = graph.add("ModelSamplingAuraFlow", model=network, shift=3.0)
    return {"MODEL": graph.add("CFGNorm", model=network, strength=1.0), "CLIP": text, "VAE": vae}


def region_of(graph, model, prompts: tuple, image, vae, **painted):
    """What may change, found along FlowEdit's path: the node."""
    given = dict(zip(("source", "target"), prompts)) | dict(model=model, image=image, vae=vae)
    return graph.add("DiffEditMask", seed=0, dilate=0.02, **given, **painted)


def edit_and_compare(graph, loaded, painted, image, prompts: tuple, compared: tuple = (), **knobs) -> None:
    """From (source, target, negative) to the edit; the region is found by `compared`, where that are other conditionings of the same prompts."""
    with graph.group("4 Find the region"):
        found = region_of(graph, loaded["MODEL"], compared or prompts[:2], image, loaded["VAE"], painted=painted)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
    with graph.group("5 Edit"):
        given = dict(zip(("source", "positive", "negative"), prompts)) | dict(image=image, vae=loaded["VAE"], mask=found["mask"])
        edit = graph.add("FlowEditLatentSampler", model=loaded["MODEL"], **given, seed=1, scheduler="simple", **knobs)["image"]
    with graph.group("6 Result"):
        before_and_after(graph, image, edit, "flow_edit")


@template("07 Edit an image by words without inversion (SD3.5)", Shown.of("Edit by words,\nno inversion", "flow_edit", a_cat=0, a_penguin=2))
def flow_edit_sd35(graph):
    title = "Edit an image by words without inversion"
    flow_note(graph, title, 0.66, "about 10 GB of GPU memory, and a minute on an RTX 4070")
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SD35)
    with graph.group("2 Your image"):
        painted, image = masked_image_at(graph, 1.0)
    with graph.group("3 Your words"):
        source, target, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **EDITED)
    edit_and_compare(graph, loaded, painted, image, (source, target, negative), steps=50, n_max=0.66, **flow_edit_cfg(3.5, 13.5))


@template("08 Edit an image by words without inversion (Flux)", Shown.of("Edit by words,\nno inversion", "flow_edit", a_cat=0, a_penguin=2))
def flow_edit_flux(graph):
    title = "Edit an image by words without inversion"
    flow_note(graph, title, 0.86, "about 30 GB of memory, a GPU of 12 GB or more, and 2 minutes on an RTX 4070")
    with graph.group("1 Model"):
        loaded = flux_parts(graph, models.FLUX)
    with graph.group("2 Your image"):
        painted, image = masked_image_at(graph, 1.0)
    with graph.group("3 Your words"):
        source, target, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **EDITED)
        guided = [
            graph.add("FluxGuidance", title=f"guidance of the {name}", conditioning=each, guidance=guidance)
            for name, each, guidance in (("source", source, 1.5), ("result", target, 5.5))
        ]
    edit_and_compare(graph, loaded, painted, image, (*guided, negative), (source, target), steps=28, n_max=0.86, **flow_edit_cfg(1.0, 1.0))


def instruction_note(graph, what: str, scales: str, needs: str) -> None:
    note(
        graph,
        "Edit by instruction with two scales",
        f"{what} follows an instruction. Here the instruction and the image have a weight each, as two guidance channels.",
        f"**First:** load your image and write the instruction. The region is found by it. To choose it yourself: {PAINT}",
        scales,
        f"**Needs:** {needs} (an estimate).",
    )


def edit_with_two_scales(graph, loaded, painted, image, prompts: tuple, **scales) -> None:
    """From (the instruction, no instruction[, no instruction and no image]) to the result, which changes only what is `painted`, or found."""
    with graph.group("4 Find the region"):
        reference = graph.add("VAEEncode", pixels=image, vae=loaded["VAE"])
        target, source = (graph.add("ReferenceLatent", conditioning=each, latent=reference) for each in prompts[:2])
        given = dict(model=loaded["MODEL"], source=source, target=target, image=image, vae=loaded["VAE"], painted=painted)
        found = graph.add("DiffEditMask", seed=0, dilate=0.02, **OF_INSTRUCTIONS, **given)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
    with graph.group("5 Two scales"):
        given = dict(zip(("positive", "negative", "unconditional"), prompts)) | dict(image=image, vae=loaded["VAE"], mask=found["mask"])
        channels = graph.add("InstructionChannels", model=loaded["MODEL"], **given, **scales)
    with graph.group("6 Edit"):
        sigmas = graph.add("BasicScheduler", model=loaded["MODEL"], scheduler="simple", steps=20, denoise=1.0)
        given = dict(unconditional=channels["unconditional"], channels=[channels["channel"]], conflict="sum", sigmas=sigmas)
        guider = graph.add("MultiCFGGuider", model=loaded["MODEL"], **given)["guider"]
        latent = sampled_with(graph, guider, channels["latent"], sigmas, seed=1)
    with graph.group("7 Result"):
        edit = graph.add("VAEDecode", samples=latent, vae=loaded["VAE"])
        edit = graph.add("KeepRest", title="the rest stays", source=image, edit=edit, mask=found["mask"])["image"]
        before_and_after(graph, image, edit, "edit_by_instruction")


INSTRUCTION = "make the dress red, keep everything else"


@template("12 Edit by instruction with two scales (Flux Kontext)", Shown.of("Edit by instruction,\ntwo scales", "instruct_pix2pix", your_image=0, make_it_blue=1))
def edit_by_instruction(graph):
    scales = "**Too little changes:** *text_scale* 1.5. **Too much changes:** *image_scale* 2. Both at 1: Kontext as it is."
    instruction_note(graph, "Kontext", scales, "about 18 GB of memory, a GPU of 12 GB or more, and 3 minutes on an RTX 4070")
    with graph.group("1 Model"):
        loaded = flux_parts(graph, models.KONTEXT)
    with graph.group("2 Your image"):
        painted, image = masked_image_at(graph, 1.0)
    with graph.group("3 Your instruction"):
        prompts = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **{"the instruction": INSTRUCTION, "no instruction": ""})
        prompts = [graph.add("FluxGuidance", conditioning=each, guidance=2.5) for each in prompts]
    edit_with_two_scales(graph, loaded, painted, image, prompts, text_scale=1.0, image_scale=1.3)


@template("13 Edit by instruction with two scales (Qwen-Image-Edit)", Shown.of("Edit by instruction,\ntwo scales", "instruct_pix2pix", your_image=0, make_it_blue=1))
def edit_by_instruction_qwen(graph):
    scales = "**Too little changes:** *text_scale* 6. **Too much changes:** *image_scale* 1.5. At 4 and 1: Qwen-Image-Edit as it is."
    instruction_note(graph, "Qwen-Image-Edit", scales, "about 32 GB of memory, a GPU of 12 GB or more, and 3 minutes on an RTX 4090")
    with graph.group("1 Model"):
        loaded = qwen_parts(graph)
    with graph.group("2 Your image"):
        painted, image = masked_image_at(graph, 1.0)
    with graph.group("3 Your instruction"):
        prompts = [
            graph.add("TextEncodeQwenImageEditPlus", title=title, clip=loaded["CLIP"], prompt=text, image1=image)
            for title, text in {"the instruction": INSTRUCTION, "no instruction": ""}.items()
        ]
        prompts += prompt_nodes(graph, {"clip": loaded["CLIP"]}, **{"no instruction and no image": ""})
    edit_with_two_scales(graph, loaded, painted, image, prompts, text_scale=4.0, image_scale=1.2)


@template("14 Edit a video by words (Wan 2.1)", Shown.of("Edit a video\nby words", "flow_edit", over="film", a_cat=0, a_penguin=2))
def edit_video(graph):
    needs, region = "about 12 GB of GPU memory for 33 frames, and 5 minutes on an RTX 4070", "One region for all frames is found by the prompts."
    flow_note(graph, "Edit a video by words", 0.67, needs, "video", region)
    with graph.group("1 Model"):
        network = loading(graph.add("UNETLoader", unet_name=models.WAN.name, weight_dtype="default"), models.WAN)
        text = loading(graph.add("CLIPLoader", clip_name=models.UMT5.name, type="wan"), models.UMT5)
        vae = loading(graph.add("VAELoader", vae_name=models.WAN_VAE.name), models.WAN_VAE)
        model = graph.add("ModelSamplingSD3", model=network, shift=5.0)
    with graph.group("2 Your video"):
        video = graph.add("GetVideoComponents", video=graph.add("LoadVideo", title="your video", file=VIDEO))
        frames = graph.add("ImageFromBatch", title="the first 33 frames", image=video["images"], batch_index=0, length=33)
        given = dict(upscale_method="lanczos", width=832, height=480, crop="center")
        frames = graph.add("ImageScale", title="at the model's size", image=frames, **given)
    with graph.group("3 Your words"):
        shown = "a woman in a blue jacket walks along a street"
        texts = {"what the video shows": shown, "what it should show": shown.replace("blue", "red"), "negative": ""}
        source, target, negative = prompt_nodes(graph, {"clip": text}, **texts)
    with graph.group("4 Find the region"):
        mask = region_of(graph, model, (source, target), frames, vae)["mask"]
    with graph.group("5 Edit"):
        given = dict(model=model, source=source, positive=target, negative=negative, image=frames, vae=vae, mask=mask)
        knobs = dict(seed=1, steps=30, n_max=0.67, scheduler="simple")
        edit = graph.add("FlowEditLatentSampler", **given, **knobs)["image"]
    with graph.group("6 Result"):
        made = graph.add("CreateVideo", images=edit, fps=video["fps"])
        graph.add("SaveVideo", title="the result", video=made, filename_prefix="edit_video")
        graph.add("ImageCompare", title="the first frame before and after", image_a=frames, image_b=edit)


WORKFLOWS = [flow_edit_sd35, flow_edit_flux, edit_by_instruction, edit_by_instruction_qwen, edit_video]
