"""Does an image carry color and shape into a prompt that names neither? `python . run tests/measures/ip_adapter.py`.

Held-out references show one thing; the prompts say where and on which ground (another than the reference's). Told is how often the
image shows a thing of the reference's color and shape, and still obeys the text; first without the image, then by the weight of
the patch, then with image and text as two channels.
"""

import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.training.demo import checker

from demo import ip_adapter as recipe
from demo import world
from harness.demo_images import CFG, Studio
from measures.script import head, options_of, percent, row, say

GOAL = 0.8
HELD_OUT, NOISE_SEED, BATCH = 4321, 60_000, 16
WEIGHTS = (0.5, 0.0)
CHANNELS = (2.0, 5.0)
FACTS = ("color", "shape", "color and shape", "texture", "background of the text", "place of the text")


class Task:
    """A reference, and a prompt that names neither color nor shape nor the reference's own ground and place."""

    def __init__(self, index: int):
        rng = np.random.default_rng((HELD_OUT, index, 1))
        scene = recipe.scene(index, HELD_OUT)
        self.thing = scene.things[0]
        others = (world.BACKGROUNDS, scene.background), (world.POSITIONS, scene.layout)
        self.background, self.place = (str(rng.choice([o for o in options if o != own])) for options, own in others)
        where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "center": "in the center"}
        self.text = f"something {where[self.place]} on a {self.background} background"
        self.reference = world.render(scene)

    def judge(self, image: np.ndarray) -> list[bool]:
        """One verdict for each of FACTS."""
        found = checker.read(image)
        thing = found.things[0] if len(found.things) == 1 else None
        same = [thing is not None and getattr(thing, k) == getattr(self.thing, k) for k in ("color", "shape", "texture")]
        placed = thing is not None and thing.position == self.place
        return [same[0], same[1], same[0] and same[1], same[2], found.background == self.background, placed]


class Bench:
    """The demo model with its adapter, and images for tasks in batches: image i sees reference i."""

    def __init__(self, studio: Studio):
        self.studio = studio
        with torch.inference_mode():
            self.adapter, self.encoder = ip_adapter.load("demo_model.safetensors"), demo.demo_encoder()

    def patch(self, tasks: list[Task], **settings):
        images = torch.from_numpy(np.stack([t.reference for t in tasks])).float() / 255
        prompt = ip_adapter.prompt_of(self.adapter, self.encoder, images, "batch")
        return ip_adapter.patch_for(self.studio.model, self.adapter, prompt, **settings)

    @torch.inference_mode()
    def patched(self, tasks: list[Task], weight: float, seed: int) -> np.ndarray:
        """The patch on the whole run, under the prompts."""
        return self.studio.draw([t.text for t in tasks], seed, self.patch(tasks, weight=weight).install(self.studio.model))

    @torch.inference_mode()
    def channels(self, tasks: list[Task], weight: float, seed: int) -> np.ndarray:
        """A text channel, and beside it an image channel of this weight: what the image adds to the text."""
        patch, text = self.patch(tasks, only_marked=True), self.studio.prompt(*(t.text for t in tasks))
        image = Channel(patch.marked(text, True), weight, null=patch.marked(text, False), name="image")
        channels = [Channel(text, CFG, name="text"), image]
        return self.studio.draw_with(MultiCFG(patch.install(self.studio.model), self.studio.prompt(""), channels), len(tasks), seed)


def shares(draw, weight: float, count: int) -> np.ndarray:
    """The share of images for which each of FACTS holds."""
    verdicts = []
    for first in range(0, count, BATCH):
        tasks = [Task(i) for i in range(first, min(first + BATCH, count))]
        verdicts += [task.judge(image) for task, image in zip(tasks, draw(tasks, weight, NOISE_SEED + first))]
    return np.mean(verdicts, 0)


def table(title: str, draw, counts: dict[float, int]) -> dict[float, np.ndarray]:
    """A row for each weight, of so many references."""
    say("\n" + head(title, "references", *FACTS))
    found = {}
    for weight, count in counts.items():
        found[weight] = shares(draw, weight, count)
        say(row(f"{weight:g}", count, *map(percent, found[weight])))
    return found


def main() -> None:
    others = (48, "references at other weights, and of channels")
    options, bench = options_of(__doc__, count=(200, "references at weight 1"), others=others), Bench(Studio())
    carried = table("weight of the patch", bench.patched, {1.0: options.count} | dict.fromkeys(WEIGHTS, options.others))
    best = carried[1.0][FACTS.index("color and shape")]
    reached = "reached" if best >= GOAL else "MISSED"
    say(f"\nColor and shape carried at weight 1: {percent(best, 1)} (goal {percent(GOAL)}): {reached}")
    table(f"weight of the image channel beside a text channel of {CFG:g}", bench.channels, dict.fromkeys(CHANNELS, options.others))


if __name__ == "__main__":
    main()
