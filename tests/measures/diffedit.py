"""Masks and edits of DiffEdit on the demo model: `python . run tests/measures/diffedit.py [--only TEXT ...]`.

Rendered scenes that the model was never trained on, each with a source and a target caption that differ in one thing: its
color, its shape, its texture, or the color or shape of one thing of two. A mask is measured by its overlap (IoU)
with the thing in both scenes; an edit succeeds if the checker reads the target's things in the result. Instructions are those of
tests/measures/instruct_pix2pix.py: the demo instruction model with the instruction against the same image with an empty one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.sample
import comfy.samplers
import node_helpers
import numpy as np
import torch
from controlled_diffusion.guidance import diffedit
from controlled_diffusion.nodes.diffedit import DiffEditMask, DiffEditSampler
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.demo.files import FILES

from demo import model as demo_model
from demo import shapes_world
from demo.any_world import Edit
from demo.world import COLORS, PAIR_PLACES, SHAPES, TEXTURES, Caption, Claim, Scene, render, thing_masks
from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures.instruct_pix2pix import edits as instructions
from measures.script import head, options_of, row, say
from node_schema import defaults, with_settings

KINDS = ("color", "shape", "texture", "one of two")
WHERE = {"left": " on the left", "right": " on the right", "top": " at the top", "bottom": " at the bottom", "": ""}
METHODS = {
    "FlowEdit path": dict(method="FlowEdit path"),
    "DiffEdit's levels": dict(method="DiffEdit"),
    "the paper's settings": dict(method="DiffEdit (paper)"),
}
INSTRUCTIONS = {
    "as for prompts": dict(method="DiffEdit"),
    "more noise": dict(method="DiffEdit", start_percent=0.1, end_percent=0.3, threshold=0.4),
}


@dataclass(frozen=True)
class Change:
    """An edit: two scenes that differ in thing number `thing`."""

    kind: str
    before: Scene
    after: Scene
    thing: int

    @property
    def truth(self) -> np.ndarray:
        """Where the thing is, before or after: bool (128, 128)."""
        return thing_masks(self.before)[self.thing] | thing_masks(self.after)[self.thing]

    @property
    def image(self) -> np.ndarray:
        """The scene before, uint8 (128, 128, 3)."""
        return render(self.before)

    @property
    def texts(self) -> tuple[str, str]:
        """Captions of both scenes."""
        return caption(self.before).text, caption(self.after).text


def caption(scene: Scene) -> Caption:
    places = ("",) if len(scene.things) == 1 else PAIR_PLACES[scene.layout]
    nouns = []
    for thing, place in zip(scene.things, places):
        words = [w for w in (thing.size, thing.texture, thing.color, thing.shape) if w not in ("medium", "plain")]
        nouns.append(f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}{WHERE[place]}")
    claims = tuple(Claim(t.shape, t.color, t.texture) for t in scene.things)
    return Caption(f"{' and '.join(nouns)} on a {scene.background} background", claims, scene.background)


def held_out(index: int, pair: bool) -> Scene:
    """A held-out scene of one or two things, without what captions never name."""
    found = (demo_model.scene(1000 * index + i, seed=4242) for i in range(1000))
    return next(s for s in found if (len(s.things) == 2) == pair and not s.moon and not any(t.accessory for t in s.things))


def change(index: int) -> Change:
    """Edit number `index`; the kinds take turns."""
    kind, rng = KINDS[index % 4], np.random.default_rng((9, index))
    before = held_out(index, kind == "one of two")
    chosen = int(rng.integers(len(before.things)))
    what = {"one of two": ("color", "shape")[int(rng.integers(2))]}.get(kind, kind)
    values = {"color": tuple(COLORS), "shape": SHAPES, "texture": TEXTURES}[what]
    others = [(t.shape, t.color) for i, t in enumerate(before.things) if i != chosen]
    options = [replace(before.things[chosen], **{what: v}) for v in values if v != getattr(before.things[chosen], what)]
    options = [t for t in options if (t.shape, t.color) not in others]
    things = list(before.things)
    things[chosen] = options[int(rng.integers(len(options)))]
    return Change(kind, before, replace(before, things=tuple(things)), chosen)


def images(changes: list[Change]) -> torch.Tensor:
    return torch.from_numpy(np.stack([c.image for c in changes])).float() / 255


def prompts(studio: Studio, changes: list[Change]) -> tuple[list, list]:
    """(source, target) conditionings, a row for each edit."""
    return tuple(studio.prompt(*texts) for texts in zip(*(c.texts for c in changes)))


@torch.inference_mode()
def masks(studio: Studio, changes: list[Change], **settings) -> torch.Tensor:
    """What DiffEditMask finds with its defaults, or other settings; bool (N, 128, 128)."""
    source, target = prompts(studio, changes)
    found = DiffEditMask.execute(studio.model, source, target, images(changes), vae=studio.vae, **with_settings(DiffEditMask, **settings))
    return found.args[0] > 0.5


@torch.inference_mode()
def sampled_difference(studio: Studio, changes: list[Change]) -> torch.Tensor:
    """The plain way: image to image at 0.5 under both prompts from one noise, and the pixels that differ, cut and closed alike."""
    latents = studio.vae.encode(images(changes))
    made = []
    for prompt in prompts(studio, changes):
        noise = studio.noise(len(changes), 0)
        settings = (STEPS, CFG, SAMPLER, SCHEDULER, prompt, studio.prompt(""), latents)
        made.append(studio.vae.decode(comfy.sample.sample(studio.model, noise, *settings, denoise=0.5, disable_pbar=True, seed=0)))
    apart = (made[1] - made[0]).abs().mean(-1)
    return diffedit.Cut(threshold=0.3).mask(apart, apart.shape[-2] / latents.shape[-2])[0] > 0.5


def instruction_masks(studio: Studio, model, edits: list[Edit], **settings) -> list[float]:
    """The overlap of each edit's mask with its thing before and after."""
    before = demo_model.as_images([render(e.before) for e in edits]).movedim(1, -1)
    image = {"concat_latent_image": studio.vae.encode(before)}
    source, target = (node_helpers.conditioning_set_values(studio.prompt(*texts), image) for texts in ([""], [e.text for e in edits]))
    found = DiffEditMask.execute(model, source, target, before, vae=studio.vae, **with_settings(DiffEditMask, **settings)).args[0]
    things = [thing_masks(e.before)[e.which] | (e.kind != "remove" and thing_masks(e.after)[e.which]) for e in edits]
    return iou(found > 0.5, torch.from_numpy(np.stack(things)))


