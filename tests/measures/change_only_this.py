"""Editing methods, alone and under Keep the Rest: `python . run tests/measures/change_only_this.py [--count 200] [--only METHOD ...]`.

The edits of tests/measures/diffedit.py on the demo model: a color, a shape, a texture, or a color or shape of one of two things. An edit is
right if the checker reads the target. "Off the mask" compares with the source image itself, where Keep the Rest leaves the source. What is
measured is kept in .host/measures/change_only_this, a file for each method, so that a run that was stopped goes on, and the table shows
every method that has been measured. The instruction model knows colors and shapes, but no textures.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from controlled_diffusion.guidance.instruct_pix2pix import Scales
from controlled_diffusion.nodes.diffedit import DiffEditMask
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance.instruct_pix2pix import InstructPix2Pix, SourceImage
from controlled_diffusion.nodes.keep_rest import KeepRest

from demo.shapes_world import SHAPES
from harness.demo_images import Studio
from host.sampling import Count
from measures import diffedit, flow_edit, inversion, masked_edits
from measures.diffedit import KINDS, Change, overlap, succeeded
from measures.instruct_pix2pix import IMAGE, TEXT
from measures.script import head, kept, options_of, percent, row, say
from node_schema import defaults, with_settings

FOLDER = "change_only_this"
REST = dict(grow=0.06)  # of Keep the Rest: a cell of the demo model's latent, by which a masked edit may leave its mask


@dataclass
class Task:
    """A batch of edits with what methods make of it: the images before, float (B, 128, 128, 3), their latents, and inversions that methods share."""

    studio: Studio
    editor: object
    changes: list[Change]
    inversions: dict = field(default_factory=dict)

    def __post_init__(self):
        self.before = diffedit.images(self.changes)
        self.latents = self.studio.vae.encode(self.before)

    def counted(self, make: Callable, model=None) -> tuple:
        """(what `make(studio, model)` gives with a model that counts, evaluations of an image)"""
        count, studio = Count(model or self.studio.model), copy.copy(self.studio)
        studio.model = count.model
        return make(studio, count.model), count.rows / len(self.changes)

    def inverted(self, way: inversion.Way, source: list):
        """The inversion of a way, made once for all that invert alike."""
        key = way.node, repr(way.settings)
        if key not in self.inversions:
            self.inversions[key] = way.invert(self.studio, source, self.latents)
        return self.inversions[key]

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        return self.studio.vae.decode(latents)

    @property
    def positive(self) -> list:
        return self.studio.prompt(*map(instruction, self.changes))

    @property
    def negative(self) -> list:
        return self.studio.prompt("")

    def source(self, model) -> SourceImage:
        """The images as the instruction model takes them."""
        return SourceImage(model, self.positive, {"samples": self.latents})


def instruction(change: Change) -> str:
    """What to say so that `before` becomes `after`."""
    old, new = change.before.things[change.thing], change.after.things[change.thing]
    if old.texture != new.texture:
        return f"make the {old.color} {old.shape} {new.texture}"
    rng = np.random.default_rng(3)
    return SHAPES.instruction(rng, change.before, change.after, change.thing, "color" if old.color != new.color else "shape")


def by_words(task: Task) -> tuple[torch.Tensor, float]:
    """(masks, evaluations) of DiffEdit Mask under both captions."""
    return task.counted(lambda studio, model: diffedit.masks(studio, task.changes).float())


def by_instruction(task: Task) -> tuple[torch.Tensor, float]:
    """The same between an instruction model with the instruction and without."""

    def masks(studio, model):
        given = task.source(model).conditions(model, task.positive, task.negative)
        settings = with_settings(DiffEditMask, **diffedit.INSTRUCTIONS["more noise"])
        return DiffEditMask.execute(model, given.image, given.edit, task.before, vae=studio.vae, **settings).args[0]

    return task.counted(masks, task.editor)


def with_flow_edit(task: Task, masks: torch.Tensor, settings: dict, inside: bool = False) -> tuple[torch.Tensor, float]:
    given, way = (task.changes, task.latents, masks if inside else None), flow_edit.Way(settings)
    return task.counted(lambda studio, model: task.decoded(way.made(studio, *given)))


def with_diffedit(task: Task, masks: torch.Tensor, rule: str) -> tuple[torch.Tensor, float]:
    def made(studio, model):
        return masked_edits.with_diffedit(studio, task.changes, task.latents, masks > 0.5, rule=rule)

    return task.counted(lambda studio, model: task.decoded(made(studio, model)))


def with_inversion(
    task: Task, masks: torch.Tensor, name: str, attention: Callable[[Change], dict] | None = None, value_end: float = 0.0
) -> tuple[torch.Tensor, float]:
    """A source is sampled beside the edit only where the edit reads it; without, a direct edit is the same. `attention` gives the settings of
    Prompt-to-Prompt, which then edits too."""
    way, (source, target) = inversion.WAYS[name], diffedit.prompts(task.studio, task.changes)
    inverted = task.inverted(way, source)

    def made(studio, model):
        replays = inversion.Replays(studio, inverted, way.align)
        if attention:
            return replays.with_attention(way.edit, way.branches, task.changes, attention)
        more = dict(branches="direct", value_end=value_end) if value_end else dict(branches="edit")
        return task.decoded(replays.latents(model, inverted, way.edit, target=target, **more)[-len(task.changes) :])

    images, evaluations = task.counted(made)
    return images, inverted.evaluations + evaluations


def with_instruction(task: Task, masks: torch.Tensor, inside: bool = False) -> tuple[torch.Tensor, float]:
    """The instruction model, free or with the mask in its latent."""

    def made(studio, model):
        source = task.source(model)
        conditions = source.conditions(model, task.positive, task.negative)
        latent = source.latent(masks if inside else None)
        return task.decoded(studio.sampled(InstructPix2Pix(model, conditions, Scales(TEXT, IMAGE)), latent))

    return task.counted(made, task.editor)


@dataclass(frozen=True)
class Method:
    """A row: what makes the edits, in or beside masks of `found`."""

    make: Callable
    found: Callable = by_words

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.found.__name__}"


METHODS = {
    "FlowEdit": Method(partial(with_flow_edit, settings=flow_edit.EPS)),
    "FlowAlign": Method(partial(with_flow_edit, settings=flow_edit.ALIGN)),
    "FlowEdit, in the mask": Method(partial(with_flow_edit, settings=flow_edit.EPS, inside=True)),
    "FlowAlign, in the mask": Method(partial(with_flow_edit, settings=flow_edit.ALIGN, inside=True)),
    "direct inversion": Method(partial(with_inversion, name="direct")),
    "direct inversion, aligned": Method(partial(with_inversion, name="direct, aligned")),
    "direct inversion, aligned, values shared": Method(partial(with_inversion, name="direct, aligned", value_end=0.5)),
    "Uni-Edit": Method(partial(with_inversion, name="Uni-Edit")),
    "DiffEdit, trajectory": Method(partial(with_diffedit, rule="trajectory")),
    "DiffEdit, clean mix": Method(partial(with_diffedit, rule="clean mix")),
    "null-text inversion and Prompt-to-Prompt": Method(partial(with_inversion, name="null-text, source start", attention=inversion.attention_settings)),
    "instruction model": Method(with_instruction, by_instruction),
    "instruction model, in the mask": Method(partial(with_instruction, inside=True), by_instruction),
}


def packed(mask: torch.Tensor) -> str:
    return np.packbits(mask.numpy() > 0.5).tobytes().hex()


def unpacked(text: str) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).reshape(128, 128)).float()


class Lab:
    """Edits by number, and what is found for them."""

    def __init__(self):
        self.studio = Studio()
        with torch.inference_mode():
            self.editor = demo.load_instruct(SHAPES.files.instruct, SHAPES.files.model)
        self.task = cache(self._task)  # one for all methods, so that images are encoded and inverted once

    def _task(self, first: int, number: int) -> Task:
        return Task(self.studio, self.editor, [diffedit.change(i) for i in range(first, first + number)])

    def masks(self, method: Method, count: int) -> list[dict]:
        def found(first: int, number: int) -> list[dict]:
            task = self.task(first, number)
            masks, evaluations = method.found(task)
            ious = overlap(masks > 0.5, task.changes)
            return [dict(mask=packed(m), iou=iou, evaluations=evaluations) for m, iou in zip(masks, ious)]

        return kept(method.key, count, torch.inference_mode()(found))

    def edits(self, name: str, count: int) -> list[dict]:
        method = METHODS[name]
        masks = torch.stack([unpacked(one["mask"]) for one in self.masks(method, count)])

        def made(first: int, number: int) -> list[dict]:
            task, own = self.task(first, number), masks[first : first + number]
            images, evaluations = method.make(task, own)
            say(f"{name}: {first + number} of {count}")
            return [one | dict(evaluations=evaluations) for one in judged(task, images, own)]

        return kept(f"{FOLDER}/{name.replace(', ', '-').replace(' ', '-')}", count, torch.inference_mode()(made))


def judged(task: Task, images: torch.Tensor, masks: torch.Tensor) -> list[dict]:
    """Of each edit what it is worth, alone and under Keep the Rest."""
    under, shown, _ = KeepRest.execute(task.before, images, masks, **defaults(KeepRest) | REST).args
    return [
        dict(kind=c.kind, right=right(a, c), off=off(a, b, m), kept_right=right(k, c), kept_off=off(k, b, m))
        for c, a, k, b, m in zip(task.changes, images, under, task.before, shown)
    ]


def right(image: torch.Tensor, change: Change) -> bool:
    return succeeded((image * 255 + 0.5).clamp(0, 255).byte().numpy(), change)


def off(image: torch.Tensor, before: torch.Tensor, mask: torch.Tensor) -> float:
    """PSNR where the mask is 0; 120 where that is exactly the source."""
    error = (image - before)[mask == 0].square().mean().clamp(min=1e-12)
    return -10 * float(error.log10())


def decibels(values: list[float]) -> str:
    return "exact" if min(values) >= 119.9 else f"{np.mean(values):.1f} dB"


def line(name: str, edits: list[dict], masks: list[dict]) -> str:
    def share(key: str, kind: str = "") -> str:
        return percent(np.mean([one[key] for one in edits if kind in one["kind"]]))

    kinds = " · ".join(share("right", kind) for kind in KINDS)
    rest = [decibels([one[key] for one in edits]) for key in ("off", "kept_off")]
    costs = [f"{np.mean([one['evaluations'] for one in of]):.0f}" for of in (edits, masks)]
    return row(name, share("right"), kinds, rest[0], share("kept_right"), rest[1], f"{np.mean([m['iou'] for m in masks]):.2f}", " + ".join(costs))


def main() -> None:
    only = dict(nargs="*", choices=list(METHODS), metavar="METHOD", help=f"some of: {'; '.join(METHODS)}")
    options, lab = options_of(__doc__, count=(200, "edits, a quarter of each kind"), only=only), Lab()
    titles = ["right", " · ".join(KINDS), "off the mask", "right under Keep the Rest", "off the mask", "mask IoU", "evaluations + the mask's"]
    lines = [line(name, lab.edits(name, options.count), lab.masks(METHODS[name], options.count)) for name in options.only or METHODS]
    say("\n".join([head(f"{options.count} edits", *titles), *lines]))


if __name__ == "__main__":
    main()
