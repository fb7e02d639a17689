"""Makes a demo model's instruction model: `python . run tests/demo/make_instruct.py train | refine [--world illustrated]` (resumable).

`train` starts from the demo model's denoiser as it lies in the repository, `refine` from the instruction model that lies there: with more
of the noisy levels and of scenes of two things, where an instruction has to choose, and with an eye on the things. Each takes 10 to 20
minutes of one core. The text tower and the autoencoder are the demo model's own. The weights of the shapes in the repository went through
`train` with the loss of the demo model itself, then through `refine`. tests/measures/instruct_pix2pix.py measures it.
"""

from functools import partial

import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.model_folder import load_tensors
from controlled_diffusion.training.demo import packing
from controlled_diffusion.training.instruct_pix2pix import widened
from controlled_diffusion.training.loop import saving
from safetensors.torch import load_file

from demo import instruct as demo_instruct
from demo import model as demo_model
from demo.any_world import World
from demo.make_model import (
    Denoiser,
    as_denoised,
    base_model,
    begin,
    learned_on,
    load_average,
    made_once,
    new_tokens,
    parameters_of,
    shown,
    written,
)
from demo.muon import MuonLoop
from demo.packing import packed


def family_latents(autoencoder, world: World) -> torch.Tensor:
    """Latents (families, variants, 4, h, w), encoded once."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        images = demo_model.as_images([world.image(s) for i in numbers for s in world.family(i, demo_instruct.SEED)[1]])
        return {"latents": demo_model.encoded(autoencoder.taesd_encoder, images).unflatten(0, (-1, world.variants))}

    return made_once(world.state / "families.safetensors", world.families, 25, make)["latents"]


def make(world: World, stage: str) -> None:
    """Trains it, goes on where it stopped, and writes its file."""
    (autoencoder, unet, tower), plan, stored = base_model(world), world.plans[stage], load_file(world.weights)
    latents = as_denoised(family_latents(autoencoder, world), world.weights)
    about = learned_on(encoder=autoencoder.taesd_encoder, denoiser=unet, text=tower)
    base, first = {k: v.clone() for k, v in unet.state_dict().items()}, unet.input_blocks[0][0]
    first.weight = torch.nn.Parameter(widened(first.weight.detach(), 8))
    if stage == "refine":
        tensors, metadata = load_tensors(world.files.instruct)
        packing.check_base(metadata, stored, world.files.instruct.name, world.weights.name)
        unet.load_state_dict(packing.unpacked(tensors, base))
    unet.to(memory_format=torch.channels_last)
    parameters = parameters_of(unet=unet)
    matrices = demo_model.matrices_of(parameters)
    loop = MuonLoop(parameters, steps=plan.steps, learning_rate=plan.rate, warmup=100, average=0.99, matrices=matrices, about=about)
    path = world.state / f"instruct_{stage}.safetensors"
    loop.restore(path)

    encode_text, denoiser = torch.no_grad()(partial(demo_model.encode_text, tower)), Denoiser(world.network(unet))
    given = (world, denoiser, encode_text, new_tokens(), latents, 1 / demo.LATENT_SCALE, loop)
    shown(saving(loop, demo_instruct.train_instruct(*given, batch=plan.batch, **plan.settings), path))
    load_average(path, unet=unet)
    written(packed(unet.state_dict(), base), world.files.instruct, {packing.BASE: packing.name_of(stored)})


if __name__ == "__main__":
    chosen, options = begin(__doc__, stage=["train", "refine"])
    make(chosen, options.stage)
