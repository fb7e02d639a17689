"""Does an image carry a look into a prompt that does not name it? `python . run tests/measures/ip_adapter.py [--world illustrated]`.

Held-out references show one thing; the prompts say where, and on which ground (another than the reference's) or, in the illustrated world,
also nothing of the ground, which is then the reference's. Told is how often the image shows what reference and prompt ask for together;
first without the image, then by the weight of the patch, then with image and text as two channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from controlled_diffusion.attention.ip_adapter import recognize
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from safetensors.torch import load_file

from demo import worlds
from demo.any_world import World
from harness.demo_images import CFG, Studio
from measures.script import head, options_of, percent, row, say

GOAL = 0.8
HELD_OUT, NOISE_SEED, BATCH = 4321, 60_000, 16
WEIGHTS = (0.5, 0.0)
CHANNELS = (2.0, 5.0)


@dataclass(frozen=True)
class Task:
    """A reference, and a prompt that says nothing of its look; `wanted` are the facts that both ask for, `said` those of the prompt."""

    reference: np.ndarray
    text: str
    wanted: dict[str, str]
    said: set[str]

    @classmethod
    def number(cls, world: World, index: int) -> "Task":
        scene = world.single(index, HELD_OUT)
        return cls(world.image(scene), *world.beside_an_image(scene, np.random.default_rng((HELD_OUT, index, 1))))

    def judge(self, world: World, reading) -> dict[str, bool]:
        """Of each fact whether it holds, of things for the largest; of those of the goal whether they hold together; and whether the thing
        is read as one, not as several or in parts."""
        seen = world.described(reading)
        holds = {fact: seen.get(fact) == value for fact, value in self.wanted.items()}
        told = {fact: f"{fact} of the text" if fact in self.said else fact for fact in holds}
        together = all(holds[fact] for fact in world.goal)
        return {told[fact]: held for fact, held in holds.items()} | {" and ".join(world.goal): together, "read as one": seen["count"] == "1"}


class Bench:
    """A world's model with its adapter, and images for tasks in batches: image i sees reference i."""

    def __init__(self, world: World, studio: Studio | None = None):
        self.world, self.studio = world, studio or worlds.studio(world)
        with torch.inference_mode():
            self.adapter = recognize(load_file(world.files.adapter), world.files.adapter.name)
            self.encoder = demo.demo_encoder(world.files.encoder)

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

    def shares(self, draw, weight: float, count: int) -> dict[str, float]:
        """The share of images for which each fact holds, of those that ask for it."""
        verdicts: dict[str, list[bool]] = {}
        for first in range(0, count, BATCH):
            tasks = [Task.number(self.world, i) for i in range(first, min(first + BATCH, count))]
            for task, reading in zip(tasks, self.world.read(draw(tasks, weight, NOISE_SEED + first))):
                for fact, holds in task.judge(self.world, reading).items():
                    verdicts.setdefault(fact, []).append(holds)
        return {fact: float(np.mean(held)) for fact, held in verdicts.items()}

    def table(self, title: str, draw, counts: dict[float, int]) -> dict[float, dict[str, float]]:
        """A row for each weight, of so many references."""
        found = {}
        for weight, count in counts.items():
            found[weight] = self.shares(draw, weight, count)
            if len(found) == 1:
                columns = list(found[weight])
                say("\n" + head(title, "references", *columns))
            say(row(f"{weight:g}", count, *(percent(found[weight].get(fact, np.nan)) for fact in columns)))
        return found


def main() -> None:
    others = (48, "references at other weights, and of channels")
    options = options_of(__doc__, None, worlds.add_options, count=(200, "references at weight 1"), others=others)
    bench = Bench(worlds.chosen(options))
    carried = bench.table("weight of the patch", bench.patched, {1.0: options.count} | dict.fromkeys(WEIGHTS, options.others))
    goal = " and ".join(bench.world.goal)
    best = carried[1.0][goal]
    say(f"\n{goal.capitalize()} at weight 1: {percent(best, 1)} (goal {percent(GOAL)}): {'reached' if best >= GOAL else 'MISSED'}")
    bench.table(f"weight of the image channel beside a text channel of {CFG:g}", bench.channels, dict.fromkeys(CHANNELS, options.others))


if __name__ == "__main__":
    main()
