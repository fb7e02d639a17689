"""InstructPix2Pix guidance."""

from .parts import SHAPES_SIDE, guidance_channel, ksampler, prompt_nodes, saved

LOADER = "DemoInstructModelLoader"


def image_of(graph, demo, text: str, seed: int):
    """An image that the demo model draws."""
    before, empty = prompt_nodes(graph, demo, before=text, empty="")
    drawn = ksampler(graph, demo["model"], before, empty, graph.add("EmptyLatentImage", width=SHAPES_SIDE, height=SHAPES_SIDE, batch_size=1), seed=seed)
    return graph.add("VAEDecode", samples=drawn, vae=demo["vae"])


def instruction_prompts(graph, editor, text: str):
    """(the instruction, no instruction) as conditionings."""
    return prompt_nodes(graph, editor, **{"instruction": text, "no instruction": ""})


def edited(graph, guider, sigmas, latent):
    """What SamplerCustomAdvanced makes with a guider of edits."""
    noise, euler = graph.add("RandomNoise", noise_seed=1), graph.add("KSamplerSelect", sampler_name="euler")
    given = dict(noise=noise, guider=guider["guider"], sampler=euler, sigmas=sigmas, latent_image=latent)
    return graph.add("SamplerCustomAdvanced", **given)["output"]


def instruct_pix2pix(graph):
    graph.note(
        "# InstructPix2Pix\n\nAn instruction edits an image. *text_scale* sets how strongly the instruction acts, *image_scale* how "
        "closely the result follows the image.\n\nTry: image_scale 1 and 2.5; text_scale 1 and 7. **edited by a KSampler** uses "
        "the patch; its cfg is the text scale."
    )
    with graph.group("1 Image"):
        image = image_of(graph, graph.add("DemoModelLoader", world="shapes"), "a red circle on a white background", 4)
    with graph.group("2 Instruction"):
        editor = graph.add(LOADER)
        positive, negative = instruction_prompts(graph, editor, "make the circle blue")
    shared = dict(model=editor[0], positive=positive, negative=negative, image=image, vae=editor[2], image_scale=1.5)
    with graph.group("3 Edit"):
        sigmas = graph.add("BasicScheduler", model=editor[0], scheduler="normal", steps=20, denoise=1.0)
        guider = graph.add("InstructPix2PixGuider", text_scale=3.0, sigmas=sigmas, **shared)
        made = edited(graph, guider, sigmas, guider["latent"])
    with graph.group("4 The same with a KSampler"):
        patch = graph.add("InstructPix2PixPatch", **shared)
        again = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], cfg=3.0)
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="before", images=image)
        for title, latent in (("edited", made), ("edited by a KSampler", again)):
            saved(graph, editor[2], latent, "instruct_pix2pix", title)
        graph.add("PreviewImage", title="scales over the steps", images=guider["weights"])


def instruction_channels(graph):
    graph.note(
        "# Instruction Channels\n\nThe image and an instruction are two channels. A second instruction with its own weight is added; its "
        "null is the image without text.\n\nTry: the second weight 0 and 3; *conflict* `project`."
    )
    with graph.group("1 Image and instructions"):
        image = image_of(graph, graph.add("DemoModelLoader", world="shapes"), "a large green square on a gray background", 2)
        editor = graph.add(LOADER)
        texts = {"first instruction": "make it yellow", "second instruction": "make it a star", "no instruction": ""}
        first, second, nothing = prompt_nodes(graph, editor, **texts)
    with graph.group("2 Channels"):
        shown = graph.add("InstructPixToPixConditioning", positive=second, negative=nothing, vae=editor["vae"], pixels=image)
        weighed = dict(weight=6.0, role="positive", name="second")
        other = guidance_channel(graph, conditioning=shown["positive"], null=shown["negative"], **weighed)
        given = dict(model=editor["model"], positive=first, negative=nothing, image=image, vae=editor["vae"])
        channels = graph.add("InstructionChannels", text_scale=6.0, image_scale=1.5, previous=other, **given)
    with graph.group("3 Sample"):
        sigmas = graph.add("BasicScheduler", model=editor["model"], scheduler="normal", steps=20, denoise=1.0)
        given = dict(unconditional=channels["unconditional"], channels=[channels["channel"]])
        guider = graph.add("MultiCFGGuider", model=editor["model"], sigmas=sigmas, **given)
        latent = edited(graph, guider, sigmas, channels["latent"])
    with graph.group("4 Image"):
        graph.add("PreviewImage", title="before", images=image)
        saved(graph, editor["vae"], latent, "instruction_channels", "edited")
        graph.add("PreviewImage", title="weights over the steps", images=guider["weights"])


def keep_rest(graph):
    graph.note(
        "# Keep the Rest\n\nAn instruction changes one thing, but the editor redraws the whole image. *DiffEdit Mask* finds the thing by words, "
        "and *Keep the Rest* puts the source's own pixels back everywhere else, after it has moved the edit to its place and matched its "
        "colors.\n\nTry: *colors* off, and *feather* 0."
    )
    with graph.group("1 Image"):
        demo = graph.add("DemoModelLoader", world="shapes")
        image = image_of(graph, demo, "a red circle on the left and a green star on the right on a white background", 4)
    with graph.group("2 Edit by instruction"):
        editor = graph.add(LOADER)
        positive, negative = instruction_prompts(graph, editor, "make the circle blue")
        given = dict(model=editor[0], positive=positive, negative=negative, image=image, vae=editor[2], image_scale=1.5)
        patch = graph.add("InstructPix2PixPatch", **given)
        made = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], cfg=3.0)
        edit = graph.add("VAEDecode", samples=made, vae=editor[2])
    with graph.group("3 Where it may change"):
        words = "a red circle on the left and a green star on the right on a white background"
        source, target = prompt_nodes(graph, demo, **{"there is": words, "there should be": words.replace("red", "blue")})
        given = dict(model=demo["model"], source=source, target=target, image=image, vae=demo["vae"])
        found = graph.add("DiffEditMask", method="DiffEdit", seed=0, **given)
    with graph.group("4 Keep the rest"):
        kept = graph.add("KeepRest", source=image, edit=edit, mask=found["mask"])
        graph.add("PreviewImage", title="before", images=image)
        graph.add("PreviewImage", title="the editor's own result", images=edit)
        graph.add("SaveImage", title="only the circle changed", images=kept["image"], filename_prefix="keep_rest")
        graph.add("ImageCompare", title="before and after", image_a=image, image_b=kept["image"])


WORKFLOWS = [instruct_pix2pix, instruction_channels, keep_rest]
