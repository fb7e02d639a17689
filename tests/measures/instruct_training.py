"""An edit that the demo's instruction model does not know, taught by Train Instruction Model: `python . run tests/measures/instruct_training.py`
(resumable).

*make it striped* and *make the star dotted* are learned from rendered pairs, beside as many of the edits that it knows. Then held-out edits of both
are judged, by the model as it was and as it became. About 20 minutes of one CPU core.
"""

import argparse
from dataclasses import replace

import folder_paths
import numpy as np
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.instruct_training import InstructPix2PixTrainer
from controlled_diffusion.training.demo import checker

from demo import instruct as demo_instruct
from demo import world
from demo.any_world import Edit, changed
from demo.shapes_world import SHAPES, name_of
from harness.demo_images import Studio
from host.training import execute
from measures.instruct_pix2pix import HELD_OUT, IMAGE, TEXT, Editor, edits, judged, untouched
from measures.script import head, options_of, row, say

LESSON = 51


def texture_edits(count: int, seed: int) -> list[Edit]:
    """A plain thing, of one or two in a scene, that becomes striped or dotted."""
    rng, found = np.random.default_rng((seed, 5)), []
    while len(found) < count:
        scene = world.random_scene(rng)
        which = int(rng.integers(len(scene.things)))
        thing, texture = scene.things[which], ("striped", "dotted")[len(found) % 2]
        if thing.texture == "plain":
            after = changed(scene, which, replace(thing, texture=texture))
            text = f"make {name_of(rng, scene, which)} {texture}"
            found.append(Edit("texture", text, scene, after, which))
    return found


def lesson(pairs: int) -> dict[str, list]:
    """Images before and after, IMAGE batches of one, and the instructions: half of the new edits, half of the old ones."""
    rng = np.random.default_rng((demo_instruct.SEED, 2))
    old = [demo_instruct.edit(SHAPES, rng, i)[0] for i in range(pairs // 2)]
    told = [*texture_edits(pairs - len(old), LESSON), *old]

    def drawn(scene: world.Scene) -> torch.Tensor:
        return torch.from_numpy(world.render(scene))[None].float() / 255

    return {"before": [drawn(e.before) for e in told], "after": [drawn(e.after) for e in told], "instructions": [e.text for e in told]}


@torch.inference_mode()
def learned(studio: Studio, o: argparse.Namespace) -> str:
    """Trains, or goes on training; gives the path of the file."""
    model = demo.load_instruct(SHAPES.files.instruct, SHAPES.files.model)
    parts = dict(model=model, clip=studio.clip, vae=studio.vae, name=o.name, if_exists="continue")
    how = dict(train=o.train, rank=o.rank, steps=o.steps, batch_size=o.batch, learning_rate=o.rate, timesteps=o.timesteps, average=0.98)
    made = execute(InstructPix2PixTrainer, **parts, **how, **lesson(o.pairs), warmup=20, validation_count=0)
    return folder_paths.get_full_path_or_raise("diffusion_models", made[1])


def as_told(image: np.ndarray, edit: Edit) -> bool:
    """Whether the image shows just the things of the scene after the edit, with their textures."""
    seen = sorted((t.color, t.shape, t.texture) for t in checker.read(image).things)
    return seen == sorted((t.color, t.shape, t.texture) for t in edit.after.things)


def table(editors: dict[str, Editor], count: int) -> None:
    say(head(f"instruction (s_T {TEXT}, s_I {IMAGE})", "edits", *(f"{name}: right, untouched" for name in editors)))
    new, cells = texture_edits(count, HELD_OUT), []
    for editor in editors.values():
        images = editor.edited(new, TEXT, IMAGE)
        success, kept = (np.mean([f(p, e) for p, e in zip(images, new)]) for f in (as_told, untouched))
        cells.append(f"{100 * success:.1f} %, {kept:.1f} dB")
    say(row("a texture", count, *cells))
    for kind in SHAPES.kinds:
        old = edits(count // 4, kind)
        say(row(kind, len(old), *(f"{judged(e, old).cell()} dB" for e in editors.values())))


def main() -> None:
    o = options_of(
        __doc__, pairs=320, steps=600, batch=8, rate=1e-3, rank=16, train="every layer", timesteps="shifted",
        count=(128, "held-out edits of the new kind; a quarter of each old one"), name=("textures", "another one starts anew"),
    )  # fmt: skip
    path = learned(Studio(), o)
    say(f"wrote {path}")
    table({"as it was": Editor(), "taught": Editor(path)}, o.count)


if __name__ == "__main__":
    main()
