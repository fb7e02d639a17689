"""Makes the demo model's instruction model: `python . run tests/demo/make_instruct.py train | refine` (resumable).

`train` starts from the demo model's denoiser as it lies in the repository, `refine` from the instruction model that lies there: with more
of the noisy levels and of scenes of two things, where an instruction has to choose, and with an eye on the things. Each takes 10 to 20
minutes of one core. The text tower and the autoencoder are the demo model's own. The weights in the repository went through `train` with
the loss of the demo model itself, then through `refine`.
"""

from functools import partial

import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo import packing
from controlled_diffusion.training.instruct_pix2pix import widened
from controlled_diffusion.training.loop import save_atomically, saving
from safetensors.torch import load_file

from demo import instruct as demo_instruct
from demo import model as demo_model
from demo import world
from demo.make_model import STATE, Denoiser, as_denoised, begin, load_average, made_once, new_tokens, parameters_of, say, shipped, shown
from demo.muon import MuonLoop
from demo.packing import packed

BATCH = 24
STAGES = {
    "train": dict(steps=1600, rate=6e-4, noisy_share=0.0, pair_share=0.5, focus=0.0),
    "refine": dict(steps=1150, rate=1.5e-3, noisy_share=0.7, pair_share=0.75, focus=4.0),
}


def family_latents(autoencoder) -> torch.Tensor:
    """Latents (families, 4, 4, 16, 16), encoded once."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        images = demo_model.as_images([world.render(s) for i in numbers for s in demo_instruct.family(i)[1]])
        return {"latents": demo_model.encoded(autoencoder.taesd_encoder, images).unflatten(0, (-1, 4))}

    return made_once(STATE / "families.safetensors", demo_instruct.FAMILIES, 25, make)["latents"]


def main() -> None:
    options = begin(__doc__, stage=list(STAGES))
    stage = {**STAGES[options.stage]}
    autoencoder, unet, tower = shipped()
    latents = as_denoised(family_latents(autoencoder))
    base, first = {k: v.clone() for k, v in unet.state_dict().items()}, unet.input_blocks[0][0]
    first.weight = torch.nn.Parameter(widened(first.weight.detach(), 8))
    if options.stage == "refine":
        unet.load_state_dict(packing.unpacked(load_file(demo.INSTRUCT_WEIGHTS), base))
    unet.to(memory_format=torch.channels_last)
    parameters = parameters_of(unet=unet)
    matrices = demo_model.matrices_of(parameters)
    loop = MuonLoop(parameters, steps=stage.pop("steps"), learning_rate=stage.pop("rate"), warmup=100, average=0.99, matrices=matrices)
    path = STATE / f"instruct_{options.stage}.safetensors"
    loop.restore(path)

    encode_text, scale = torch.no_grad()(partial(demo_model.encode_text, tower)), 1 / demo.LATENT_SCALE
    steps = demo_instruct.train_instruct(Denoiser(unet), encode_text, new_tokens(), latents, scale, loop, batch=BATCH, **stage)
    shown(saving(loop, steps, path))
    load_average(path, unet=unet)
    demo.INSTRUCT_WEIGHTS.parent.mkdir(exist_ok=True)
    save_atomically(packed(unet.state_dict(), base), demo.INSTRUCT_WEIGHTS)
    say(f"wrote {demo.INSTRUCT_WEIGHTS.name}: {demo.INSTRUCT_WEIGHTS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
