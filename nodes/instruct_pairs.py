"""InstructPix2Pix pairs: images before and after an edit, generated to learn from."""

import comfy.samplers
import torch
from comfy_api.latest import io

from ..training.instruct_pix2pix import Filter, PlainFilter
from ..training.instruct_pix2pix import prompt_pairs as pairs_from
from .host.training.instruct_pairs import PairSampler, Recipe, make
from .host.training.pair_filter import pair_filter
from .host.training.pair_folder import IF_EXISTS, PairFolder
from .inputs import widgets
from .inputs.sockets import PairChecker
from .inputs.training import choice, number, whole
from .inputs.widgets import schema

_EXAMPLE = "a photo of a house => a photo of a house in the snow | make it snow"


def _ranges() -> list:
    return [
        number("min_share", Recipe.share[0], 0.0, 1.0, "Least share of the steps with shared self-attention. Paper: 0.1. 0 = none."),
        number("max_share", Recipe.share[1], 0.0, 1.0, "Largest share, drawn for each candidate. More keeps more. Paper: 0.9."),
        number("min_cfg", Recipe.cfg[0], 0.0, 100.0, "Least cfg. Paper: 7.5; demo model: 3.", 0.1),
        number("max_cfg", Recipe.cfg[1], 0.0, 100.0, "Largest cfg, drawn anew for each candidate. Paper: 15; demo model: 6.", 0.1),
        whole("steps", Recipe.steps, 1, 10_000, "Sampling steps. Typical: 20–50; paper: 100."),
        choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, "Sampler. Both images get the same noise from it.", Recipe.sampler_name),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, "Scheduler.", Recipe.scheduler),
    ]


def _filters() -> list:
    return [
        number("min_images", Filter.images, -1.0, 1.0, "With CLIP: least cosine of both images. Paper: 0.7. -1 = any."),
        number("min_direction", Filter.direction, -1.0, 1.0, "With CLIP: least cosine of image and caption change. Paper: 0.2. -1 = any."),
        number("min_captions", Filter.captions, -1.0, 1.0, "With CLIP: least cosine of each image and its caption. Paper: 0.2. -1 = any."),
        number("min_changed", PlainFilter.least, 0.0, 1.0,
            "No CLIP, no checker: least share of changed pixels. Typical: 0.01–0.05. 0 = any."),
        number("max_changed", PlainFilter.most, 0.0, 1.0,
            "No CLIP, no checker: most changed pixels, as a share. Typical: 0.3–0.7. 1 = any."),
    ]  # fmt: skip


class InstructPix2PixPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructPix2PixPairs", "InstructPix2Pix Pairs", "training",
            ["instruct pix2pix dataset", "ip2p data", "edit pairs", "prompt pairs", "kontext dataset", "control target pairs"],
            "Generates images before and after an edit from pairs of prompts, by Prompt-to-Prompt with shared self-attention, keeps the "
            "good ones in a folder, and continues there after a stop.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Draws the images: a UNet model such as SD1.5 or SDXL."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                widgets.text("prompt_pairs", _EXAMPLE, "One a line: caption => caption after the edit | instruction. After 'thing = cat, "
                    "dog', lines with {thing} are repeated for each. # starts a comment.", multiline=True),
                widgets.text("negative", "", "The negative prompt of all images.", multiline=True),
                widgets.text("folder", "my-pairs", "Name of the pairs' folder, in output/controlled_diffusion/pairs."),
                widgets.whole("width", 512, 16, 4096, "Width of the images in pixels. Demo model: 128.", step=8),
                widgets.whole("height", 512, 16, 4096, "Height of the images in pixels. Demo model: 128.", step=8),
                widgets.whole("candidates", 8, 1, 10_000, "Candidates for each prompt pair. Typical: 4–100; paper: 100."),
                widgets.whole("keep", 4, 1, 10_000, "How many of them are kept at most, the best first. Paper: 4."),
                widgets.seed("Seed of noises, shares and cfgs. The same seed draws the same candidates of a prompt pair."),
                *_ranges(),
                *_filters(),
                choice("if_exists", IF_EXISTS, "If the folder exists: add the missing prompt pairs (those done with other settings are an "
                    "error), use another with a number, or refuse. Nothing is overwritten."),
                whole("shown", 64, 0, 100_000, "How many of the pairs to output as images; 0 = all. The folder keeps all."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For the filter by CLIP: its vision tower. Paper: ViT-L/14."),
                io.Clip.Input("clip_text", optional=True, tooltip="For the filter by CLIP: the text tower that belongs to clip_vision."),
                PairChecker.Input("checker", optional=True, tooltip="Instead of CLIP: scores each candidate; the best above 0 are kept."),
            ],
            outputs=[
                io.Image.Output(display_name="before", tooltip="Images before the edit."),
                io.Image.Output(display_name="after", tooltip="The same after it, in the same order."),
                io.String.Output(display_name="instructions", is_output_list=True, tooltip="The instruction of each."),
                io.String.Output(display_name="folder", tooltip="The name of the folder, for Train Instruction Model."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, **given):
        """Changes when the user takes out pairs, so that the node gives the others; a linked name is not cached."""
        return float("nan") if folder is None else PairFolder(folder.strip()).removed()

    @classmethod
    def execute(
        cls, model, clip, vae, prompt_pairs, negative, folder, clip_vision=None, clip_text=None, checker=None, **given
    ) -> io.NodeOutput:
        pairs = pairs_from(prompt_pairs)
        size, share, cfg = ((given[a], given[b]) for a, b in (("height", "width"), ("min_share", "max_share"), ("min_cfg", "max_cfg")))
        asked = {k: given[k] for k in ("candidates", "keep", "seed", "steps", "sampler_name", "scheduler")}
        limits = Filter(given["min_images"], given["min_direction"], given["min_captions"])
        plain = PlainFilter(given["min_changed"], given["max_changed"])
        chooser = pair_filter(limits, plain, clip_vision, clip_text, checker)
        kept = PairFolder.choose(folder, given["if_exists"])
        recipe = Recipe(**asked, size=size, share=share, cfg=cfg)
        make(PairSampler(model, clip, vae, negative, recipe), chooser, pairs, kept)
        *sides, instructions = kept.read(set(pairs), given["shown"])
        before, after = map(list, sides)
        if not before:
            raise ValueError(
                f"None of the candidates of {len(pairs)} prompt pairs passed the filter, so there is nothing to output. Draw more "
                f"candidates, or lower what the filter asks; under another folder's name, since {kept.name} holds these prompt pairs as "
                "done."
            )
        alike = [i for i, image in enumerate(before) if image.shape == before[-1].shape]
        images = (torch.cat([side[i] for i in alike]) for side in (before, after))
        return io.NodeOutput(*images, [instructions[i] for i in alike], kept.name)


NODES = [InstructPix2PixPairs]
