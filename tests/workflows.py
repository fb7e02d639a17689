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


def instruct_pix2pix(graph, loader: str):
    """Waits for an instruction model that ships with the pack: `loader` is the node that loads it (model, clip, vae)."""
    graph.note(
        "# InstructPix2Pix\n\nAn instruction edits a picture. *text_scale* says how strongly the instruction acts, *image_scale* how closely "
        "the result keeps to the picture.\n\nTry: image_scale 1 and 2.5; text_scale 3 and 10. The lower picture is made by a KSampler with "
        "the patch, whose cfg is the text scale." + SWAP
    )
    with graph.group("1 Picture"):
        demo = graph.add("DemoModelLoader")
        before, empty = prompt_nodes(graph, demo, before="a red circle on a white background", empty="")
        drawn = graph.add(
            "KSampler",
            model=demo["model"],
            positive=before,
            negative=empty,
            latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=1),
            seed=4,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        picture = graph.add("VAEDecode", samples=drawn, vae=demo["vae"])
    with graph.group("2 Instruction"):
        editor = graph.add(loader)
        positive, negative = (
            graph.add("CLIPTextEncode", title=title, clip=editor[1], text=text)
            for title, text in (("instruction", "make the circle blue"), ("no instruction", ""))
        )
    shared = dict(model=editor[0], positive=positive, negative=negative, image=picture, vae=editor[2], image_scale=1.5)
    with graph.group("3 Edit"):
        sigmas = graph.add("BasicScheduler", model=editor[0], scheduler="normal", steps=20, denoise=1.0)
        guider = graph.add("InstructPix2PixGuider", text_scale=7.5, sigmas=sigmas, **shared)
        edited = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=1),
            guider=guider["guider"],
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=sigmas,
            latent_image=guider["latent"],
        )
    with graph.group("4 The same with a KSampler"):
        patch = graph.add("InstructPix2PixPatch", **shared)
        again = graph.add(
            "KSampler",
            model=patch["model"],
            positive=patch["positive"],
            negative=patch["negative"],
            latent_image=patch["latent"],
            seed=1,
            steps=20,
            cfg=7.5,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
    with graph.group("5 Pictures"):
        graph.add("PreviewImage", title="before", images=picture)
        for title, latent in (("edited", edited["output"]), ("edited by a KSampler", again)):
            decoded = graph.add("VAEDecode", samples=latent, vae=editor[2])
            graph.add("SaveImage", title=title, images=decoded, filename_prefix="instruct_pix2pix")
        graph.add("PreviewImage", title="scales over the steps", images=guider["weights"])


def instruction_channels(graph, loader: str):
    """Waits as `instruct_pix2pix` does."""
    graph.note(
        "# Instruction Channels\n\nThe picture and the instruction as two channels, with a third beside them that pushes red away." + SWAP
    )
    with graph.group("1 Picture and instruction"):
        editor = graph.add(loader)
        positive, negative, red = (
            graph.add("CLIPTextEncode", title=title, clip=editor[1], text=text)
            for title, text in (("instruction", "make the circle blue"), ("no instruction", ""), ("unwanted", "a red circle"))
        )
        picture = graph.add("EmptyImage", title="picture", width=128, height=128, batch_size=1, color=color(214, 40, 40))
    with graph.group("2 Channels"):
        away = graph.add("GuidanceChannel", title="less red", conditioning=red, weight=2.0, role="negative", name="red")
        channels = graph.add(
            "InstructionChannels",
            model=editor[0],
            positive=positive,
            negative=negative,
            text_scale=7.5,
            image_scale=1.5,
            image=picture,
            vae=editor[2],
            previous=away,
        )
    with graph.group("3 Sample"):
        sigmas = graph.add("BasicScheduler", model=editor[0], scheduler="normal", steps=20, denoise=1.0)
        guider = graph.add(
            "MultiCFGGuider", model=editor[0], unconditional=channels["unconditional"], channels=[channels["channel"]], sigmas=sigmas
        )
        latent = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=1),
            guider=guider["guider"],
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=sigmas,
            latent_image=channels["latent"],
        )
    with graph.group("4 Picture"):
        decoded = graph.add("VAEDecode", samples=latent["output"], vae=editor[2])
        graph.add("SaveImage", title="edited", images=decoded, filename_prefix="instruction_channels")
        graph.add("PreviewImage", title="weights over the steps", images=guider["weights"])


def sampled_with(graph, model, guider, size, sigmas, seed: int):
    """The latent that SamplerCustomAdvanced makes with a guider."""
    sampler, noise = graph.add("KSamplerSelect", sampler_name="euler"), graph.add("RandomNoise", noise_seed=seed)
    return graph.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=size)["output"]


