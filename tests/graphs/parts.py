"""What several example workflows share."""

from harness.workflow import display_name

SIDE = 192  # pixels, of the demo model's images
SHAPES_SIDE = 128  # of the world of shapes
SCENE, SCENE_SEED = "a tree on the left and a yellow umbrella on the right on a beach", 1560

REPLACED = {  # what belongs to the demo model, and what to do with your own
    "DemoModelLoader": "replace {} with **Load Checkpoint** and move its links, three at most",
    "DemoInstructModelLoader": "replace {} with a loader of an InstructPix2Pix model and move its links, three at most",
    "DemoImageEncoderLoader": "replace {} with **Load CLIP Vision**",
    "DemoImages": "replace {} with **Load Image**, at the image size of your model",
    "IPAdapterLoader": "choose an IP-Adapter for your model in {}",
    "NoisyClassifierLoader": "choose a classifier trained for your model in {}",
    "ControlNetLoader": "choose a ControlNet for your model in {}",
    "LoadInversion": "choose an inversion made with your model in {}",
}


def own_model(graph) -> str:
    """How to use the workflow with your own model, by its nodes."""
    kinds = {node.class_type: f"**{display_name(node.info)}**" for node in graph.nodes}
    ways = [way.format(kinds[kind]) for kind, way in REPLACED.items() if kind in kinds]
    ways += [f"set the size in {name}" for kind, name in kinds.items() if kind != "EmptyImage" and has_size(kind, graph)]
    if "EmptyImage" in kinds:
        ways.append("replace the painted image with **Load Image**, at the image size of your model")
    if any(kind.endswith("Trainer") for kind in kinds):
        ways.append("use the typical values for your model from the trainer's help page")
    return f"\n\n*To use your own model: {'; '.join(ways)}.*"


def has_size(kind: str, graph) -> bool:
    return any("width" in node.widgets for node in graph.nodes if node.class_type == kind and "Mask" not in kind)


def prompt_nodes(graph, model, **texts):
    return [graph.add("CLIPTextEncode", title=title, clip=model["clip"], text=text) for title, text in texts.items()]


def color(red: int, green: int, blue: int) -> int:
    return red << 16 | green << 8 | blue


def guidance_channel(graph, weight: float, role: str = "positive", **given):
    return graph.add("GuidanceChannel", role=role, **{"role.weight": weight}, **given)


def sampled_with(graph, guider, size, sigmas, seed: int):
    """The latent that SamplerCustomAdvanced makes with a guider."""
    sampler, noise = graph.add("KSamplerSelect", sampler_name="euler"), graph.add("RandomNoise", noise_seed=seed)
    return graph.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=size)["output"]


def guided(graph, model, empty, channel, size, sigmas, seed: int):
    """The latent that a model makes under one channel, and what precedes it."""
    guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[channel], conflict="sum")
    return sampled_with(graph, guider["guider"], size, sigmas, seed)


def sheet(graph):
    """White paper to paint on."""
    return graph.add("EmptyImage", title="paper", width=SIDE, height=SIDE, batch_size=1, color=color(255, 255, 255))


def stroke(graph, image, paint: tuple, x: int, y: int, width: int, height: int):
    """A rectangle of paint on an image."""
    painted = graph.add("EmptyImage", title="paint", width=width, height=height, batch_size=1, color=color(*paint))
    return graph.add("ImageCompositeMasked", title="stroke", destination=image, source=painted, x=x, y=y, resize_source=False)


def moonlit(graph, images):
    """Images with a moon at the top right."""
    for x, y, width, height in ((148, 20, 28, 12), (156, 12, 12, 28), (151, 15, 22, 22)):
        images = stroke(graph, images, (250, 240, 190), x, y, width, height)
    return images


def demo_images(graph, show: str, count: int, seed: int):
    """Load Demo Images of a kind."""
    return graph.add("DemoImages", show=show, count=count, seed=seed)


def scene(graph, seed: int = SCENE_SEED):
    """An image that is drawn, not generated: what `SCENE` says, or another."""
    return demo_images(graph, "scenes", 1, seed)["images"]


def scene_prompts(graph, model, target: str, source: str = SCENE):
    """The source prompt of a `scene`, a target prompt and an empty negative."""
    texts = {"source: describes the image": source, "target: describes the result": target, "negative": ""}
    return prompt_nodes(graph, model, **texts)


def half(graph, left: bool):
    """A mask of one half of the image."""
    side = graph.add("SolidMask", title="half", value=1.0, width=SIDE // 2, height=SIDE)
    nothing = graph.add("SolidMask", title="nothing", value=0.0, width=SIDE, height=SIDE)
    title, x = ("left half", 0) if left else ("right half", SIDE // 2)
    return graph.add("MaskComposite", title=title, destination=nothing, source=side, x=x, y=0, operation="add")


def ksampler(graph, model, positive, negative, latent_image, **widgets):
    """ComfyUI's KSampler with the settings of the examples; `widgets` override them."""
    usual = dict(seed=1, steps=20, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    return graph.add("KSampler", model=model, positive=positive, negative=negative, latent_image=latent_image, **usual | widgets)


def latent_size(graph, count: int):
    """As many empty latents of the demo model's size."""
    return graph.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=count)


def images_of(graph, model, texts, each: int, seed: int = 1) -> list:
    """Images of the model itself, `each` of every text."""
    negative = graph.add("CLIPTextEncode", title="negative", clip=model["clip"], text="")
    size = latent_size(graph, each)
    prompts = prompt_nodes(graph, model, **{f"shown {i}": text for i, text in enumerate(texts, 1)})
    latents = [ksampler(graph, model["model"], prompt, negative, size, seed=seed) for prompt in prompts]
    return [graph.add("VAEDecode", samples=latent, vae=model["vae"]) for latent in latents]


def compared(graph, model, ways, size, name: str, seed: int = 3):
    """Saves images of the same seeds for each of `ways`, (title, MODEL, text); the negative prompt is empty."""
    negative = graph.add("CLIPTextEncode", title="negative", clip=model["clip"], text="")
    empty = latent_size(graph, size)
    for title, used, text in ways:
        positive = graph.add("CLIPTextEncode", title=title, clip=model["clip"], text=text)
        saved(graph, model["vae"], ksampler(graph, used, positive, negative, empty, seed=seed), name, title)


def saved(graph, vae, latent, name: str, title: str = "images"):
    """Decodes a latent and saves the images."""
    return graph.add("SaveImage", title=title, images=graph.add("VAEDecode", samples=latent, vae=vae), filename_prefix=name)
