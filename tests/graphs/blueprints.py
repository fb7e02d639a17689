"""The blueprints: a task as one node, with inputs in plain words."""

from harness.blueprint import in_workflow
from harness.graph import Graph

from . import models
from .instruct_pix2pix import LOADER
from .parts import sampled_with
from .real import EXAMPLE, SUBJECT, checkpoint
from .real_flow import OF_INSTRUCTIONS, flux_parts

TEXTS = ("a drawing of a girl in a pink dress", "a drawing of a girl in a red dress")  # written where a blueprint is tried
SIZE = "megapixels (SD1.5: 0.25)"
PAINTED = "your mask, instead of finding one"


def parts(graph):
    """The three sockets that every checkpoint loader feeds."""
    return {name.lower(): graph.take(name.lower(), name) for name in ("MODEL", "CLIP", "VAE")}


def scaled(graph, images, value: float = 1.0):
    """At the size that the model was trained at."""
    megapixels = graph.take("megapixels", "FLOAT", SIZE, value=value)
    given = dict(upscale_method="lanczos", megapixels=megapixels, resolution_steps=64)
    return graph.add("ImageScaleToTotalPixels", title="at the model's size", image=images, **given)


def encoded(graph, clip, title: str, text):
    return graph.add("CLIPTextEncode", title=title, clip=clip, text=text)


def edit_image_by_words(graph):
    loaded, image = parts(graph), graph.take("image", "IMAGE")
    shown = graph.take("what_it_shows", "STRING", "what it shows", value="")
    wanted = graph.take("what_it_should_show", "STRING", "what it should show", value="")
    keep = graph.take("how_much_to_keep", "FLOAT", "how much to keep", value=0.4)
    with graph.group("1 The image"):
        image = scaled(graph, image)
    with graph.group("2 Remember the image"):
        told = graph.add("PrimitiveStringMultiline", title="what it shows", value=shown)  # the frontend sends no text of a blueprint to a socket
        inversion = graph.add("DDIMInverter", steps=50, source=told[0], image=image, **loaded)["inversion"]
    with graph.group("3 Change the words"):
        texts = dict(source="", targets=wanted, negative="")
        given = dict(model=loaded["model"], clip=loaded["clip"], latent=inversion)
        patch = graph.add("P2PAttentionPatch", self_end=keep, **given, **texts)
        blend = graph.add("P2PLocalBlend", title="only where the changed words look", model=patch["model"], words="*")
    with graph.group("4 Edit"):
        given = dict(model=blend, positive=patch["positive"], negative=patch["negative"], vae=loaded["vae"])
        both = graph.add("InversionSampler", inversion=inversion, cfg=7.5, branches="direct", **given)["image"]
        edit = graph.add("ImageFromBatch", title="the second is the edit", image=both, batch_index=1, length=1)
        graph.show(graph.add("PreviewImage", images=edit))
    graph.give("image", edit[0])


edit_image_by_words.text = (
    "Edit Image by Words",
    "Changes in an image what you change in its description, and keeps the rest. To have the description written for you, connect Generate "
    "Text to it, with a text encoder that sees images, such as Gemma 4 or Qwen3-VL.",
    ["edit image", "change image", "prompt to prompt", "real image editing", "reword"],
)


def change_only_this(graph):
    loaded, image = parts(graph), graph.take("image", "IMAGE")
    shown = graph.take("what_is_there_now", "STRING", "what is there now", value="")
    wanted = graph.take("what_should_be_there", "STRING", "what should be there", value="")
    with graph.group("1 The image"):
        image = scaled(graph, image)
    with graph.group("2 The words"):
        source, target, nothing = (
            encoded(graph, loaded["clip"], *each) for each in (("now", shown), ("then", wanted), ("negative", ""))
        )
    given = dict(model=loaded["model"], source=source, image=image, vae=loaded["vae"])
    with graph.group("3 Find the region"):
        wider = graph.take("how_much_wider", "FLOAT", "widen the region by (share of the side)", value=0.01)
        painted = graph.take("mask", "MASK", PAINTED, required=False)
        found = graph.add("DiffEditMask", target=target, seed=0, dilate=wider, painted=painted, **given)
        graph.show(graph.add("PreviewImage", title="the region", images=found["heat"]))
    with graph.group("4 Change it"):
        edit = graph.add("DiffEditSampler", positive=target, negative=nothing, mask=found["mask"], steps=50, encode_ratio=0.8, **given)
        graph.show(graph.add("PreviewImage", title="the result", images=edit["image"]))
    graph.give("image", edit["image"])
    graph.give("mask", found["mask"])


change_only_this.text = (
    "Change Only This",
    "Finds by words the region that has to change, or takes your mask, and changes only that. Every other pixel stays exactly as it was at the "
    "model's size.",
    ["mask by words", "mask from text", "replace object", "inpaint by text", "diffedit"],
)


