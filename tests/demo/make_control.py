"""Makes a demo model's ControlNet: `python . run tests/demo/make_control.py [--world illustrated]` (resumable).

It learns silhouettes on the denoiser that lies in the repository (about 15 minutes of 2 cores); train it anew after that changes. The file is
in ComfyUI's Control-LoRA format, which the stock Load ControlNet Model node reads. tests/measures/controlnet.py measures it.
"""

from functools import partial

import comfy.cldm.cldm
import torch
from controlled_diffusion.nodes.host.saved_tensors import mutations_allowed
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.loop import Loop, saving

from demo import control as demo_control
from demo import model as demo_model
from demo.any_world import World
from demo.make_model import OVERRIDE, base_model, begin, learned_on, new_tokens, scene_latents, shown, written


def new_branch(unet, unet_config: dict) -> torch.nn.Module:
    """ComfyUI's ControlNet beside a denoiser: its encoder copied, hint block and zero convolutions at their start."""
    sizes = {k: v for k, v in unet_config.items() if k not in ("out_channels", "transformer_depth_output")}
    sizes |= dict(num_head_channels=config.HEAD_CHANNELS, hint_channels=3)
    branch = comfy.cldm.cldm.ControlNet(device="cpu", dtype=torch.float32, **sizes)
    noisy_classifier.initialize(branch, demo_control.SEED)
    for name, p in branch.named_parameters():
        if name.startswith(("zero_convs.", "middle_block_out.", "input_hint_block.14.")):
            p.data.zero_()
    branch.load_state_dict({k: v for k, v in unet.state_dict().items() if k in branch.state_dict()}, strict=False)
    return branch.requires_grad_(False)


def make(world: World) -> None:
    """Trains it, goes on where it stopped, and writes its file."""
    (autoencoder, unet, tower), plan = base_model(world), world.plans["control"]
    latents = scene_latents(autoencoder, world)
    latents = (latents - latents.mean()) / latents.std()
    unet.requires_grad_(False)
    branch = world.network(new_branch(unet, world.unet_config))
    weights = {k: v.detach() for k, v in branch.state_dict().items()}
    parts = demo_control.trainable_parts(weights)
    world.network(unet)

    def predict(noisy, levels, context, hints):
        given = dict(hint=hints, timesteps=levels, context=context, transformer_options=OVERRIDE)
        control = torch.func.functional_call(branch, demo_control.whole_weights(weights, parts), (noisy,), given)
        control = {k: control[k] for k in ("output", "middle")}
        return unet(noisy, levels, context=context, control=control, transformer_options=OVERRIDE)

    about = learned_on(encoder=autoencoder.taesd_encoder, denoiser=unet, text=tower)
    loop = Loop(parts, steps=plan.steps, learning_rate=plan.rate, warmup=50, average=0.99, about=about)
    path = world.state / "controlnet.safetensors"
    loop.restore(path)
    with mutations_allowed(lambda: [*unet.parameters(), *weights.values()]):  # ComfyUI's denoiser adds the control in place
        encode_text = torch.no_grad()(partial(demo_model.encode_text, tower))
        steps = demo_control.train_control(world, predict, encode_text, new_tokens(), latents, loop, batch=plan.batch)
        shown(saving(loop, steps, path))
    with loop.averaged():
        written({k: p.half() for k, p in parts.items()} | {"lora_controlnet": torch.zeros(1)}, world.files.controlnet)


if __name__ == "__main__":
    make(begin(__doc__)[0])
