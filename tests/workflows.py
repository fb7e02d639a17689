"""Writes example_workflows/: `python . run tests/workflows.py` lays the graphs out, `--thumbnails` also runs them.

A workflow may as well be saved from the browser; this script keeps the first ones alike.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from harness.graph import Graph
from harness.server import Server
from harness.workflow import to_prompt

FOLDER = Path(__file__).parents[1] / "example_workflows"
SWAP = "\n\n*To use your own model, put your checkpoint loader in the place of **Load Demo Model** and set the latent's size.*"


def prompt_nodes(graph, model, **texts):
    return [graph.add("CLIPTextEncode", title=title, clip=model["clip"], text=text) for title, text in texts.items()]


def color(red: int, green: int, blue: int) -> int:
    return red << 16 | green << 8 | blue


def demo_model(graph):
    graph.note(
        "# The demo model\n\nA tiny text-to-image model that ships with the pack: coloured shapes, 128 x 128, seconds on a laptop.\n\n"
        "Colours: red, orange, yellow, green, blue, purple. Shapes: circle, square, triangle, star, cross. Backgrounds: white, gray, "
        "black, pink. Also: striped, dotted, small, large; on the left, on the right, at the top, at the bottom." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt"):
        positive, negative = prompt_nodes(
            graph, model, positive="a large striped blue star and a small red circle on a gray background", negative=""
        )
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    with graph.group("3 Sample"):
        latent = graph.add(
            "KSampler",
            model=model["model"],
            positive=positive,
            negative=negative,
            latent_image=size,
            seed=1,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
    with graph.group("4 Picture"):
        graph.add(
            "SaveImage", title="pictures", images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix="demo_model"
        )


def half(graph, left: bool):
    """A mask of one half of the picture."""
    side = graph.add("SolidMask", title="half", value=1.0, width=64, height=128)
    nothing = graph.add("SolidMask", title="nothing", value=0.0, width=128, height=128)
    return graph.add(
        "MaskComposite",
        title=f"{'left' if left else 'right'} half",
        destination=nothing,
        source=side,
        x=0 if left else 64,
        y=0,
        operation="add",
    )


def multi_cfg_guider(graph):
    graph.note(
        "# Multi CFG Guider\n\nTwo wishes, each in its own half of the picture, and a third that pushes away. Every channel has its own "
        "weight, schedule and region; the picture on the right draws the weights over the steps.\n\nTry: swap the masks; set a weight "
        "to 0 (the channel is no longer evaluated); set *conflict* to `perpendicular`." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    with graph.group("2 Wishes"):
        red, blue, striped, empty = prompt_nodes(
            graph,
            model,
            **{
                "left wish": "a red circle on the left on a white background",
                "right wish": "a blue star on the right on a white background",
                "unwanted": "a striped circle on a white background",
                "unconditional": "",
            },
        )
    with graph.group("3 Regions and time"):
        left, right = half(graph, True), half(graph, False)
        early = graph.add(
            "GuidanceSchedule",
            title="fade out",
            shape="cosine",
            **{"shape.first": 1.5, "shape.last": 0.5, "shape.axis": "percent"},
            start_percent=0.0,
            end_percent=1.0,
        )
    with graph.group("4 Channels"):
        one = graph.add(
            "GuidanceChannel",
            title="left",
            conditioning=red,
            weight=5.0,
            role="positive",
            name="left: red circle",
            mask=left,
            schedule=early,
        )
        two = graph.add(
            "GuidanceChannel",
            title="right",
            conditioning=blue,
            weight=5.0,
            role="positive",
            name="right: blue star",
            mask=right,
            schedule=early,
            previous=one,
        )
        three = graph.add(
            "GuidanceChannel",
            title="not striped",
            conditioning=striped,
            weight=1.0,
            role="negative",
            name="not striped",
            end_percent=0.7,
            previous=two,
        )
    with graph.group("5 Sample"):
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
        guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[three], conflict="sum", sigmas=sigmas)
        latent = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=3),
            guider=guider["guider"],
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=sigmas,
            latent_image=size,
        )
    with graph.group("6 Picture"):
        graph.add(
            "SaveImage",
            title="pictures",
            images=graph.add("VAEDecode", samples=latent["output"], vae=model["vae"]),
            filename_prefix="multi_cfg",
        )
        graph.add("PreviewImage", title="weights over the steps", images=guider["weights"])


def multi_cfg_patch(graph):
    graph.note(
        "# Multi CFG Patch\n\nThe same channels on top of a plain KSampler: the prompt asks for *a circle* and leaves the colour open; one "
        "channel pushes red away, another pulls towards *striped*. The upper picture is the KSampler alone, with the same seed.\n\n"
        "A channel of weight 0 costs nothing and changes nothing." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    with graph.group("2 Prompts"):
        positive, negative, more, less = prompt_nodes(
            graph,
            model,
            positive="a large circle on a white background",
            negative="",
            more="a large striped circle on a white background",
            less="a red circle on a white background",
        )
    with graph.group("3 Channels"):
        first = graph.add("GuidanceChannel", title="more stripes", conditioning=more, weight=4.0, role="positive", name="striped")
        second = graph.add("GuidanceChannel", title="less red", conditioning=less, weight=2.0, role="negative", name="red")
        patch = graph.add("MultiCFGPatch", model=model["model"], channels=[first, second], conflict="sum")
    settings = dict(
        positive=positive,
        negative=negative,
        latent_image=size,
        seed=5,
        steps=20,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    with graph.group("4 Sample"):
        plain = graph.add("KSampler", title="KSampler alone", model=model["model"], **settings)
        guided = graph.add("KSampler", title="KSampler with channels", model=patch["model"], **settings)
    with graph.group("5 Picture"):
        for title, latent in (("alone", plain), ("with channels", guided)):
            graph.add("SaveImage", title=title, images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix=title)


def stroke(graph, picture, paint: tuple, x: int, y: int, width: int, height: int):
    """A rectangle of paint on a picture."""
    return graph.add(
        "ImageCompositeMasked",
        title="stroke",
        destination=picture,
        source=graph.add("EmptyImage", title="paint", width=width, height=height, batch_size=1, color=color(*paint)),
        x=x,
        y=y,
        resize_source=False,
    )


def sdedit(graph):
    graph.note(
        "# SDEdit: strokes to picture\n\nTwo rough strokes of paint say what goes where. The sampler noises them to the *strength* and denoises "
        "them with the prompt.\n\nTry strengths from 0.3 (faithful to the strokes) to 0.8 (realistic); *repeats* 2; process VE." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        positive, negative = prompt_nodes(
            graph, model, positive="a red star on the left and a blue circle on the right on a white background", negative=""
        )
    with graph.group("2 Paint"):
        paper = graph.add("EmptyImage", title="paper", width=128, height=128, batch_size=1, color=color(245, 245, 245))
        strokes = stroke(graph, stroke(graph, paper, (214, 40, 40), 14, 42, 42, 40), (48, 92, 214), 74, 44, 40, 42)
    with graph.group("3 Sample"):
        result = graph.add(
            "SDEditSampler",
            model=model["model"],
            positive=positive,
            negative=negative,
            guide=strokes,
            vae=model["vae"],
            seed=2,
            steps=20,
            cfg=4.0,
            sampler_name="euler_ancestral",
            scheduler="normal",
            strength=0.65,
            strength_unit="percent",
            process="VP",
            repeats=1,
        )
    with graph.group("4 Picture"):
        graph.add("PreviewImage", title="strokes", images=strokes)
        graph.add("PreviewImage", title="noisy start", images=graph.add("VAEDecode", samples=result["noisy_start"], vae=model["vae"]))
        graph.add("SaveImage", title="picture", images=result["image"], filename_prefix="sdedit")


def sdedit_masked(graph):
    graph.note(
        "# SDEdit with a mask\n\nA picture of the model itself; a stroke of paint on its right half, and a mask that lets only this half change. "
        "The left half stays as it is, to the last pixel.\n\nConnect your own picture and mask (right click, *Open in MaskEditor*) in their place."
        + SWAP
    )
    with graph.group("1 Model and picture"):
        model = graph.add("DemoModelLoader")
        before, after, negative = prompt_nodes(
            graph,
            model,
            before="a green square on the left on a white background",
            after="a green square on the left and a red circle on the right on a white background",
            negative="",
        )
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        latent = graph.add(
            "KSampler",
            model=model["model"],
            positive=before,
            negative=negative,
            latent_image=size,
            seed=4,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        picture = graph.add("VAEDecode", samples=latent, vae=model["vae"])
    with graph.group("2 Paint and mask"):
        painted = stroke(graph, picture, (214, 40, 40), 74, 44, 42, 42)
        mask = half(graph, False)
    with graph.group("3 Sample"):
        result = graph.add(
            "SDEditSampler",
            model=model["model"],
            positive=after,
            negative=negative,
            guide=painted,
            original=picture,
            mask=mask,
            vae=model["vae"],
            seed=2,
            steps=20,
            cfg=4.0,
            sampler_name="euler_ancestral",
            scheduler="normal",
            strength=0.7,
            strength_unit="percent",
            process="VP",
            repeats=1,
        )
    with graph.group("4 Picture"):
        for title, image in (("before", picture), ("painted", painted)):
            graph.add("PreviewImage", title=title, images=image)
        graph.add("SaveImage", title="after", images=result["image"], filename_prefix="sdedit_masked")


WORKFLOWS = [demo_model, multi_cfg_guider, multi_cfg_patch, sdedit, sdedit_masked]


def thumbnail(server: Server, path: Path) -> None:
    """Four pictures of what the workflow makes, beside it: of two or more nodes, two of the first and two of the last."""
    made = server.images_by_node(server.run(to_prompt(path, server.object_info()))).values()
    groups = [[p.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS) for p in batch if p.width == p.height] for batch in made]
    groups = [g for g in groups if g]
    pictures = groups[0][:2] + groups[-1][:2] if len(groups) > 1 and len(groups[0]) > 1 else [p for g in groups for p in g]
    pictures = [*pictures, *[pictures[-1]] * 3][:4]
    paper = Image.new("RGB", (512, 512))
    for i, picture in enumerate(pictures):
        paper.paste(picture, (i % 2 * 256, i // 2 * 256))
    paper.save(path.with_suffix(".jpg"), quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thumbnails", action="store_true", help="run every workflow and draw its thumbnail")
    options = parser.parse_args()
    with Server() as server:
        for describe in WORKFLOWS:
            graph = Graph(describe.__name__, server.object_info())
            describe(graph)
            path = graph.save(FOLDER / f"{describe.__name__}.json")
            if options.thumbnails:
                thumbnail(server, path)
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