def classifier_guidance(graph):
    graph.note(
        "# Classifier guidance\n\nThere is no prompt here. A small classifier that reads half-finished pictures pulls towards its labels; the "
        "upper pictures are the same seeds without it.\n\nTry: `red:1, star:2`; `striped:-1` (without stripes); the weight; a mask; a prompt "
        "as a further channel." + SWAP.replace("put your", "put a classifier trained for your model and your")
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Labels"):
        classifier = graph.add("NoisyClassifierLoader", classifier_name="demo_model.safetensors")
        off, on = (
            graph.add(
                "ClassifierChannel", title=title, classifier=classifier["classifier"], labels="blue", weight=weight, start_percent=0.0
            )
            for title, weight in (("switched off", 0.0), ("blue", 12.0))
        )
    with graph.group("3 Sample"):
        latents = [
            sampled_with(
                graph,
                model,
                graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[channel], conflict="sum")["guider"],
                size,
                sigmas,
                seed=8,
            )
            for channel in (off, on)
        ]
    with graph.group("4 Picture"):
        for title, latent in zip(("without", "with the classifier"), latents):
            graph.add("SaveImage", title=title, images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix=title)


def image_guidance(graph):
    graph.note(
        "# Image guidance\n\nTwo strokes of paint are the only wish: their layout pulls the picture at every step, with no prompt. The upper "
        "pictures are the same seeds without it.\n\nTry *kind* `color` and `brightness`; a prompt as a further channel; "
        "*through_denoiser* (slower, exact)." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        (empty,) = prompt_nodes(graph, model, unconditional="")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Reference"):
        paper = graph.add("EmptyImage", title="paper", width=128, height=128, batch_size=1, color=color(245, 245, 245))
        reference = stroke(graph, stroke(graph, paper, (52, 158, 70), 10, 44, 44, 44), (138, 58, 176), 74, 44, 44, 44)
        off, on = (
            graph.add(
                "ImageGuidanceChannel",
                title=title,
                model=model["model"],
                vae=model["vae"],
                kind="layout",
                weight=weight,
                image=reference,
                end_percent=0.9,
            )
            for title, weight in (("switched off", 0.0), ("layout", 16.0))
        )
    with graph.group("3 Sample"):
        latents = [
            sampled_with(
                graph,
                model,
                graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[channel], conflict="sum")["guider"],
                size,
                sigmas,
                seed=3,
            )
            for channel in (off, on)
        ]
    with graph.group("4 Picture"):
        graph.add("PreviewImage", title="reference", images=reference)
        for title, latent in zip(("without", "with the reference"), latents):
            graph.add("SaveImage", title=title, images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix=title)


