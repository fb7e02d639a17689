"""What templates for published models share: their loaders, an image at the model's size, and the result beside it."""

from .models import Model
from .thumbnails import Shown

EXAMPLE = "example.png"  # comes with ComfyUI
SUBJECT, VIDEO = "my_subject", "my_video.mp4"  # a folder and a file of the user
LORAS = {model: tuple(f"my_{who}_{model}.safetensors" for who in ("woman", "man")) for model in ("sdxl", "flux")}  # hers and his, for a model
DRAWN = "a child's drawing of a girl with yellow hair in a pink dress on a green hill, blue sky"


def template(name: str, shown: Shown):
    """Names the file of a template as the browser lists it, and what its thumbnail shows; the number in front orders the list."""

    def named(draw):
        draw.file_name, draw.shown = name, shown
        return draw

    return named


def note(graph, title: str, *lines: str) -> None:
    """What the template does, what to change first, memory and time: six lines at most."""
    graph.note("\n\n".join((f"# {title}", *lines)))


def checkpoint(graph, model: Model):
    return loading(graph.add("CheckpointLoaderSimple", ckpt_name=model.name), model)


def loading(node, *models: Model):
    """A loader that says where its files can be downloaded."""
    node.models += [model.entry for model in models]
    return node


def image_at(graph, megapixels: float, steps: int = 64):
    """The user's image at the size that the model was trained at; sides are multiples of `steps`."""
    return masked_image_at(graph, megapixels, steps)[1]


def masked_image_at(graph, megapixels: float, steps: int = 64):
    """(what the user painted over the image in ComfyUI's mask editor, the image as `image_at` gives it)"""
    loaded = graph.add("LoadImage", title="your image", image=EXAMPLE)
    given = dict(upscale_method="lanczos", megapixels=megapixels, resolution_steps=steps)
    return loaded["MASK"], graph.add("ImageScaleToTotalPixels", title="at the model's size", image=loaded["IMAGE"], **given)


def image_folder(graph, megapixels: float, steps: int = 64):
    """All images of a folder at the size that the model was trained at."""
    images = graph.add("LoadImageDataSetFromFolder", title="your images", folder=SUBJECT)["images"]
    given = dict(upscale_method="lanczos", megapixels=megapixels, resolution_steps=steps)
    return graph.add("ImageScaleToTotalPixels", title="at the model's size", image=images, **given)


def sentence(graph, title: str, text: str):
    """A text that several nodes read."""
    return graph.add("PrimitiveStringMultiline", title=title, value=text)


def before_and_after(graph, before, after, name: str):
    """Both under one slider, and the result as a file."""
    graph.add("ImageCompare", title="before and after", image_a=before, image_b=after)
    graph.add("SaveImage", title="the result", images=after, filename_prefix=name)
