"""Makes the inversion that comes with the pack: `python . run tests/demo/make_inversion.py`; anew after the demo model's weights change.

A drawn image, never a generated one, inverted by DDIM on the demo model, so that Load Inversion has something to load.
"""

import argparse
import os

import numpy as np
import torch
from controlled_diffusion.inversion import files
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.inversion import inversion_files
from controlled_diffusion.nodes.host.inversion import invert as inverting
from controlled_diffusion.training.demo.images import images_of

from demo import worlds
from demo.illustrated_world import ILLUSTRATED
from harness.demo_images import SCHEDULER, Studio

STEPS, SEED = 20, 8996


def scene() -> tuple[np.ndarray, str]:
    """(uint8 (side, side, 3), its caption): the image that Load Demo Images gives for the seed."""
    ((image, caption, _),) = images_of("scenes", 1, SEED)
    return image, caption


@torch.inference_mode()
def made(studio: Studio) -> inverting.Inversion:
    image, caption = scene()
    sigmas = noise_levels.levels(studio.model, SCHEDULER, STEPS, 0.0)
    return inverting.invert(studio.model, studio.vae, torch.from_numpy(image)[None].float() / 255, studio.prompt(caption), DDIM(), sigmas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    worlds.add_places(parser)
    world = worlds.placed(ILLUSTRATED, parser.parse_args())
    target = world.files.inversion
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"fresh_{target.name}")
    files.save(inversion_files.values(made(worlds.studio(world))), fresh)
    os.replace(fresh, target)


if __name__ == "__main__":
    main()
