"""Templates for published models: several prompts with weights, regions and schedules; an image as a prompt."""

from . import models
from .parts import guidance_channel, prompt_nodes
from .real import EXAMPLE, checkpoint, loading, note, template
from .thumbnails import Shown

REGIONAL = Shown("Regional prompts\nwith weights", [("multi_cfg_guider", 1, "night  |  day")], "halves")


def sampled(graph, loaded, guiders, size, sigmas, seed: int = 1):
    """(latent, image) of each guider with the same noise, as SamplerCustomAdvanced makes them."""
    given = dict(sigmas=sigmas, latent_image=size)
    given |= dict(sampler=graph.add("KSamplerSelect", sampler_name="dpmpp_2m"), noise=graph.add("RandomNoise", noise_seed=seed))
    latents = [graph.add("SamplerCustomAdvanced", guider=guider, **given)["output"] for guider in guiders]
    return [(latent, graph.add("VAEDecode", samples=latent, vae=loaded["VAE"])) for latent in latents]


def sheet(graph, loaded):
    """(an empty latent of SDXL's size, the noise levels)"""
    size = graph.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    return size, graph.add("BasicScheduler", model=loaded["MODEL"], scheduler="karras", steps=30, denoise=1.0)


def halves(graph):
    """Masks of the left and the right half of the image with a soft edge between them."""
    nothing = graph.add("SolidMask", title="nothing", value=0.0, width=1024, height=1024)
    side = graph.add("SolidMask", title="half", value=1.0, width=544, height=1024)
    placed = graph.add("MaskComposite", destination=nothing, source=side, x=0, y=0, operation="add")
    left = graph.add("FeatherMask", title="left half, with a soft edge", mask=placed, left=0, top=0, right=64, bottom=0)
    return left, graph.add("InvertMask", title="right half", mask=left)


@template("05 Regional prompts with their own weights and schedules (SDXL)", REGIONAL)
def regional_prompts(graph):
    note(
        graph,
        "Regional prompts with their own weights and schedules",
        "One prompt for the whole image and one for each half. Each has its own weight and its own range of the sampling.",
        "**First:** change the three texts. For other regions connect **Load Image (as Mask)** to *mask*.",
        "**A region is too weak:** raise its *weight* (6–10). **The halves do not fit together:** a stronger prompt for all.",
        "**Needs:** about 9 GB of GPU memory, and 15 seconds on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
        size, sigmas = sheet(graph, loaded)
    with graph.group("2 Your words"):
        whole = "wide photo of a mountain valley at sunset, highly detailed"
        left, right = "an old stone castle on a cliff on the left", "a waterfall in a pine forest on the right"
        texts = {"the whole image": whole, "left half": left, "right half": right}
        everywhere, left, right, empty = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **texts, unconditional="")
    with graph.group("3 Regions"):
        on_the_left, on_the_right = halves(graph)
    with graph.group("4 Weights and schedules"):
        fade = {"shape": "cosine", "shape.first": 1.5, "shape.last": 0.5, "shape.axis": "percent"}
        layout = graph.add("GuidanceSchedule", title="strong first, then weaker", **fade)
        one = guidance_channel(graph, title="the whole image", conditioning=everywhere, weight=4.0, name="all", schedule=layout)
        two = guidance_channel(graph, title="left half", conditioning=left, weight=6.0, name="left", mask=on_the_left, previous=one)
        given = dict(conditioning=right, weight=6.0, name="right", mask=on_the_right, previous=two)
        three = guidance_channel(graph, title="right half", **given)
    with graph.group("5 Sample"):
        given = dict(model=loaded["MODEL"], unconditional=empty, channels=[three], sigmas=sigmas)
        guider = graph.add("MultiCFGGuider", conflict="sum", rescale=0.5, **given)
        ((_, image),) = sampled(graph, loaded, [guider["guider"]], size, sigmas)
    with graph.group("6 Result"):
        graph.add("SaveImage", title="the result", images=image, filename_prefix="regional_prompts")
        graph.add("PreviewImage", title="weights over the steps", images=guider["weights"])


