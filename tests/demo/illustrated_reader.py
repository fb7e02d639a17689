"""Reads an image of the illustrated world back into things, masks, colors, ground and style, to measure edits and models.

A small network trained on clean scenes only: `python . run tests/demo/illustrated_reader.py train --state DIR`, then `measure`. Some things of
its training scenes are scrambled (tiles shuffled, blurred, two halves of different things, things that the world does not hold) and must be
read as unknown, so that color and rough shape are not enough.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.demo import illustrated_world as world
from controlled_diffusion.training.demo.illustrated_captions import Caption
from controlled_diffusion.training.demo.illustrated_drawings import COLORS, THINGS, UNSEEN, drawing
from controlled_diffusion.training.demo.illustrated_grounds import GROUNDS, SIZE
from controlled_diffusion.training.demo.illustrated_scenes import CARTOONS, OFF_CENTER, STYLES, Scene, one_of, random_scene
from controlled_diffusion.training.loop import save_atomically, saving
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torch import nn

from demo import model as demo_model
from demo.illustrated_recipe import made_ahead, workers
from demo.muon import MuonLoop

WEIGHTS = Path(__file__).parent / "illustrated" / "reader.safetensors"
CELL = 4  # pixels of the image to one cell of the map of things
NOTHING, UNKNOWN = 0, len(THINGS) + 1  # classes of a cell; things are between them
SMALLEST = 16  # cells; anything below is a speck
SURE = 0.5  # probability below which a thing is unknown
SEEDS = {"train": 210, "clean": 220, "scrambled": 230}


@dataclass(frozen=True)
class Seen:
    """One thing found in an image. `name` is "unknown" where its shape is not that of a thing of the world."""

    name: str
    color: str
    place: str
    mask: np.ndarray  # bool (192, 192)
    probability: float


@dataclass(frozen=True)
class Reading:
    """All that is seen in an image; things largest first."""

    ground: str
    style: str
    things: tuple[Seen, ...]


# --- network ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.next_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv, self.next_conv = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.next_conv(F.silu(self.next_norm(self.conv(F.silu(self.norm(x))))))


class Reader(nn.Module):
    """Images (B, 3, 192, 192) in [0, 1] to logits: cells (B, 27, 48, 48), colors (B, 7, 48, 48), ground (B, 10) and style (B, 4)."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 144, 192)):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(CELL), nn.Conv2d(3 * CELL**2, widths[0], 3, padding=1))
        self.stages = nn.ModuleList(nn.Sequential(*(Block(w) for _ in range(2 if i else 1))) for i, w in enumerate(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(Block(w) for w in widths[:-1])
        self.cells, self.colors = nn.Conv2d(widths[0], UNKNOWN + 1, 1), nn.Conv2d(widths[0], len(COLORS), 1)
        self.ground, self.style = nn.Linear(sum(widths), len(GROUNDS)), nn.Linear(sum(widths), len(STYLES))

    def forward(self, images):
        x, kept = self.stem(2 * images - 1), []
        for stage, down in zip(self.stages, [*self.down, nn.Identity()]):
            x = stage(x)
            kept.append(x)
            x = down(x)
        pooled = torch.cat([part.mean((2, 3)) for part in kept], 1)
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(kept[:-1])):
            x = merge(skip + F.interpolate(up(x), scale_factor=2.0))
        return self.cells(x), self.colors(x), self.ground(pooled), self.style(pooled)


def new_reader() -> Reader:
    """The network with seeded start values; residual branches and outputs begin at zero."""
    reader = demo_model.initialize(Reader(), SEEDS["train"])
    for name, p in reader.named_parameters():
        if "next_conv.weight" in name or name.split(".")[0] in ("cells", "colors", "ground", "style"):
            p.data.zero_()
    return reader.to(memory_format=torch.channels_last)


def load(path: Path = WEIGHTS) -> Reader:
    """The trained reader."""
    reader = new_reader()
    reader.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return reader.requires_grad_(False).eval()


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
        save_atomically({k: v.half() for k, v in reader.state_dict().items()}, options.output)


# --- reading ----------------------------------------------------------------------------------------------------


def _place(mask: np.ndarray) -> str:
    offset = np.flatnonzero(mask.any(0)).mean() - SIZE / 2
    return "middle" if abs(offset) < OFF_CENTER else "left" if offset < 0 else "right"


def _seen(region: np.ndarray, cells: np.ndarray, colors: np.ndarray) -> Seen:
    """What a region of cells, bool (48, 48), shows; `cells` (27, 48, 48) and `colors` (7, 48, 48) are probabilities."""
    of_classes = cells[1:, region].mean(1)
    best = int(of_classes.argmax())
    name = THINGS[best] if best < len(THINGS) and of_classes[best] > SURE else "unknown"
    mask = region.repeat(CELL, 0).repeat(CELL, 1)
    return Seen(name, list(COLORS)[int(colors[:, region].mean(1).argmax())], _place(mask), mask, float(of_classes[best]))


def _regions(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Regions of one thing each: connected cells, divided where two classes hold a third of them each."""
    winner = 1 + cells[1:].argmax(0)
    for blob in checker._components(cells[NOTHING] < 0.5):
        votes = np.bincount(winner[blob], minlength=UNKNOWN + 1)
        strong = [c for c in votes.argsort()[::-1] if votes[c] > max(SMALLEST, votes.sum() / 3)]
        parts = [blob & (winner == c) for c in strong] if len(strong) > 1 else [blob]
        yield from (part for part in parts if part.sum() >= SMALLEST)


@torch.inference_mode()
def read(reader: Reader, images: list[np.ndarray]) -> list[Reading]:
    """Reads images, uint8 (192, 192, 3) each."""
    outputs = [torch.cat(part) for part in zip(*(reader(chunk) for chunk in demo_model.as_images(list(images)).split(16)))]
    cells, colors = (output.softmax(1).numpy() for output in outputs[:2])
    grounds, styles = (output.argmax(1).tolist() for output in outputs[2:])
    found = [[_seen(region, c, k) for region in _regions(c)] for c, k in zip(cells, colors)]
    return [
        Reading(GROUNDS[g], list(STYLES)[s], tuple(sorted(things, key=lambda seen: -int(seen.mask.sum()))))
        for g, s, things in zip(grounds, styles, found)
    ]


def judge(reading: Reading, caption: Caption) -> dict[str, bool]:
    """Which claims of a caption hold: `thing` (one) or `both things`, `color`, `place`, `ground` and `style` (only those named), and `count`."""
    by_name = {seen.name: seen for seen in reversed(reading.things)}
    found = [by_name.get(claim.name) for claim in caption.claims]
    verdict = {"count": len(reading.things) == len(caption.claims)} if caption.claims else {}
    if caption.claims:
        verdict["thing" if len(found) == 1 else "both things"] = all(found)
    for fact in ("color", "place"):
        asked = [(getattr(claim, fact), seen) for claim, seen in zip(caption.claims, found) if getattr(claim, fact)]
        if asked:
            verdict[fact] = all(seen is not None and getattr(seen, fact) == value for value, seen in asked)
    verdict |= {fact: getattr(reading, fact) == getattr(caption, fact) for fact in ("ground", "style") if getattr(caption, fact)}
    return verdict


# --- accuracy on clean and on scrambled scenes ------------------------------------------------------------------


def truth_of(scene: Scene) -> Caption:
    """Everything there is to say about a scene."""
    from controlled_diffusion.training.demo.illustrated_captions import Claim

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


def measure(options) -> None:
    from demo.make_model import say

    reader = load(options.output)
    for fact, share in clean_scores(reader, options.count).items():
        say(f"  {fact}: {100 * share:.1f} %")
    say(f"  scrambled things refused: {100 * refused(reader, options.count):.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--state", type=Path, default=Path(__file__).parents[2] / ".host" / "illustrated_model")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--count", type=int, default=400, help="scenes to measure on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file of the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"train": train, "measure": measure}[options.what](options)


if __name__ == "__main__":
    main()
