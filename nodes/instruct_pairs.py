"""InstructPix2Pix pairs: images before and after an edit, generated to learn from."""

from dataclasses import replace

import comfy.samplers
import torch
from comfy_api.latest import io

from ..training.instruct_pix2pix import Filter, PlainFilter, Shard
from ..training.instruct_pix2pix import prompt_pairs as pairs_from
from .host.training.instruct_pairs import PairSampler, Recipe, make
from .host.training.pair_filter import ChangeFilter, ClipFilter, pair_filter
from .host.training.pair_folder import IF_EXISTS, PairFolder
from .inputs import auto, sockets
from .inputs.families import AUTO_NUMBER
from .inputs.widgets import advanced, auto_number, choice, number, schema, seed, share, text, whole

_EXAMPLE = "a photo of a house => a photo of a house in the snow | make it snow"
_ALIASES = ["instruct pix2pix dataset", "ip2p data", "edit pairs", "prompt pairs", "kontext dataset", "control target pairs"]
_USUAL = Recipe(cfg=(AUTO_NUMBER, AUTO_NUMBER))


def _cosine(name: str, default: float, tooltip: str) -> io.Float.Input:
    return number(name, default, -1.0, 1.0, f"Least likeness in CLIP (cosine) of {tooltip} -1 = any.")


class InstructPix2PixPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructPix2PixPairs", "InstructPix2Pix Pairs", "training", _ALIASES,
            "Generates images before and after an edit from pairs of prompts, by Prompt-to-Prompt with shared self-attention, keeps the "
            "good ones in a folder, and continues there after a stop.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Draws the images: a UNet model such as SD1.5 or SDXL."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                choice("if_exists", IF_EXISTS, "If the folder exists: add the missing prompt pairs (those done with other settings are an "
                    "error), use another with a number, or refuse. Nothing is overwritten."),
                text("prompt_pairs", _EXAMPLE, "One a line: caption => caption after the edit | instruction. After 'thing = cat, dog', "
                    "lines with {thing} are repeated for each. # starts a comment.", multiline=True),
                text("negative", "", "The negative prompt of all images.", multiline=True),
                text("folder", "my-pairs", "Name of the pairs' folder, in output/controlled_diffusion/pairs."),
                whole("width", 512, 16, 4096, "Width of the images in pixels.", step=8),
                whole("height", 512, 16, 4096, "Height of the images in pixels.", step=8),
                whole("candidates", Recipe.candidates, 1, 10_000, "Candidates for each prompt pair. Typical: 4–100; paper: 100."),
                whole("keep", Recipe.keep, 1, 10_000, "How many of them are kept at most, the best first. Paper: 4."),
                seed("Seed of noises, shares and cfgs. The same seed draws the same candidates of a prompt pair."),
                *advanced(
                    whole("shown", 64, 0, 100_000, "How many of the pairs to output as images; 0 = all. The folder keeps all."),
                    whole("shard", 1, 1, 10_000, "Which part of the prompt pairs this server draws, from 1 to shards."),
                    whole("shards", 1, 1, 10_000, "How many servers draw into the same folder at once. 1 = this one alone."),
                ),
                sockets.PairOptions.Input("options", optional=True, tooltip="Pair Options: how candidates are sampled. Not connected: its defaults."),
                io.MultiType.Input("filter", types=[sockets.PairFilter, sockets.PairChecker], optional=True, tooltip="Pair Filter, or a "
                    "checker: which candidates are good. Not connected: those in which some of the image changes, and not all."),
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
        cls, model, clip, vae, if_exists, prompt_pairs, negative, folder, width, height, shown, shard=1, shards=1, options=_USUAL,
        filter=None, **drawing,
    ) -> io.NodeOutput:  # fmt: skip
        pairs, kept = pairs_from(prompt_pairs), PairFolder.choose(folder, if_exists, Shard(shard, shards))
        recipe = _for_model(model, replace(options, size=(height, width), **drawing))
        make(PairSampler(model, clip, vae, negative, recipe), pair_filter(filter), pairs, kept)
        *sides, instructions = kept.read(set(pairs), shown)
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


def _for_model(model, recipe: Recipe) -> Recipe:
    """The recipe with values for what is on auto; the node says which."""
    found = auto.chosen(model, "PairOptions", dict(zip(("min_cfg", "max_cfg"), recipe.cfg)))
    return replace(recipe, cfg=tuple(found.values()))


class PairOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "PairOptions", "Pair Options", "training", _ALIASES,
            "How InstructPix2Pix Pairs samples its candidates, and how much they differ from each other.",
            inputs=[
                whole("steps", Recipe.steps, 1, 10_000, "Sampling steps. Typical: 20–50; paper: 100."),
                choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, "Sampler. Both images get the same noise.", Recipe.sampler_name),
                choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, "Scheduler.", Recipe.scheduler),
                auto_number("min_cfg", 0.0, 100.0, "Least cfg. Paper: 7.5.", 0.1),
                auto_number("max_cfg", 0.0, 100.0, "Largest cfg, drawn anew for each candidate. Paper: 15.", 0.1),
                share("min_share", Recipe.share[0], "Least share of the steps with shared self-attention. Paper: 0.1. 0 = none."),
                share("max_share", Recipe.share[1], "Largest share, drawn for each candidate. More keeps more. Paper: 0.9."),
            ],
            outputs=[sockets.PairOptions.Output(display_name="options", tooltip="For InstructPix2Pix Pairs.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, min_cfg, max_cfg, min_share, max_share, **sampling) -> io.NodeOutput:
        return io.NodeOutput(Recipe(cfg=(min_cfg, max_cfg), share=(min_share, max_share), **sampling))


_CLIP = [
    io.ClipVision.Input("clip_vision", tooltip="CLIP's vision tower. Paper: ViT-L/14."),
    io.Clip.Input("clip_text", tooltip="The text tower of the same CLIP, by Load CLIP; not an SD1.5 checkpoint's."),
    _cosine("min_images", Filter.images, "both images. Paper: 0.7."),
    _cosine("min_direction", Filter.direction, "the changes of image and caption. Paper: 0.2."),
    _cosine("min_captions", Filter.captions, "each image and its caption. Paper: 0.2."),
]
_CHANGED = [
    share("min_changed", PlainFilter.least, "Least share of pixels that change. Typical: 0.01–0.05. 0 = any."),
    share("max_changed", PlainFilter.most, "Largest share of pixels that change. Typical: 0.3–0.7. 1 = any."),
]


class PairFilter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "PairFilter", "Pair Filter", "training", [*_ALIASES, "clip directional similarity"],
            "Which candidates of InstructPix2Pix Pairs are kept: by CLIP, or by how much of the image changes.",
            inputs=[
                io.DynamicCombo.Input("by", options=[io.DynamicCombo.Option(n, i) for n, i in (("CLIP", _CLIP), ("changed area", _CHANGED))],
                    tooltip="'CLIP': the image changes as the captions do (paper). 'changed area': the least changed are best; needs no CLIP."),
            ],
            outputs=[sockets.PairFilter.Output(display_name="filter", tooltip="For InstructPix2Pix Pairs.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, by) -> io.NodeOutput:
        if by["by"] == "changed area":
            return io.NodeOutput(ChangeFilter(PlainFilter(by["min_changed"], by["max_changed"])))
        return io.NodeOutput(ClipFilter(Filter(by["min_images"], by["min_direction"], by["min_captions"]), by["clip_vision"], by["clip_text"]))


NODES = [InstructPix2PixPairs, PairOptions, PairFilter]