def change_by_instruction(graph):
    loaded, image = parts(graph), graph.take("image", "IMAGE")
    wanted = graph.take("what_to_do", "STRING", "what to do", value="")
    wider = graph.take("how_much_wider", "FLOAT", "widen the region by (share of the side)", value=0.02)
    with graph.group("1 The image"):
        image = scaled(graph, image)
    with graph.group("2 The instruction"):
        instruction, nothing = (encoded(graph, loaded["clip"], *each) for each in (("what to do, encoded", wanted), ("no instruction", "")))
        given = dict(model=loaded["model"], positive=instruction, negative=nothing, image=image, vae=loaded["vae"])
        shown = graph.add("InstructPix2PixPatch", title="with the image", image_scale=1.0, **given)
    with graph.group("3 Find the region"):
        given = dict(model=loaded["model"], source=shown["negative"], target=shown["positive"], image=image, vae=loaded["vae"])
        painted = graph.take("mask", "MASK", PAINTED, required=False)
        found = graph.add("DiffEditMask", seed=0, dilate=wider, painted=painted, **OF_INSTRUCTIONS, **given)
        graph.show(graph.add("PreviewImage", title="the region", images=found["heat"]))
    with graph.group("4 Change it"):
        given = dict(model=loaded["model"], positive=shown["positive"], negative=shown["negative"], mask=found["mask"])
        guider = graph.add("InstructPix2PixGuider", **given)
        sigmas = graph.add("BasicScheduler", model=loaded["model"], scheduler="simple", steps=20, denoise=1.0)
        edit = sampled_with(graph, guider["guider"], guider["latent"], sigmas, seed=1)
        edit = graph.add("VAEDecode", samples=edit, vae=loaded["vae"])
    with graph.group("5 Keep the rest"):
        kept = graph.add("KeepRest", source=image, edit=edit, mask=found["mask"])
        graph.show(graph.add("PreviewImage", title="the result", images=kept["image"]))
    graph.give("image", kept["image"])
    graph.give("mask", kept["mask"])


change_by_instruction.text = (
    "Change Only This by Instruction",
    "Does what an instruction says, with an editor such as Flux Kontext, and changes only the region that it is about. Every "
    "other pixel stays exactly as it was at the model's size. To choose the region yourself, connect a mask.",
    ["instruction edit", "kontext", "instruct pix2pix", "keep the rest", "change only this"],
)


def paint_to_image(graph):
    loaded, image = parts(graph), graph.take("image", "IMAGE", "painting")
    wanted = graph.take("what_it_should_be", "STRING", "what it should be", value="")
    unwanted = graph.take("what_to_avoid", "STRING", "what to avoid", value="drawing, painting, low quality")
    with graph.group("1 The painting"):
        image = scaled(graph, image)
    with graph.group("2 The words"):
        positive = encoded(graph, loaded["clip"], "what it should be, encoded", wanted)
        negative = encoded(graph, loaded["clip"], "what to avoid, encoded", unwanted)
    with graph.group("3 Make an image of it"):
        strength = graph.take("how_far_from_the_painting", "FLOAT", "how far from the painting", value=0.6)
        seed = graph.take("seed", "INT", value=1)
        given = dict(model=loaded["model"], positive=positive, negative=negative, guide=image, vae=loaded["vae"], seed=seed, strength=strength)
        knobs = dict(steps=30, sampler_name="euler_ancestral", strength_unit="percent", process="VP", repeats=1)
        made = graph.add("SDEditSampler", **knobs, **given)
        graph.show(graph.add("PreviewImage", images=made["image"]))
    graph.give("image", made["image"])


paint_to_image.text = (
    "Paint to Image",
    "Makes an image of a painting, a collage or a rough render: from the Painter node, or any image.",
    ["sketch to image", "stroke to image", "scribble", "sdedit", "img2img"],
)


def train_a_subject(graph):
    loaded, images = parts(graph), graph.take("images", "IMAGE", "images of the subject")
    kind = graph.take("what_it_is", "STRING", "what it is", value="")
    name = graph.take("name", "STRING", "name of the file", value="my-subject")
    with graph.group("1 The images"):
        images = scaled(graph, images)
    with graph.group("2 The words"):
        texts = {"images show": "a photo of sks <kind>", "others of its kind": "a photo of a <kind>", "a try": "a photo of sks <kind> on a beach"}
        subject, others, shown = (
            graph.add("StringReplace", title=title, string=text, find="<kind>", replace=kind) for title, text in texts.items()
        )
    with graph.group("3 Train"):
        steps = graph.take("steps", "INT", "steps (100–200 for each image)", value=800)
        kept = graph.add("ClassImages", class_prompt=others, class_count=50)
        given = dict(**loaded, images=images, name=name, steps=steps, instance_prompt=subject, validation_prompt=shown)
        trained = graph.add("DreamBoothTrainer", class_images=kept, **given)
        graph.show(graph.add("PreviewImage", title="tries during the training", images=trained["validation"]))
    graph.give("model", trained["model"])
    graph.give("prompt", subject[0], "its prompt")
    graph.give("tries", trained["validation"], "tries during the training")


train_a_subject.text = (
    "Train a Subject",
    "Teaches the model a person, animal or thing from 3–20 images of it, as a LoRA file. Write 'sks' and what it is in your prompts.",
    ["train lora", "dreambooth", "personalization", "my face", "my dog"],
)


def models_of(path) -> tuple:
    """What a blueprint is tried on: checkpoints of each family, or Kontext and the demo model's editor (None)."""
    return (models.KONTEXT, None) if "Instruction" in path.stem else (models.SDXL, models.SD15, models.SD35)


def loaded_parts(graph, model) -> dict:
    if model is None:
        return dict(zip(("MODEL", "CLIP", "VAE"), graph.add(LOADER)))
    return {name: node[0] for name, node in flux_parts(graph, model).items()} if model is models.KONTEXT else checkpoint(graph, model)


def tried(path, object_info, model) -> dict:
    """A workflow with a blueprint on a model and an image, or on a folder of images where it trains; texts are filled in."""
    graph = Graph(path.stem, object_info)
    loaded = loaded_parts(graph, model)
    image = graph.add("LoadImageDataSetFromFolder", folder=SUBJECT) if path.stem.startswith("Train") else graph.add("LoadImage", image=EXAMPLE)
    return in_workflow(path, graph, {**{kind: loaded[kind] for kind in ("MODEL", "CLIP", "VAE")}, "IMAGE": image[0]}, TEXTS)


BLUEPRINTS = [edit_image_by_words, change_only_this, change_by_instruction, paint_to_image, train_a_subject]
