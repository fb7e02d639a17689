"""Templates for published models: teach a subject or a word."""

from . import models
from .parts import ksampler, prompt_nodes, sampled_with
from .real import before_and_after, checkpoint, image_at, image_folder, loading, note, template
from .thumbnails import Shown


def compared(graph, loaded, size: int, ways, name: str) -> None:
    """The two images of `ways`, (title, MODEL, positive), with the same seed, under one slider."""
    negative = graph.add("CLIPTextEncode", title="negative", clip=loaded["CLIP"], text="")
    latent = graph.add("EmptyLatentImage", width=size, height=size, batch_size=1)
    knobs = dict(steps=30, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras", seed=1)
    made = [ksampler(graph, model, positive, negative, latent, title=title, **knobs) for title, model, positive in ways]
    with graph.group("5 Result"):
        before, after = (graph.add("VAEDecode", samples=latent, vae=loaded["VAE"]) for latent in made)
        graph.add("ImageCompare", title="before and after the training", image_a=before, image_b=after)
        graph.add("SaveImage", title="after the training", images=after, filename_prefix=name)


@template("10 Train a LoRA of a subject (SDXL)", Shown.of("Train a LoRA\nof a subject", "dreambooth", your_subject=0, before=2, after=3))
def train_subject(graph):
    note(
        graph,
        "Train a LoRA of a subject",
        "Learns a person, animal or thing from 5–20 images. Images of its class, drawn by the model itself, keep the class as it was.",
        "**First:** put your images into the folder *input/my_subject* of ComfyUI, press R, and choose it in *your images*. In the four texts "
        "write what yours is instead of *dog*; *sks* is its new name and stays. Then press *Run*.",
        "**Not alike:** more *steps* or *rank* 32. **Only one pose or background:** fewer *steps*, or describe each image in **Dataset Options**.",
        "**Needs:** about 16 GB of GPU memory, and 25 minutes on an RTX 4090 (an estimate). *Load LoRA* reads the result.",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
    with graph.group("2 Your images"):
        images = image_folder(graph, 1.0)
    with graph.group("3 Train"):
        given = dict(model=loaded["MODEL"], clip=loaded["CLIP"], vae=loaded["VAE"], images=images, name="my-subject")
        texts = dict(instance_prompt="a photo of sks dog", validation_prompt="a photo of sks dog on a beach")
        others = graph.add("ClassImages", class_prompt="a photo of a dog", class_count=50)
        trained = graph.add("DreamBoothTrainer", steps=800, learning_rate=0.0001, class_images=others, **{"train.rank": 16}, **given, **texts)
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("4 Use it"):
        (prompt,) = prompt_nodes(graph, {"clip": loaded["CLIP"]}, prompt="a photo of sks dog in a red scarf on a snowy mountain")
        compared(graph, loaded, 1024, (("before the training", loaded["MODEL"], prompt), ("after the training", trained["model"], prompt)), "train_subject")


@template("11 Train a word for a look or a thing (SD1.5)", Shown.of("Train a word\nfor a look", "textual_inversion", your_images=0, without_it=2, with_it=3))
def train_word(graph):
    note(
        graph,
        "Train a word for a look or a thing",
        "Finds a new word for what your images have in common (textual inversion). The file is small and works in any prompt.",
        "**First:** put 5–20 images into the folder *input/my_subject* of ComfyUI, press R, choose it in *your images*, and say in "
        "*initial_words* what they are. For a thing set *templates* to `object`. Then press *Run*.",
        "**The word does too little:** 4 *vectors*, or more *steps*. **It takes over the image:** fewer *steps*.",
        "**Needs:** about 8 GB of GPU memory, and 20 minutes on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SD15)
    with graph.group("2 Your images"):
        images = image_folder(graph, 0.25)
    with graph.group("3 Train"):
        given = dict(model=loaded["MODEL"], clip=loaded["CLIP"], vae=loaded["VAE"], images=images, name="my-word")
        trained = graph.add("TIEmbeddingTrainer", steps=2000, vectors=2, learning_rate=0.005, initial_words="drawing", templates="style", **given)
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("4 Use it"):
        text = "a photo of a castle in the style of <concept>"
        named = graph.add("StringReplace", title="the prompt", string=text, find="<concept>", replace=trained["word"])
        texts = {"with the new word": named, "without it": "a photo of a castle"}
        after, before = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **texts)
        compared(graph, loaded, 512, (("without the new word", loaded["MODEL"], before), ("with the new word", loaded["MODEL"], after)), "train_word")


SNOW = """place = a village street, a forest path, a mountain lake, a city park, a farm house, a harbor
time = in the morning, at noon, at sunset
photo of {place} {time} => photo of {place} {time} in winter, covered in snow | make it snow
"""


ASKED = """Write 20 lines for a data set that teaches an image editor the instruction "make it snow". Each line has this form:
caption => caption of the same image after the edit | instruction
For example:
photo of a red barn at noon => photo of a red barn at noon in winter, covered in snow | make it snow
Vary place, time of day and wording of the instruction. Write the lines alone."""


def written_sentences(graph):
    """Ours, or, where its three nodes are switched on, what a language model writes."""
    writer = loading(graph.add("CLIPLoader", title="a language model", clip_name=models.QWEN3.name, type="lumina2"), models.QWEN3)
    given = {"sampling_mode": "on", "sampling_mode.temperature": 0.7, "max_length": 2048}
    written = graph.add("TextGenerate", title="writes sentences", clip=writer, prompt=ASKED, **given)
    lines = dict(regex_pattern=r"^[\d.)*\- ]*(.+=>.+\|.+)$", mode="All Matches", multiline=True)
    lines = graph.add("RegexExtract", title="only lines of the right form", string=written, **lines)
    graph.mute(writer, written, lines)
    return graph.add("StringConcatenate", title="the sentences", string_a=SNOW, string_b=lines, delimiter="\n")


@template("15 Teach a model a new instruction (SD1.5)", Shown.of("Teach a new\ninstruction", "instruct_training", your_image=1, make_it_striped=3))
def teach_instruction(graph):
    note(
        graph,
        "Teach a model a new instruction",
        "Draws images before and after an edit from your sentences, keeps the good ones, and trains a model that follows the instruction.",
        "**First:** press *Run*: as it is, it teaches *make it snow*. For your own edit write sentences in group 2, *before => after | "
        "instruction*, a new *folder* and *name* in groups 3 and 4, and your instruction in group 5.",
        "*More sentences* teach more: a line of names makes variants, or have them written: select the three nodes of group 2 that are "
        "switched off and press Ctrl+M. **Bad pairs:** delete them in *output/controlled_diffusion/pairs*.",
        "**Needs:** about 14 GB of GPU memory, and an hour on an RTX 4090 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SD15)
    given = dict(model=loaded["MODEL"], clip=loaded["CLIP"], vae=loaded["VAE"])
    with graph.group("2 The sentences"):
        sentences = written_sentences(graph)
    with graph.group("3 Pairs of images"):
        vision = loading(graph.add("CLIPVisionLoader", clip_name=models.VIT_L.name), models.VIT_L)
        text = loading(graph.add("CLIPLoader", title="CLIP's text tower", clip_name=models.CLIP_L_WHOLE.name), models.CLIP_L_WHOLE)
        good = graph.add("PairFilter", by="CLIP", **{"by.clip_vision": vision, "by.clip_text": text})
        sockets = dict(options=graph.add("PairOptions", steps=30), filter=good, **given)
        texts = dict(prompt_pairs=sentences, negative="", folder="make-it-snow")
        pairs = graph.add("InstructPix2PixPairs", width=512, height=512, candidates=8, keep=2, seed=1, **sockets, **texts)
        both = graph.add("BatchImagesNode", images=[pairs["before"], pairs["after"]])
        graph.add("PreviewImage", title="before, then after", images=both)
    with graph.group("4 Train"):
        knobs = {"train": "every layer", "train.rank": 32, "steps": 2000, "batch_size": 8, "learning_rate": 0.0002}
        trained = graph.add("InstructPix2PixTrainer", name="make-it-snow", folder=pairs["folder"], **given, **knobs)
        graph.add("PreviewImage", title="loss curve", images=trained["loss_curve"])
    with graph.group("5 Edit your image"):
        image = image_at(graph, 0.25)
        asked, nothing = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **{"the instruction": "make it snow", "no instruction": ""})
        scales = dict(positive=asked, negative=nothing, image=image, vae=loaded["VAE"], text_scale=7.5, image_scale=1.5)
        guider = graph.add("InstructPix2PixGuider", model=trained["model"], **scales)
    with graph.group("6 Sample"):
        sigmas = graph.add("BasicScheduler", model=trained["model"], scheduler="normal", steps=50, denoise=1.0)
        latent = sampled_with(graph, guider["guider"], guider["latent"], sigmas, seed=1)
    with graph.group("7 Result"):
        before_and_after(graph, image, graph.add("VAEDecode", samples=latent, vae=loaded["VAE"]), "teach_instruction")


WORKFLOWS = [train_subject, train_word, teach_instruction]