@template("06 Several negatives, each with its own weight (SDXL)", Shown.of("Several negatives,\nweighted", "multi_cfg_patch", a_car=0, not_red_but_painted=2))
def several_negatives(graph):
    note(
        graph,
        "Several negatives, each with its own weight",
        "Three negatives with their own weights and ranges. All guidance rests at both ends of the sampling.",
        "**First:** change the texts. A weight of 0 switches a negative off and costs nothing.",
        "**Weights:** negatives that act at the same time add up; 6 next to a positive of 7 act as a KSampler's negative. Keep them below 7.",
        "**The image burns:** lower all weights. The report shows which prompts act when, and which conflict.",
        "**Needs:** about 9 GB of GPU memory, and 20 seconds on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
        size, sigmas = sheet(graph, loaded)
    with graph.group("2 Your words"):
        texts = {
            "what you want": "portrait photo of an old fisherman in a yellow raincoat, harbor in the background, soft light",
            "never": "blurry, low quality",
            "not the style": "drawing, painting, 3d render",
            "not these details": "text, watermark, extra fingers",
        }
        wanted, never, style, details, empty = prompt_nodes(graph, {"clip": loaded["CLIP"]}, **texts, unconditional="")
    with graph.group("3 Weights and schedules"):
        middle = {"shape": "constant", "shape.value": 1.0}
        interval = graph.add("GuidanceSchedule", title="only where it helps", start_percent=0.1, end_percent=0.9, **middle)
        given = dict(conditioning=wanted, weight=7.0, name="wanted", priority=1, schedule=interval)
        channel = guidance_channel(graph, title="what you want", **given)
        for title, conditioning, weight, start, end in (
            ("never", never, 2.0, 0.1, 0.9),
            ("not the style", style, 2.0, 0.1, 0.6),
            ("not these details", details, 2.0, 0.3, 0.9),
        ):
            given = dict(conditioning=conditioning, weight=weight, role="negative", start_percent=start, end_percent=end, name=title)
            channel = guidance_channel(graph, title=title, previous=channel, **given)
    with graph.group("4 Sample"):
        given = dict(model=loaded["MODEL"], unconditional=empty, channels=[channel], sigmas=sigmas)
        guider = graph.add("MultiCFGGuider", conflict="sum", rescale=0.5, **given)["guider"]
        ((latent, image),) = sampled(graph, loaded, [guider], size, sigmas)
    with graph.group("5 Result"):
        graph.add("SaveImage", title="the result", images=image, filename_prefix="several_negatives")
        graph.add("PreviewImage", title="report", images=graph.add("GuidanceReport", source=guider, latent=latent)["report"])


@template("09 An image as a prompt with its own weight (SDXL)", Shown.of("An image\nas a prompt", "ip_adapter_channel", an_image=0, a_text=1, both=3))
def image_as_prompt(graph):
    note(
        graph,
        "An image as a prompt with its own weight",
        "The text and a reference image guide the sampling as two terms, each with its own weight (IP-Adapter). Left: the text alone.",
        "**First:** load a reference and write a prompt. A browser saves the encoder as *model.safetensors*: give it the name shown.",
        "**Too much of the image:** channel *weight* 1–2, or *layer_weights* `all:0, output1:1` for its style alone.",
        "**Needs:** about 12 GB of GPU memory, and 40 seconds on an RTX 4070 (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, models.SDXL)
        adapter = loading(graph.add("IPAdapterLoader", adapter_name=models.IP_ADAPTER.name), models.IP_ADAPTER)
        encoder = loading(graph.add("CLIPVisionLoader", clip_name=models.VIT_H.name), models.VIT_H)
        size, sigmas = sheet(graph, loaded)
    with graph.group("2 Your image and words"):
        reference = graph.add("LoadImage", title="the reference", image=EXAMPLE)["IMAGE"]
        text, empty = prompt_nodes(graph, {"clip": loaded["CLIP"]}, prompt="a house by the sea, children's book illustration", unconditional="")
    with graph.group("3 Weights"):
        given = dict(model=loaded["MODEL"], adapter=adapter, clip_vision=encoder, image=reference, conditioning=text)
        patched = graph.add("IPAdapterPatch", weight=1.0, combine="concat", **given)
        words = guidance_channel(graph, title="the text", conditioning=text, weight=7.0, name="text")
        given = dict(conditioning=patched["conditioning"], null=patched["null"], weight=3.0, name="image")
        both = guidance_channel(graph, title="the image", previous=words, **given)
    with graph.group("4 Sample"):
        given = dict(model=patched["model"], unconditional=empty, conflict="sum", rescale=0.5)
        ways = {"by the text alone": words, "by text and image": both}
        guiders = [graph.add("MultiCFGGuider", title=title, channels=[channel], **given)["guider"] for title, channel in ways.items()]
        (_, alone), (_, together) = sampled(graph, loaded, guiders, size, sigmas)
    with graph.group("5 Result"):
        graph.add("ImageCompare", title="the text alone, and with the image", image_a=alone, image_b=together)
        graph.add("SaveImage", title="the result", images=together, filename_prefix="image_as_prompt")


WORKFLOWS = [regional_prompts, several_negatives, image_as_prompt]
