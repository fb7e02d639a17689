"""InstructPix2Pix pairs: images before and after an edit, generated to learn from."""

import comfy.samplers
import torch
from comfy_api.latest import io

from ..training.instruct_pix2pix import Filter, PlainFilter
from ..training.instruct_pix2pix import prompt_pairs as pairs_from
from .host.training import instruct_pairs as host
from .inputs.sockets import PairChecker
from .inputs.training import choice, number, whole

_EXAMPLE = "a photo of a house => a photo of a house in the snow | make it snow"


def _ranges() -> list:
    return [
        number("min_share", 0.1, 0.0, 1.0, "Least share of the sampling in which both images share self-attention. 0.1 in the paper."),
        number(
            "max_share", 0.9, 0.0, 1.0, "Largest share, drawn anew for each candidate: more keeps more of the image. 0.9 in the paper."
        ),
        number("min_cfg", 7.5, 0.0, 100.0, "Least cfg. 7.5 in the paper; the demo model 3.", 0.1),
        number("max_cfg", 15.0, 0.0, 100.0, "Largest cfg, drawn anew for each candidate. 15 in the paper; the demo model 6.", 0.1),
        whole("steps", 30, 1, 10_000, "Sampling steps. Usual 20 to 50; 100 in the paper."),
        choice(
            "sampler_name",
            comfy.samplers.KSampler.SAMPLERS,
            "Sampler; both images get the same noise from it. euler_ancestral in the paper.",
            "euler_ancestral",
        ),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, "Scheduler.", "normal"),
    ]


def _filters() -> list:
    return [
        number("min_images", 0.7, -1.0, 1.0, "With CLIP: how alike both images have to be, as a cosine. 0.7 in the paper."),
        number("min_direction", 0.2, -1.0, 1.0, "With CLIP: how well they change as the captions do, as a cosine. 0.2 in the paper."),
        number("min_captions", 0.2, -1.0, 1.0, "With CLIP: how well each image fits its caption, as a cosine. 0.2 in the paper."),
        number("min_changed", 0.01, 0.0, 1.0, "Without CLIP: the least share of pixels that change. 0 = any; usual 0.01 to 0.05."),
        number("max_changed", 0.5, 0.0, 1.0, "Without CLIP: the largest share of pixels that change. 1 = any; usual 0.3 to 0.7."),
    ]


class InstructPix2PixPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InstructPix2PixPairs",
            display_name="InstructPix2Pix Pairs",
            category="controlled diffusion/training",
            description="Generates images before and after an edit from pairs of prompts, by Prompt-to-Prompt with shared self-attention, keeps "
            "the good ones in a folder, and goes on there where it stopped.",
            search_aliases=[
                "instruct pix2pix dataset",
                "ip2p data",
                "edit pairs",
                "prompt pairs",
                "kontext dataset",
                "control target pairs",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Draws the images: a UNet model such as SD1.5 or SDXL."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input(
                    "prompt_pairs",
                    default=_EXAMPLE,
                    multiline=True,
                    tooltip="One a line: caption => caption after the edit | instruction. A line 'thing = cat, dog' lets later lines say {thing}, "
                    "for each of these. Lines that begin with # are left out.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="The negative prompt of all images."),
                io.String.Input(
                    "folder",
                    default="my-pairs",
                    tooltip="The name under which the pairs are kept, in output/controlled_diffusion/pairs.",
                ),
                io.Int.Input(
                    "width", default=512, min=16, max=16384, step=8, tooltip="Width of the images in pixels; the demo model 128."
                ),
                io.Int.Input(
                    "height", default=512, min=16, max=16384, step=8, tooltip="Height of the images in pixels; the demo model 128."
                ),
                io.Int.Input(
                    "candidates",
                    default=8,
                    min=1,
                    max=10_000,
                    tooltip="Pairs of images drawn for each prompt pair. Usual 4 to 100; 100 in the paper.",
                ),
                io.Int.Input("keep", default=4, min=1, max=10_000, tooltip="How many of them are kept at most, the best. 4 in the paper."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of noises, shares and cfgs. The same seed draws the same candidates of a prompt pair.",
                ),
                *_ranges(),
                *_filters(),
                choice(
                    "if_exists",
                    host.IF_EXISTS,
                    "Where the folder exists: add the prompt pairs that are not done in it yet, take another with a number, or refuse. Nothing in it "
                    "is written over; prompt pairs that were done with other settings are refused.",
                ),
                whole("shown", 64, 0, 100_000, "How many of the pairs to give out as images; 0 = all. The folder keeps all."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="For the filter by CLIP: its vision tower, ViT-L/14 in the paper."
                ),
                io.Clip.Input("clip_text", optional=True, tooltip="For the filter by CLIP: the text tower that belongs to clip_vision."),
                PairChecker.Input(
                    "checker", optional=True, tooltip="In the place of CLIP: scores each candidate; those above 0 are kept, the best first."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="before", tooltip="Images before the edit."),
                io.Image.Output(display_name="after", tooltip="The same after it, in the same order."),
                io.String.Output(display_name="instructions", is_output_list=True, tooltip="The instruction of each."),
                io.String.Output(display_name="folder", tooltip="The name of the folder, for Train Instruction Model."),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, prompt_pairs, negative, folder, clip_vision=None, clip_text=None, checker=None, **given
    ) -> io.NodeOutput:
        pairs = pairs_from(prompt_pairs)
        size, share, cfg = ((given[a], given[b]) for a, b in (("height", "width"), ("min_share", "max_share"), ("min_cfg", "max_cfg")))
        sampling = {k: given[k] for k in ("steps", "sampler_name", "scheduler")}
        recipe = host.Recipe(given["candidates"], given["keep"], given["seed"], size, share, cfg, **sampling)
        clip_filter = Filter(given["min_images"], given["min_direction"], given["min_captions"])
        judge = host.Judge(clip_filter, PlainFilter(given["min_changed"], given["max_changed"]), clip_vision, clip_text, checker)
        kept = host.Folder.chosen(folder, given["if_exists"])
        host.make(host.Artist(model, clip, vae, negative, recipe), judge, pairs, kept)
        *sides, instructions = kept.read(set(pairs), given["shown"])
        before, after = map(list, sides)
        if not before:
            raise ValueError(
                f"None of the candidates of {len(pairs)} prompt pairs passed the filter, so there is nothing to give out. Draw more candidates, or "
                f"lower what the filter asks; under another folder's name, since {kept.name} holds these prompt pairs as done."
            )
        alike = [i for i, image in enumerate(before) if image.shape == before[-1].shape]
        images = (torch.cat([side[i] for i in alike]) for side in (before, after))
        return io.NodeOutput(*images, [instructions[i] for i in alike], kept.name)


NODES = [InstructPix2PixPairs]
