"""Structure as a guidance channel on a demo model: `python . run tests/measures/controlnet.py [--world illustrated]`.

The structure channel is the prompt under a ControlNet, compared with the prompt alone; it gets the silhouette of a scene. The text
channel asks for a color. Told is how well the things fill the silhouette (IoU), and how often the color is the one asked for.
"""

from pathlib import Path

import comfy.controlnet
import nodes
import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG

from demo import control as demo_control
from demo import worlds
from demo.any_world import World, in_one
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
BATCH, GOAL = 16, 0.8


def controlled(file: Path, conditioning, hints: torch.Tensor, empty):
    """A conditioning under the ControlNet of a file, as the stock node makes it."""
    control = comfy.controlnet.load_controlnet(str(file))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, empty, control, hints, 1.0, 0.0, 1.0)[0]


class Bench:
    """A world's model and ControlNet."""

    def __init__(self, world: World, studio: Studio | None = None):
        self.world, self.studio = world, studio or worlds.studio(world)

    def scenes(self, count: int) -> list:
        """Held-out scenes of one plain thing."""
        found = (self.world.scene(i, 99) for i in range(100 * count))
        return [s for s in found if self.world.is_plain(s)][:count]

    def overlaps(self, images: list[np.ndarray], scenes: list) -> list[float]:
        """IoU of everything that stands on the background with each silhouette."""
        found, size = [], self.world.size
        for reading, scene in zip(self.world.read(images), scenes):
            seen, wanted = in_one([t.mask for t in reading.things], size), in_one(self.world.masks(scene), size)
            found.append(float((seen & wanted).sum() / max(1, (seen | wanted).sum())))
        return found

    @torch.inference_mode()
    def drawn(self, chosen: list, texts: list[str], weight: float, rules=Rules(), text_weight: float = 4.0, priority=0):
        """Images with a text channel and a structure channel of the silhouettes."""
        studio, images = self.studio, []
        for first in range(0, len(chosen), BATCH):
            part = chosen[first : first + BATCH]
            text, empty = studio.prompt(*texts[first : first + BATCH]), studio.prompt("")
            hints = torch.from_numpy(np.stack([demo_control.silhouettes(self.world, s) for s in part])).float() / 255
            hinted = controlled(self.world.files.controlnet, text, hints, empty)
            structure = Channel(hinted, weight, null=text, name="structure", priority=priority)
            guider = MultiCFG(studio.model, empty, [Channel(text, text_weight, name="text"), structure], rules)
            images.extend(studio.draw_with(guider, len(part), seed=7000 + first))
        return images

    def trade_off(self, count: int, weight: float) -> tuple[float, float]:
        """(mean IoU with the silhouette, share with the asked color, of those that ask for one)."""
        chosen, rng = self.scenes(count), np.random.default_rng(12)
        texts, colors = zip(*(self.world.wish(s, rng) for s in chosen))
        images = self.drawn(chosen, list(texts), weight)
        seen = [self.world.described(reading, alone=True).get("color") for reading in self.world.read(images)]
        right = [found == color for found, color in zip(seen, colors) if color]
        return float(np.mean(self.overlaps(images, chosen))), float(np.mean(right))

    def conflict(self, count: int, rule: str) -> float:
        """Mean IoU where the text asks for the opposite side; the structure has the higher priority."""
        chosen = [s for s in self.scenes(3 * count) if self.world.opposite(s)][:count]
        images = self.drawn(chosen, [self.world.opposite(s) for s in chosen], 1.0, Rules(rule), text_weight=6.0, priority=1)
        return float(np.mean(self.overlaps(images, chosen)))


def main() -> None:
    options = options_of(__doc__, None, worlds.add_options, count=(64, "silhouettes for each weight"))
    bench, count, reached = Bench(worlds.chosen(options)), options.count, {}
    say(head(f"weight of the structure channel ({count} silhouettes)", "IoU with the silhouette", "color of the text"))
    for weight in WEIGHTS:
        reached[weight], color = bench.trade_off(count, weight)
        say(row(f"{weight:g}", f"{reached[weight]:.3f}", percent(color)))
    say(f"\nIoU at weight 1: {reached[1.0]:.3f} (goal {GOAL:g}): {'reached' if reached[1.0] >= GOAL else 'MISSED'}")
    say("\n" + head("the text asks for the opposite side", "IoU with the silhouette"))
    for rule in ("sum", "project"):
        say(row(f"`{rule}`", f"{bench.conflict(count, rule):.3f}"))


if __name__ == "__main__":
    main()
