"""InstructPix2Pix guidance."""

from .parts import SWAP, color, ksampler, prompt_nodes


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
        drawn = ksampler(graph, demo["model"], before, empty, graph.add("EmptyLatentImage", width=128, height=128, batch_size=1), seed=4)
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
        again = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], cfg=7.5)
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


WORKFLOWS = []
