"""What image guidance does on the demo model without any prompt: `python . run tests/measures/image_guidance.py`.

The reference is a rendered scene; told is how far the images are from it in what the kind compares, without and with guidance.
"""

import numpy as np
import torch
from controlled_diffusion.guidance.image_guidance import DISTANCES
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.image_guidance import ImageGuidanceChannel

from demo import model as demo_model
from demo import world
from harness.demo_images import Studio
from measures.script import head, options_of, row, say

WEIGHTS = {"color": 1.0, "brightness": 8.0, "layout": 4.0}


@torch.inference_mode()
def distances(studio: Studio, kind: str, weight: float, references: int, through: bool = False) -> tuple[float, float]:
    """Mean distance to the reference without and with guidance, over as many references with one image each."""
    found = []
    for i in range(references):
        image = torch.from_numpy(world.render(demo_model.scene(i, seed=88))).float()[None] / 255
        pair = []
        for w in (0.0, weight):
            channels = ImageGuidanceChannel.execute(studio.model, studio.vae, kind, through, 0, weight=w, image=image).args[0]
            made = studio.draw_with(MultiCFG(studio.model, studio.prompt(""), channels), 1, seed=6000 + i)
            made = torch.from_numpy(made).float().movedim(-1, 1) / 255
            pair.append(float(DISTANCES[kind](made, image.movedim(-1, 1))))
        found.append(pair)
    without, guided = np.mean(found, 0)
    return float(without), float(guided)


def main() -> None:
    count, studio = options_of(__doc__, count=(16, "reference images")).count, Studio()
    say(head(f"kind ({count} references, no prompt)", "distance without", "cheap form", "through the denoiser"))
    for kind, weight in WEIGHTS.items():
        without, cheap = distances(studio, kind, weight, count)
        exact = distances(studio, kind, weight, count, through=True)[1]
        say(row(kind, f"{without:.4f}", f"{cheap:.4f}", f"{exact:.4f}"))


if __name__ == "__main__":
    main()
