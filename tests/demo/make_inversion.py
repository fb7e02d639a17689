"""Makes the inversion that comes with the pack: `python . run tests/demo/make_inversion.py`; anew after the demo model's weights change.

A rendered image, never a generated one, inverted by DDIM on the demo model, so that Load Inversion has something to load.
"""

import os

import torch
from controlled_diffusion.inversion import files
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.inversion import inversion_files
from controlled_diffusion.nodes.host.inversion import invert as inverting

from demo.shapes_world import SHAPES
from demo.world import Scene, Thing, render
from harness.demo_images import SCHEDULER, Studio

STEPS = 20
CAPTION = "a red circle on the left and a blue star on the right on a white background"
SCENE = Scene("white", (Thing("circle", "red", x=33, y=64, radius=25), Thing("star", "blue", x=95, y=64, radius=25)), "horizontal")
TARGET = SHAPES.files.inversion


@torch.inference_mode()
def made(studio: Studio) -> inverting.Inversion:
    image = torch.from_numpy(render(SCENE))[None].float() / 255
    sigmas = noise_levels.levels(studio.model, SCHEDULER, STEPS, 0.0)
    return inverting.invert(studio.model, studio.vae, image, studio.prompt(CAPTION), DDIM(), sigmas)


def main() -> None:
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    fresh = TARGET.with_name(f"fresh_{TARGET.name}")
    files.save(inversion_files.values(made(Studio())), fresh)
    os.replace(fresh, TARGET)


if __name__ == "__main__":
    main()
