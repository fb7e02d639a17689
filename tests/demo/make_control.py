"""Makes the demo model's ControlNet: `python . run tests/demo/make_control.py` (resumable; about 15 minutes on 2 cores).

It learns silhouettes on the denoiser that lies in the repository; train it anew after that changes. The file is in ComfyUI's
Control-LoRA format, which the stock Load ControlNet Model node reads.
"""

from functools import partial

import comfy.cldm.cldm
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.saved_tensors import mutations_allowed
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.loop import Loop, save_atomically, saving

from demo import control as demo_control
from demo import model as demo_model
from demo.make_model import OVERRIDE, STATE, begin, new_tokens, say, scene_latents, shipped, shown

STEPS, RATE, BATCH = 700, 1.5e-3, 24
TARGET = demo.WEIGHTS.parent / "controlnet" / "demo_model_silhouette.safetensors"


def new_branch(unet) -> torch.nn.Module:
    """ComfyUI's ControlNet beside a denoiser: its encoder copied, hint block and zero convolutions at their start."""
    sizes = {k: v for k, v in config.UNET_CONFIG.items() if k not in ("out_channels", "transformer_depth_output")}
    branch = comfy.cldm.cldm.ControlNet(hint_channels=3, device="cpu", dtype=torch.float32, **sizes)
    noisy_classifier.initialize(branch, demo_control.SEED)
    for name, p in branch.named_parameters():
        if name.startswith(("zero_convs.", "middle_block_out.", "input_hint_block.14.")):
            p.data.zero_()
    branch.load_state_dict({k: v for k, v in unet.state_dict().items() if k in branch.state_dict()}, strict=False)
    return branch.requires_grad_(False)


def main() -> None:
    begin(__doc__)
    autoencoder, unet, tower = shipped()
    latents = scene_latents(autoencoder, demo_model.RECIPE)
    latents = (latents - latents.mean()) / latents.std()
    unet.requires_grad_(False)
    branch = new_branch(unet)
    weights = {k: v.detach() for k, v in branch.state_dict().items()}
    parts = demo_control.trainable_parts(weights)

    def predict(noisy, levels, context, hints):
        given = dict(hint=hints, timesteps=levels, context=context, transformer_options=OVERRIDE)
        control = torch.func.functional_call(branch, demo_control.whole_weights(weights, parts), (noisy,), given)
        control = {k: control[k] for k in ("output", "middle")}
        return unet(noisy, levels, context=context, control=control, transformer_options=OVERRIDE)

    loop = Loop(parts, steps=STEPS, learning_rate=RATE, warmup=50, average=0.99)
    path = STATE / "controlnet.safetensors"
    loop.restore(path)
    with mutations_allowed(lambda: [*unet.parameters(), *weights.values()]):  # ComfyUI's denoiser adds the control in place
        encode_text = torch.no_grad()(partial(demo_model.encode_text, tower))
        shown(saving(loop, demo_control.train_control(predict, encode_text, new_tokens(), latents, loop, batch=BATCH), path))
    TARGET.parent.mkdir(exist_ok=True)
    with loop.averaged():
        save_atomically({k: p.half() for k, p in parts.items()} | {"lora_controlnet": torch.zeros(1)}, TARGET)
    say(f"wrote {TARGET.name}: {TARGET.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