def iou(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    return ((found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp(min=1)).tolist()


def overlap(found: torch.Tensor, changes: list[Change]) -> list[float]:
    return iou(found, torch.from_numpy(np.stack([c.truth for c in changes])))


def succeeded(image: np.ndarray, wish: Change) -> bool:
    """Whether the checker reads the target: every thing in its color, shape and texture, nothing more, the background kept."""
    verdict = checker.judge(checker.read(image), caption(wish.after))
    return verdict["bound"] and verdict["texture"] and verdict["background"]


@torch.inference_mode()
def edits(studio: Studio, changes: list[Change], found: torch.Tensor, **settings) -> tuple[list[bool], list[bool]]:
    """(whether each edit succeeded, whether everything off its mask is exactly unchanged) with DiffEditSampler's defaults."""
    source, target = prompts(studio, changes)
    before = images(changes)
    knobs = defaults(DiffEditSampler) | {"scheduler": SCHEDULER} | settings
    given = dict(source=source, mask=found.float(), vae=studio.vae)
    result = DiffEditSampler.execute(studio.model, target, studio.prompt(""), before, **given, **knobs).args[1]
    kept = [bool((after == now)[~m].all()) for after, now, m in zip(result, before, found)]
    made = (result * 255 + 0.5).clamp(0, 255).byte().numpy()
    return [succeeded(p, c) for p, c in zip(made, changes)], kept


def in_batches(function, studio: Studio, changes: list[Change], size: int = 40, **settings) -> list:
    return [v for i in range(0, len(changes), size) for v in function(studio, changes[i : i + size], **settings)]


def line(name: str, values: list, given: list, kinds: tuple[str, ...]) -> str:
    """The means of all and of each kind."""
    of_kinds = [[v for v, each in zip(values, given) if each.kind == kind] for kind in kinds]
    return row(name, *(f"{np.mean(part):.3f}" for part in (values, *of_kinds)))


def measure(studio: Studio, changes: list[Change], wanted: Callable[[str], bool]) -> None:
    say(head(f"{len(changes)} edits", "all", *KINDS))
    for name, settings in METHODS.items():
        if wanted(name):
            found = torch.stack(in_batches(masks, studio, changes, **settings))
            say(line(f"mask IoU, {name}", overlap(found, changes), changes, KINDS))
    if wanted("pixels"):
        found = torch.stack(in_batches(sampled_difference, studio, changes))
        say(line("mask IoU, pixels of two samples", overlap(found, changes), changes, KINDS))
    rules = [*filter(wanted, diffedit.RULES)]
    found, parts = in_batches(masks, studio, changes if rules else []), range(0, len(changes), 40)
    for rule in rules:
        done = [edits(studio, changes[i : i + 40], torch.stack(found[i : i + 40]), rule=rule, encode_ratio=0.8) for i in parts]
        say(line(f"edit success, {rule}", [v for part, _ in done for v in part], changes, KINDS))
        say(line(f"exactly unchanged off the mask, {rule}", [v for _, part in done for v in part], changes, KINDS))


@torch.inference_mode()
def measure_instructions(studio: Studio, count: int) -> None:
    model = demo.load_instruct(FILES["shapes"].instruct, FILES["shapes"].model)
    asked = [e for kind in shapes_world.SHAPES.kinds for e in instructions(count // 3, kind)]
    say(head(f"{len(asked)} instructions", "all", *shapes_world.SHAPES.kinds))
    for name, settings in INSTRUCTIONS.items():
        found = [v for i in range(0, len(asked), 24) for v in instruction_masks(studio, model, asked[i : i + 24], **settings)]
        say(line(f"mask IoU, {name}", found, asked, shapes_world.SHAPES.kinds))


def main() -> None:
    only = dict(nargs="*", metavar="TEXT", help="rows whose names hold one of these, or 'instructions'")
    options = options_of(__doc__, count=(200, "edits, a quarter of each kind"), instructions=(72, "a third of each kind"), only=only)

    def wanted(name: str) -> bool:
        return options.only is None or any(text in name for text in options.only)

    studio = Studio()
    measure(studio, [change(i) for i in range(options.count)], wanted)
    if wanted("instructions"):
        measure_instructions(studio, options.instructions)


if __name__ == "__main__":
    main()