def structure_channel(graph):
    graph.note(
        "# Structure as a channel\n\nA ControlNet takes the silhouette; the channel compares *the prompt with it* to *the prompt without it*, so the "
        "structure has a weight of its own beside the prompt's. The upper pictures are the prompt alone.\n\nTry the weight of the structure "
        "from 0 to 3, another prompt, your own silhouette (white on black)." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        text, empty = prompt_nodes(graph, model, text="a purple cross on a gray background", unconditional="")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Silhouette"):
        black = graph.add("EmptyImage", title="black", width=128, height=128, batch_size=1, color=0)
        white = (255, 255, 255)
        silhouette = stroke(graph, stroke(graph, black, white, 80, 20, 20, 52), white, 64, 36, 52, 20)
        control = graph.add("ControlNetLoader", control_net_name="demo_model_silhouette.safetensors")
        controlled = graph.add(
            "ControlNetApplyAdvanced",
            positive=text,
            negative=empty,
            control_net=control,
            image=silhouette,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
    with graph.group("3 Channels"):
        words = graph.add("GuidanceChannel", title="the prompt", conditioning=text, weight=4.0, role="positive", name="prompt")
        structure = graph.add(
            "GuidanceChannel",
            title="the structure",
            conditioning=controlled["positive"],
            null=text,
            weight=1.0,
            role="positive",
            name="structure",
            previous=words,
        )
    with graph.group("4 Sample"):
        latents = [
            sampled_with(
                graph,
                model,
                graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[channel], conflict="sum")["guider"],
                size,
                sigmas,
                seed=21,
            )
            for channel in (words, structure)
        ]
    with graph.group("5 Picture"):
        graph.add("PreviewImage", title="silhouette", images=silhouette)
        for title, latent in zip(("the prompt alone", "with the structure"), latents):
            graph.add("SaveImage", title=title, images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix=title)


def guidance_report(graph):
    graph.note(
        "# Guidance Report\n\nThree wishes that cannot all come true: a circle, a star, and nothing red. The report shows how heavily each "
        "channel weighed, how hard it pushed, and which two worked against each other.\n\nTry *conflict* `project` with the circle at "
        "priority 1, and look at the report again." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=4)
        sigmas = graph.add("BasicScheduler", model=model["model"], scheduler="normal", steps=20, denoise=1.0)
    with graph.group("2 Wishes"):
        circle, star, red, empty = prompt_nodes(
            graph,
            model,
            circle="a large circle on a white background",
            star="a large star on a white background",
            red="a red circle on a white background",
            unconditional="",
        )
    with graph.group("3 Channels"):
        one = graph.add("GuidanceChannel", title="circle", conditioning=circle, weight=4.0, role="positive", name="circle", priority=1)
        two = graph.add("GuidanceChannel", title="star", conditioning=star, weight=2.0, role="positive", name="star", previous=one)
        three = graph.add(
            "GuidanceChannel", title="not red", conditioning=red, weight=2.0, role="negative", name="not red", end_percent=0.8, previous=two
        )
    with graph.group("4 Sample"):
        guider = graph.add("MultiCFGGuider", model=model["model"], unconditional=empty, channels=[three], conflict="sum")["guider"]
        latent = sampled_with(graph, model, guider, size, sigmas, seed=11)
    with graph.group("5 Report"):
        report = graph.add("GuidanceReport", source=guider, latent=latent)
        graph.add("SaveImage", title="report", images=report["report"], filename_prefix="guidance_report")
        pictures = graph.add("VAEDecode", samples=report["latent"], vae=model["vae"])
        graph.add("SaveImage", title="pictures", images=pictures, filename_prefix="guidance_report_pictures")


def diffedit_start(graph, before: str, after: str):
    """(model, prompts by title, picture) of an edit: a picture of the demo model itself, to be replaced by the user's own."""
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = prompt_nodes(
            graph, model, **{"source: what it shows": before, "target: what it should show": after}, negative=""
        )
    with graph.group("2 Picture"):
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        latent = graph.add(
            "KSampler",
            model=model["model"],
            positive=source,
            negative=negative,
            latent_image=size,
            seed=8,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        picture = graph.add("VAEDecode", samples=latent, vae=model["vae"])
    return model, source, target, negative, picture


def diffedit(graph):
    graph.note(
        "# DiffEdit: change what two prompts disagree about\n\nThe mask node noises the picture, asks the model under both prompts, and masks where the "
        "answers differ. The sampler encodes the picture with DDIM and denoises it under the target; outside the mask every pixel stays."
        "\n\nTry another word in the target: a colour, a shape, *striped*. Connect *Load Image* in the place of the picture." + SWAP
    )
    model, source, target, negative, picture = diffedit_start(
        graph,
        "a red star on the left and a blue circle on the right on a white background",
        "a red star on the left and a yellow circle on the right on a white background",
    )
    with graph.group("3 Mask"):
        found = graph.add(
            "DiffEditMask",
            model=model["model"],
            source=source,
            target=target,
            negative=negative,
            picture=picture,
            vae=model["vae"],
            seed=0,
            dilate=3,
        )
    with graph.group("4 Edit"):
        result = graph.add(
            "DiffEditSampler",
            model=model["model"],
            positive=target,
            negative=negative,
            source=source,
            picture=picture,
            mask=found["mask"],
            vae=model["vae"],
            scheduler="normal",
        )
    with graph.group("5 Pictures"):
        graph.add("PreviewImage", title="before", images=picture)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
        graph.add("SaveImage", title="after", images=result["image"], filename_prefix="diffedit")


def diffedit_ksampler(graph):
    graph.note(
        "# The mask into a KSampler\n\nThe same mask without the inversion: the latent that DiffEdit Mask returns carries the mask, so any KSampler changes only "
        "what it covers. Here a triangle becomes a square, with all of the mask made anew (denoise 1)."
        "\n\nThe mask is made a little larger (*dilate*), so that the new thing has room. Try denoise 0.8." + SWAP
    )
    model, source, target, negative, picture = diffedit_start(
        graph, "a large green triangle on a pink background", "a large green square on a pink background"
    )
    with graph.group("3 Mask"):
        found = graph.add(
            "DiffEditMask",
            model=model["model"],
            source=source,
            target=target,
            negative=negative,
            picture=picture,
            vae=model["vae"],
            seed=0,
            dilate=4,
        )
    with graph.group("4 Sample"):
        latent = graph.add(
            "KSampler",
            model=model["model"],
            positive=target,
            negative=negative,
            latent_image=found["latent"],
            seed=3,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
    with graph.group("5 Pictures"):
        graph.add("PreviewImage", title="before", images=picture)
        graph.add("PreviewImage", title="heat and mask", images=found["heat"])
        graph.add(
            "SaveImage", title="after", images=graph.add("VAEDecode", samples=latent, vae=model["vae"]), filename_prefix="diffedit_ksampler"
        )


WORKFLOWS = [
    demo_model,
    multi_cfg_guider,
    multi_cfg_patch,
    sdedit,
    sdedit_masked,
    classifier_guidance,
    image_guidance,
    structure_channel,
    guidance_report,
    diffedit,
    diffedit_ksampler,
]


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
