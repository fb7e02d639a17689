"""Templates for published models: change a region that words name, or that paint shows."""

from . import models
from .parts import prompt_nodes
from .real import DRAWN, before_and_after, checkpoint, image_at, masked_image_at, note, template
from .thumbnails import Shown


@template("03 Find the region by words and change only that (SDXL)", Shown.of("Find the region\nby words", "diffedit", blue_circle=0, the_region=1, yellow_circle=3))
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


@template("04 Paint to image (SDXL)", Shown.of("Paint to image", "sdedit", strokes=0, with_noise=1, star_and_circle=2))
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


WORKFLOWS = [region_by_words, paint_to_image]
