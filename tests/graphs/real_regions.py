"""Templates for published models: change a region that words name, or that paint shows; a LoRA for each of two people."""

from . import models
from .parts import ksampler, prompt_nodes
from .real import DRAWN, LORAS, before_and_after, checkpoint, image_at, masked_image_at, note, template
from .real_flow import flux_parts
from .thumbnails import Shown


@template("03 Find the region by words and change only that (SDXL)", Shown.of("Find the region\nby words", "diffedit", blue_car=0, the_region=1, red_car=3))
def region_by_words(graph):
    note(
        graph,
        "Find the region by words and change only that",
        "Compares what the two prompts predict, masks where they differ, and changes only the mask. Every other pixel stays (DiffEdit).",
        "**First:** load your image, describe it, and write the same with one thing changed. To choose the region yourself, right-click the "
        "image, *Open in MaskEditor*, and paint what may change.",
        "**The mask is too small:** lower *threshold* or raise *dilate*. **The old thing shows through:** *encode_ratio* 1.",
        "**Needs:** about 10 GB of GPU memory, and a minute on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
    with graph.group("2 Your image"):
        painted, image = masked_image_at(graph, 1.0)
    with graph.group("3 Your words"):
        texts = {"what the image shows": DRAWN, "what it should show": DRAWN.replace("pink dress", "red dress"), "negative": ""}
        source, target, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **texts)
    given = dict(model=loaded["MODEL"], source=source, image=image, vae=loaded["VAE"])
    with graph.group("4 Find the region"):
        found = graph.add("DiffEditMask", target=target, seed=0, dilate=0.01, painted=painted, **given)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
    with graph.group("5 Change it"):
        given |= dict(negative=negative, mask=found["mask"])
        edit = graph.add("DiffEditSampler", positive=target, steps=50, cfg=7.0, encode_ratio=0.9, scheduler="normal", **given)
    with graph.group("6 Result"):
        before_and_after(graph, image, edit["image"], "region_by_words")


@template("04 Paint to image (SDXL)", Shown.of("Paint to image", "sdedit", strokes=0, a_red_car=3))
def paint_to_image(graph):
    note(
        graph,
        "Paint to image",
        "Paint on the sheet; the sampler adds noise to your strokes and makes an image of them (SDEdit).",
        "**First:** paint (the brush needs *Nodes 2.0* in ComfyUI's menu) and write the prompt. Without *image* the sheet is empty.",
        "**Closer to the strokes:** *strength* 0.4. **More realistic:** 0.8.",
        "**Needs:** about 9 GB of GPU memory, and 10 seconds on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
    with graph.group("2 Sheet"):
        image = image_at(graph, 1.0)
    with graph.group("3 Paint"):
        painted = graph.add("Painter", image=image, width=1024, height=1024, bg_color="#f5f5f5")["IMAGE"]
    with graph.group("4 Your words"):
        text = "photo of a girl with blonde hair in a pink dress, arms spread, on a green hill, blue sky with white clouds, summer light"
        positive, negative = prompt_nodes(graph, {"clip": loaded["CLIP"]}, prompt=text, negative="drawing, painting, cartoon, low quality")
    with graph.group("5 Make an image of it"):
        given = dict(model=loaded["MODEL"], positive=positive, negative=negative, guide=painted, vae=loaded["VAE"])
        knobs = dict(seed=1, steps=30, cfg=6.0, sampler_name="euler_ancestral", scheduler="normal", strength=0.6, strength_unit="percent")
        made = graph.add("SDEditSampler", process="VP", repeats=1, **knobs, **given)
    with graph.group("6 Result"):
        before_and_after(graph, painted, made["image"], "paint_to_image")


BOTH = (
    "photo of an ohwx woman and a sks man sitting side by side on a park bench, the ohwx woman on the left, the sks man on the right, autumn trees, "
    "soft light"
)
PEOPLE = Shown.of("Two people,\ntwo LoRAs", "word_regions", both_mixed=0, each_its_own=1)


def two_people_note(graph, title: str, needs: str) -> None:
    note(
        graph,
        title,
        "Finds where the model draws each person, and lets a LoRA act there alone. No mask is drawn, and the faces do not mix.",
        "**First:** choose your LoRAs in *her LoRA* and *his LoRA*. Write their trigger words for `ohwx` and `sks` in *prompt* and *phrases*, the phrase of "
        "her LoRA first. A LoRA that changes the text encoder too: **Load LoRA** on the CLIP, *strength_model* 0.",
        "**Little likeness:** *start_percent* 0.1, or *strength_model* 1.2. **The regions are wrong:** *find_percent* 0.5, and say where each stands. **A face is "
        "cut:** *spread* 1.",
        f"**Needs:** {needs} (an estimate).",
    )


def people(graph, model: str) -> list:
    """The LoRA of each."""
    given = zip(("her", "his"), LORAS[model])
    return [
        graph.add("CreateHookLora", title=f"{whose} LoRA", lora_name=lora, strength_model=1.0, strength_clip=0.0) for whose, lora in given
    ]


def in_regions(graph, loaded, name: str, given: dict, negative, size, **knobs) -> None:
    """From the LoRAs to the image."""
    with graph.group("4 Regions"):
        found = graph.add("WordRegions", model=loaded["MODEL"], clip=loaded["CLIP"], prompt=BOTH, phrases="ohwx woman\nsks man", **given)
    with graph.group("5 Sample"):
        latent = ksampler(graph, found["model"], found["positive"], negative, size, **knobs)
        image = graph.add("VAEDecode", samples=latent, vae=loaded["VAE"])
    with graph.group("6 Result"):
        graph.add("SaveImage", title="the result", images=image, filename_prefix=name)
        view = graph.add("WordRegionsView", source=found["model"], latent=latent, image=image)
        graph.add("PreviewImage", title="the regions", images=view["table"])


@template("18 Two people, two LoRAs (SDXL)", PEOPLE)
def two_people(graph):
    two_people_note(graph, "Two people, two LoRAs", "about 11 GB of GPU memory, and 30 seconds on an RTX 4070")
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
        size = graph.add("EmptyLatentImage", width=1152, height=896, batch_size=1)
    with graph.group("2 Your LoRAs"):
        regions = people(graph, "sdxl")
    with graph.group("3 Negative"):
        (negative,) = prompt_nodes(graph, {"clip": loaded["CLIP"]}, negative="blurry, low quality, extra fingers")
    in_regions(graph, loaded, "two_people", dict(regions=regions), negative, size, steps=30, cfg=6.0, sampler_name="dpmpp_2m", scheduler="karras")


@template("19 Two people, two LoRAs (Flux)", PEOPLE)
def two_people_flux(graph):
    two_people_note(graph, "Two people, two LoRAs", "about 30 GB of memory, a GPU of 12 GB or more, and 2 minutes on an RTX 4070")
    with graph.group("1 Model"):
        loaded = flux_parts(graph, models.FLUX)
        size = graph.add("EmptySD3LatentImage", width=1152, height=896, batch_size=1)
    with graph.group("2 Your LoRAs"):
        regions = people(graph, "flux")
    with graph.group("3 The prompt of both"):
        both, empty = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **{"both, as in Word Regions": BOTH, "unused at cfg 1": ""})
        both = graph.add("FluxGuidance", conditioning=both, guidance=3.5)
    in_regions(graph, loaded, "two_people", dict(conditioning=both, regions=regions), empty, size, steps=24, cfg=1.0, scheduler="simple")


WORKFLOWS = [region_by_words, paint_to_image, two_people, two_people_flux]
