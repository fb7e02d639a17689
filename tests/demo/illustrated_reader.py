"""Trains and measures the reader of the illustrated world, whose network is training/demo/illustrated_reader.py.

On clean scenes only: `python . run tests/demo/illustrated_reader.py train --state DIR`, then `measure`. Some things of its training scenes
are scrambled (tiles shuffled, blurred, two halves of different things, things that the world does not hold) and must be read as unknown, so
that color and rough shape are not enough.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.training.demo import illustrated_world as world
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.demo.illustrated_captions import Caption, Claim
from controlled_diffusion.training.demo.illustrated_drawings import COLORS, THINGS, UNSEEN, drawing
from controlled_diffusion.training.demo.illustrated_grounds import GROUNDS, SIZE
from controlled_diffusion.training.demo.illustrated_reader import CELL, UNKNOWN, Reader, judge, load, read
from controlled_diffusion.training.demo.illustrated_scenes import CARTOONS, STYLES, Scene, one_of, random_scene
from controlled_diffusion.training.loop import save_atomically, saving
from PIL import Image, ImageFilter

from demo import model as demo_model
from demo.illustrated_recipe import made_ahead, workers
from demo.muon import MuonLoop
from demo.packing import quantized
from measures.script import head, percent, row

WEIGHTS = FILES["illustrated"].reader
GOALS = ("thing", "both things", "ground", "color")  # at least 98 % right
SEEDS = {"train": 210, "clean": 220, "scrambled": 230}


def new_reader() -> Reader:
    """The network with seeded start values; residual branches and outputs begin at zero."""
    reader = demo_model.initialize(Reader(), SEEDS["train"])
    for name, p in reader.named_parameters():
        if "next_conv.weight" in name or name.split(".")[0] in ("cells", "colors", "ground", "style"):
            p.data.zero_()
    return reader.to(memory_format=torch.channels_last)


# --- scenes with scrambled things -------------------------------------------------------------------------------


def _shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The tiles of a 3 x 3 to 5 x 5 grid in another order."""
    n = int(rng.integers(3, 6))
    side = max(image.size) // n
    square = Image.new("RGBA", (n * side, n * side))
    square.paste(image.crop((0, 0, n * side, n * side)), ((n * side - image.width) // 2, (n * side - image.height) // 2))
    boxes = [(i % n * side, i // n * side) for i in range(n * n)]
    mixed = Image.new("RGBA", square.size)
    for (x, y), to in zip(boxes, rng.permutation(n * n)):
        mixed.paste(square.crop((x, y, x + side, y + side)), boxes[to])
    return mixed


def _smeared(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A blob in the colors of the thing: strongly blurred, with a hard edge."""
    blurred = image.convert("RGBa").filter(ImageFilter.GaussianBlur(float(rng.uniform(11, 18)))).convert("RGBA")
    blurred.putalpha(blurred.getchannel("A").point(lambda a: 255 * (a > 110)))
    return blurred


def _other(name: str, rng: np.random.Generator) -> str:
    return one_of(rng, [thing for thing in THINGS if thing != name])


def _halved(image: Image.Image, rng: np.random.Generator, name: str, kind: str) -> Image.Image:
    """The left or upper half of one thing with the other half of another."""
    half = drawing(_other(name, rng), kind).resize(image.size)
    box = (image.width // 2, 0, *image.size) if rng.random() < 0.5 else (0, image.height // 2, *image.size)
    mixed = image.copy()
    mixed.paste(half.crop(box), box[:2])
    return mixed


def scrambled(thing: world.Thing, rng: np.random.Generator) -> Image.Image:
    """A sprite that is no thing of the world but has its colors."""
    image, kind = world.sprite(thing), int(rng.integers(4))
    if kind == 0:
        return _shuffled(image, rng)
    if kind == 1:
        return _smeared(image, rng)
    if kind == 2:
        return _halved(image, rng, thing.name, thing.drawing)
    return drawing(one_of(rng, UNSEEN), one_of(rng, (*CARTOONS, "fluent 3d")))


def paint(scene: Scene, rng: np.random.Generator, share: float) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[bool]]:
    """Image and masks of a scene, each thing scrambled with probability `share`, and which of them are."""
    hurt = {thing: bool(rng.random() < share) for thing in scene.things}
    image, masks = world.paint(scene, lambda thing: scrambled(thing, rng) if hurt[thing] else world.sprite(thing))
    return image, masks, [hurt[thing] for thing in scene.things]


def _labels(scene: Scene, masks, hurt: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Class and color of each cell, int (48, 48); color -1 where it is not known."""
    cells, colors = np.zeros((SIZE // CELL,) * 2, np.int64), np.full((SIZE // CELL,) * 2, -1)
    for thing, mask, is_scrambled in zip(scene.things, masks, hurt):
        inside = mask.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).mean((1, 3)) >= 0.5
        cells[inside] = UNKNOWN if is_scrambled else 1 + THINGS.index(thing.name)
        if thing.color and not is_scrambled and scene.style != "pencil drawing":
            colors[inside] = list(COLORS).index(thing.color)
    return cells, colors


def batch_of(index: int, size: int = 16, share: float = 0.2) -> tuple[np.ndarray, ...]:
    """Images, uint8 (B, 192, 192, 3), and labels: cells and colors (B, 48, 48), ground and style (B,)."""
    rng, rows = np.random.default_rng((SEEDS["train"], index)), []
    for _ in range(size):
        scene = random_scene(rng)
        image, masks, hurt = paint(scene, rng, share)
        rows.append((image, *_labels(scene, masks, hurt), GROUNDS.index(scene.ground), list(STYLES).index(scene.style)))
    return tuple(np.stack(column) for column in zip(*rows))


def reader_loss(reader: Reader, batch: tuple[np.ndarray, ...], device: str = "cpu") -> torch.Tensor:
    """Cross-entropy of all that is read in a batch of `batch_of`."""
    images = demo_model.as_images(list(batch[0])).to(device)
    cells, colors, ground, style = (torch.from_numpy(label).to(device) for label in batch[1:])
    with torch.autocast(images.device.type, torch.bfloat16):
        outputs = reader(images.contiguous(memory_format=torch.channels_last))
    of_cells, of_colors, of_ground, of_style = (output.float() for output in outputs)
    loss = F.cross_entropy(of_cells, cells) * 4 + F.cross_entropy(of_ground, ground) + F.cross_entropy(of_style, style)
    return loss + F.cross_entropy(of_colors, colors, ignore_index=-1, reduction="sum") / (colors >= 0).sum().clamp(min=1)


def stored(reader: Reader) -> dict[str, torch.Tensor]:
    """The weights as they are shipped: matrices in 8 bits, all else in 16."""
    weights = reader.state_dict()
    matrices = {k: v for k, v in weights.items() if v.ndim > 1}
    return {k: v.half() for k, v in weights.items() if k not in matrices} | quantized(matrices)


def train(options) -> None:
    """Trains the reader, goes on where it stopped, and writes its weights."""
    from demo.make_model import say, shown

    options.state.mkdir(parents=True, exist_ok=True)
    reader, state = new_reader().to(options.device), options.state / "reader.safetensors"
    parameters = demo_model.trainable(reader)
    matrices = [k for k, p in parameters.items() if p.ndim == 4 and "norm" not in k]
    loop = MuonLoop(parameters, steps=options.steps, learning_rate=1.5e-3, warmup=100, average=0.995, matrices=matrices)
    loop.restore(state)
    say(f"reader: {loop.done} of {loop.steps} steps done")
    batches = made_ahead(batch_of, loop.done, loop.steps, workers(options.device))
    shown(saving(loop, loop.run(lambda index: reader_loss(reader, next(batches), options.device)), state, 240))
    with loop.averaged():
        options.output.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(stored(reader), options.output)


# --- accuracy on clean and on scrambled scenes ------------------------------------------------------------------


def truth_of(scene: Scene) -> Caption:
    """Everything there is to say about a scene."""
    colored = scene.style != "pencil drawing"
    claims = tuple(Claim(thing.name, thing.color if colored else None, None, thing.place) for thing in scene.things)
    return Caption("", claims, scene.ground, scene.style)


def clean_scores(reader: Reader, count: int, change=lambda images: images) -> dict[str, float]:
    """Share of the facts of held-out clean scenes that are read right; `change` may alter the images first."""
    scenes = [random_scene(np.random.default_rng((SEEDS["clean"], i))) for i in range(count)]
    right, asked = Counter(), Counter()
    for scene, reading in zip(scenes, read(reader, change([world.paint(scene)[0] for scene in scenes]))):
        for fact, holds in judge(reading, truth_of(scene)).items():
            right[fact] += holds
            asked[fact] += 1
    return {fact: right[fact] / asked[fact] for fact in sorted(asked)}


def refused(reader: Reader, count: int) -> float:
    """Share of scenes whose one thing is scrambled in which the thing is not read."""
    scenes = [random_scene(np.random.default_rng((SEEDS["scrambled"], i)), pair_share=0.0) for i in range(count)]
    images = [paint(scene, np.random.default_rng((SEEDS["scrambled"], i, 1)), 1.0)[0] for i, scene in enumerate(scenes)]
    return float(np.mean([not judge(reading, truth_of(scene))["thing"] for scene, reading in zip(scenes, read(reader, images))]))


def table(reader: Reader, count: int = 400) -> str:
    """Its accuracy on `count` clean scenes and on as many whose thing is scrambled."""
    rows = [row(fact, percent(share, 1), "98 %" if fact in GOALS else "") for fact, share in clean_scores(reader, count).items()]
    title = f"{count} held-out clean scenes"
    return "\n".join([head(title, "read right", "goal"), *rows, row("scrambled things refused", percent(refused(reader, count), 1), "")])


def measure(options) -> None:
    from demo.make_model import say

    say(table(load(options.output), options.count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--state", type=Path, default=Path(__file__).parents[2] / ".host" / "illustrated_model")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--count", type=int, default=400, help="scenes to measure on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file of the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"train": train, "measure": measure}[options.what](options)


if __name__ == "__main__":
    main()
