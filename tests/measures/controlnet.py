"""Structure as a guidance channel on a demo model: `python . run tests/measures/controlnet.py [--world illustrated]`.

The structure channel is the prompt under a ControlNet, compared with the prompt alone; it gets the silhouette of a scene. The text
channel asks for a color. Told is how well the things fill the silhouette (IoU), and how often the color is the one asked for. First the
ControlNet as ComfyUI applies it, to prompt and negative prompt alike.
"""

from pathlib import Path

import comfy.controlnet
import comfy.samplers
import nodes
import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG

from demo import control as demo_control
from demo import worlds
from demo.any_world import World, in_one
from harness.demo_images import CFG, Studio
from measures.script import head, options_of, percent, row, say

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
BATCH, GOAL = 16, 0.8


def controlled(file: Path, conditioning, hints: torch.Tensor, empty) -> tuple:
    """A conditioning and an empty one under the ControlNet of a file, as the stock node makes them."""
    control = comfy.controlnet.load_controlnet(str(file))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, empty, control, hints, 1.0, 0.0, 1.0)


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

    def guider(self, text, empty, hinted, weight: float | None, rules=Rules(), text_weight: float = CFG, priority=0):
        """A text channel and a structure channel of this weight; with none, ComfyUI's guider with all under the ControlNet."""
        if weight is None:
            guider = comfy.samplers.CFGGuider(self.studio.model)
            guider.set_conds(*hinted)
            guider.set_cfg(text_weight)
            return guider
        structure = Channel(hinted[0], weight, null=text, name="structure", priority=priority)
        return MultiCFG(self.studio.model, empty, [Channel(text, text_weight, name="text"), structure], rules)

    @torch.inference_mode()
    def drawn(self, chosen: list, texts: list[str], weight: float | None, **settings):
        """Images of the texts with the silhouettes; `settings` are those of `guider`."""
        studio, images = self.studio, []
        for first in range(0, len(chosen), BATCH):
            part = chosen[first : first + BATCH]
            text, empty = studio.prompt(*texts[first : first + BATCH]), studio.prompt("")
            hints = torch.from_numpy(np.stack([demo_control.silhouettes(self.world, s) for s in part])).float() / 255
            hinted = controlled(self.world.files.controlnet, text, hints, empty)
            images.extend(studio.draw_with(self.guider(text, empty, hinted, weight, **settings), len(part), seed=7000 + first))
        return images

    def trade_off(self, count: int, weight: float | None) -> tuple[float, float]:
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
        images = self.drawn(chosen, [self.world.opposite(s) for s in chosen], 1.0, rules=Rules(rule), text_weight=6.0, priority=1)
        return float(np.mean(self.overlaps(images, chosen)))


def main() -> None:
    weights = dict(nargs="*", type=float, default=WEIGHTS, help="weights of the structure channel beside a text channel of 4")
    options = options_of(__doc__, None, worlds.add_options, count=(64, "silhouettes for each weight"), channel_weights=weights)
    bench, count, reached = Bench(worlds.chosen(options)), options.count, {}
    say(head(f"weight of the structure channel ({count} silhouettes)", "IoU with the silhouette", "color of the text"))
    for weight in (None, *options.channel_weights):
        reached[weight], color = bench.trade_off(count, weight)
        say(row("ComfyUI's CFG, no channel" if weight is None else f"{weight:g}", f"{reached[weight]:.3f}", percent(color)))
    goal = f"(goal {GOAL:g}): {'reached' if reached[None] >= GOAL else 'MISSED'}"
    say(f"\nIoU of the ControlNet as ComfyUI applies it: {reached[None]:.3f} {goal}")
    say("\n" + head("the text asks for the opposite side", "IoU with the silhouette"))
    for rule in ("sum", "project"):
        say(row(f"`{rule}`", f"{bench.conflict(count, rule):.3f}"))


if __name__ == "__main__":
    main()
