"""An instruction model that Train Instruction Model makes of the demo model: `python . run tests/measures/instruct_training.py` (resumable).

Rendered pictures before and after an edit, with the instruction that leads from one to the other, as the demo's own instruction model
learnt from; then held-out edits, judged as `instruct_pix2pix.py` judges them. On a GPU a few minutes, on one CPU core some hours.
"""

import argparse

import folder_paths
import numpy as np
import torch
from controlled_diffusion.nodes.instruct_training import InstructPix2PixTrainer
from controlled_diffusion.training import demo_instruct
from controlled_diffusion.training import demo_world as world

from harness.demo_pictures import Studio
from measures.diffedit import defaults
from measures.instruct_pix2pix import Editor, table


def lesson(pairs: int) -> dict[str, list]:
    """Pictures before and after, IMAGE batches of one, and the instructions."""
    rng = np.random.default_rng((demo_instruct.SEED, 2))
    edits = [demo_instruct.edit(rng, i)[0] for i in range(pairs)]

    def drawn(scene: world.Scene) -> torch.Tensor:
        return torch.from_numpy(world.render(scene))[None].float() / 255

    return {
        "before": [drawn(e.before) for e in edits],
        "after": [drawn(e.after) for e in edits],
        "instructions": [e.text for e in edits],
    }


@torch.inference_mode()
def learnt(studio: Studio, o: argparse.Namespace) -> str:
    """Trains, or goes on training; gives the path of the file."""
    parts = dict(model=studio.model, clip=studio.clip, vae=studio.vae, name=o.name, if_exists="continue")
    how = dict(
        train=o.train, steps=o.steps, batch_size=o.batch, learning_rate=o.rate, timesteps=o.timesteps, average=o.average, flip=o.flip
    )
    given = {**defaults(InstructPix2PixTrainer), **parts, **how, "warmup": 100, "validation_count": 0}
    made = InstructPix2PixTrainer.execute(**{k: [v] for k, v in given.items()} | lesson(o.pairs)).args
    return folder_paths.get_full_path_or_raise("diffusion_models", made[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--train", default="all weights")
    parser.add_argument("--timesteps", default="shifted")
    parser.add_argument("--average", type=float, default=0.99, help="of the weights over the steps")
    parser.add_argument("--flip", action="store_true", help="learn from mirrored pairs too")
    parser.add_argument("--count", type=int, default=128, help="edits of each kind to judge; 0 = only learn")
    parser.add_argument("--name", default="measured", help="another one starts anew")
    o = parser.parse_args()
    path = learnt(Studio(), o)
    print(f"wrote {path}", flush=True)
    if o.count:
        table(Editor(path), o.count)


if __name__ == "__main__":
    main()
