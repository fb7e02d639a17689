"""Multi-condition guidance."""

from .parts import guidance_channel, half, ksampler, latent_size, prompt_nodes, sampled_with, saved


def multi_cfg_guider(graph):
    graph.note(
        "# Multi CFG Guider\n\nOne castle, half by night and half by day: two prompts, each in its own half of the image, which no single "
        "prompt can say. A third, negative one keeps the look of a watercolor away. Every channel has its own weight, schedule and region. "
        "See **weights over the steps**.\n\nTry: swap the masks; another ground on one side, as *in the snow*; set a weight to 0 (the "
        "channel is not evaluated); set *conflict* to `perpendicular`."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 4)
    with graph.group("2 Prompts"):
        texts = {
            "left prompt": "a large castle in the middle at night",
            "right prompt": "a large castle in the middle on grass",
            "unwanted": "a watercolor of a castle",
        }
        night, day, watercolor, empty = prompt_nodes(graph, model, **texts, unconditional="")
    with graph.group("3 Regions and time"):
        left, right = half(graph, True), half(graph, False)
        fade = {"shape": "cosine", "shape.first": 1.5, "shape.last": 0.5, "shape.axis": "percent"}
        early = graph.add("GuidanceSchedule", title="fade out", **fade, start_percent=0.0, end_percent=1.0)
    with graph.group("4 Channels"):
        towards = dict(weight=5.0, role="positive", schedule=early)
        one = guidance_channel(graph, title="left", conditioning=night, name="left: night", mask=left, **towards)
        two = guidance_channel(graph, title="right", conditioning=day, name="right: day", mask=right, previous=one, **towards)
        away = dict(weight=1.0, role="negative", name="no watercolor", end_percent=0.7)
        three = guidance_channel(graph, title="no watercolor", conditioning=watercolor, previous=two, **away)
    with graph.group("5 Sample"):
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
        guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[three], conflict="sum", sigmas=sigmas)
        latent = sampled_with(graph, guider["guider"], size, sigmas, seed=3)
    with graph.group("6 Image"):
        saved(graph, model["vae"], latent, "multi_cfg")
        graph.add("PreviewImage", title="weights over the steps", images=guider["weights"])


def multi_cfg_patch(graph):
    graph.note(
        "# Multi CFG Patch\n\nThe same channels on top of a plain KSampler: the prompt asks for *a car* of any color; one channel guides "
        "towards a watercolor, another away from red. The images of **alone** are the KSampler's, with the same seeds.\n\nA channel of "
        "weight 0 costs nothing and changes nothing. Try other styles: *a pencil drawing of …*, *a 3d render of …*."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 4)
    with graph.group("2 Prompts"):
        texts = dict(more="a watercolor of a large car on the beach", less="a red car on the beach")
        positive, negative, more, less = prompt_nodes(graph, model, positive="a large car on the beach", negative="", **texts)
    with graph.group("3 Channels"):
        first = guidance_channel(graph, title="more watercolor", conditioning=more, weight=4.0, role="positive", name="watercolor")
        second = guidance_channel(graph, title="less red", conditioning=less, weight=2.0, role="negative", name="red")
        patch = graph.add("MultiCFGPatch", model=model["model"], channels=[first, second], conflict="sum")
    with graph.group("4 Sample"):
        plain = ksampler(graph, model["model"], positive, negative, size, title="KSampler alone", seed=5)
        guided = ksampler(graph, patch["model"], positive, negative, size, title="KSampler with channels", seed=5)
    with graph.group("5 Image"):
        for title, latent in (("alone", plain), ("with channels", guided)):
            saved(graph, model["vae"], latent, "multi_cfg_patch", title)


def guidance_report(graph):
    graph.note(
        "# Guidance Report\n\nThree prompts that conflict: an umbrella, a balloon, and nothing red. The report shows the weight and the "
        "strength of each channel, and which channels conflict.\n\nTry *conflict* `project` with the umbrella at priority 1, and look at "
        "the report again."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = latent_size(graph, 4)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Prompts"):
        texts = dict(umbrella="a large umbrella on the beach", balloon="a large balloon on the beach")
        umbrella, balloon, red, empty = prompt_nodes(graph, model, **texts, red="a red umbrella on the beach", unconditional="")
    with graph.group("3 Channels"):
        one = guidance_channel(graph, title="umbrella", conditioning=umbrella, weight=4.0, role="positive", name="umbrella", priority=1)
        two = guidance_channel(graph, title="balloon", conditioning=balloon, weight=2.0, role="positive", name="balloon", previous=one)
        away = dict(weight=2.0, role="negative", name="not red", end_percent=0.8)
        three = guidance_channel(graph, title="not red", conditioning=red, previous=two, **away)
    with graph.group("4 Sample"):
        guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[three], conflict="sum")["guider"]
        latent = sampled_with(graph, guider, size, sigmas, seed=11)
    with graph.group("5 Report"):
        report = graph.add("GuidanceReport", source=guider, latent=latent)
        graph.add("SaveImage", title="report", images=report["report"], filename_prefix="guidance_report")
        images = graph.add("VAEDecode", samples=report["latent"], vae=model["vae"])
        graph.add("SaveImage", title="images", images=images, filename_prefix="guidance_report_images")


WORKFLOWS = [multi_cfg_guider, multi_cfg_patch, guidance_report]
