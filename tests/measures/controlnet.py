"""Structure as a guidance channel on the demo model: `python . run tests/measures/controlnet.py`.

The structure channel is the prompt under a ControlNet, compared with the prompt alone; it gets the silhouette of a scene. The text
channel asks for a color. Told is how well the things fill the silhouette (IoU), and how often the color is the one asked for.
"""

import comfy.controlnet
import nodes
import numpy as np
import torch
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.training.demo import checker

from demo import control as demo_control
from demo import model as demo_model
from demo import world
from demo.world import COLORS, Scene
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

CONTROLNET = demo.WEIGHTS.parent / "controlnet" / "demo_model_silhouette.safetensors"
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
BATCH = 16


def scenes(count: int) -> list[Scene]:
    """Held-out scenes of one plain thing."""
    found = (demo_model.scene(i, seed=99) for i in range(100 * count))
    return [s for s in found if len(s.things) == 1 and not s.things[0].accessory and not s.moon][:count]


def silhouette_iou(image: np.ndarray, scene: Scene) -> float:
    """Overlap of everything that stands on the background with the silhouette."""
    things = [t.mask for t in checker.read(image).things]
    seen = np.logical_or.reduce(things) if things else np.zeros((world.SIZE,) * 2, bool)
    wanted = np.logical_or.reduce(world.thing_masks(scene))
    return float((seen & wanted).sum() / max(1, (seen | wanted).sum()))


def controlled(conditioning, hints: torch.Tensor, empty):
    """A conditioning under the shipped ControlNet, as the stock node makes it."""
    control = comfy.controlnet.load_controlnet(str(CONTROLNET))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, empty, control, hints, 1.0, 0.0, 1.0)[0]


@torch.inference_mode()
def drawn(studio: Studio, chosen: list[Scene], texts: list[str], weight: float, rules=Rules(), text_weight: float = 4.0, priority=0):
    """Images with a text channel and a structure channel of the silhouettes."""
    images = []
    for first in range(0, len(chosen), BATCH):
        part = chosen[first : first + BATCH]
        text, empty = studio.prompt(*texts[first : first + BATCH]), studio.prompt("")
        hints = torch.from_numpy(np.stack([demo_control.silhouettes(s) for s in part])).float() / 255
        structure = Channel(controlled(text, hints, empty), weight, null=text, name="structure", priority=priority)
        guider = MultiCFG(studio.model, empty, [Channel(text, text_weight, name="text"), structure], rules)
        images.extend(studio.draw_with(guider, len(part), seed=7000 + first))
    return images


def wishes(chosen: list[Scene]) -> tuple[list[str], list[str]]:
    """(prompts, colors): a color drawn at random for each scene's silhouette."""
    rng = np.random.default_rng(12)
    colors = [str(rng.choice(list(COLORS))) for _ in chosen]
    return [f"a {c} {s.things[0].shape} on a {s.background} background" for c, s in zip(colors, chosen)], colors


def trade_off(studio: Studio, count: int, weight: float) -> tuple[float, float]:
    """(mean IoU with the silhouette, share with the asked color)."""
    chosen = scenes(count)
    texts, colors = wishes(chosen)
    images = drawn(studio, chosen, texts, weight)
    right = [[t.color for t in checker.read(p).things] == [c] for p, c in zip(images, colors)]
    return float(np.mean([silhouette_iou(p, s) for p, s in zip(images, chosen)])), float(np.mean(right))


def conflict(studio: Studio, count: int, rule: str) -> float:
    """Mean IoU where the text asks for the opposite side; the structure has the higher priority."""
    opposite = {"left": "on the right", "right": "on the left", "top": "at the bottom", "bottom": "at the top"}
    chosen = [s for s in scenes(3 * count) if s.layout in opposite][:count]
    texts = [f"a {s.things[0].color} {s.things[0].shape} {opposite[s.layout]} on a {s.background} background" for s in chosen]
    images = drawn(studio, chosen, texts, 1.0, Rules(rule), text_weight=6.0, priority=1)
    return float(np.mean([silhouette_iou(p, s) for p, s in zip(images, chosen)]))


def main() -> None:
    count, studio = options_of(__doc__, count=(64, "silhouettes for each weight")).count, Studio()
    say(head(f"weight of the structure channel ({count} silhouettes)", "IoU with the silhouette", "color of the text"))
    for weight in WEIGHTS:
        overlap, color = trade_off(studio, count, weight)
        say(row(f"{weight:g}", f"{overlap:.3f}", percent(color)))
    say("\n" + head("the text asks for the opposite side", "IoU with the silhouette"))
    for rule in ("sum", "project"):
        say(row(f"`{rule}`", f"{conflict(studio, count, rule):.3f}"))


if __name__ == "__main__":
    main()
