"""Memory of a training step with and without checkpointing: `python . run tests/bench/checkpointing.py [--size 32] [--channels 320]`.

A UNet of SD1.5's layout with random weights (`--channels` 320 is SD1.5 itself), a LoRA on its attention, one loss and its gradients. The
peak is the allocator's own above the start; beside it stands what a trainer told before. The gradients of both ways are compared.
"""

import argparse
import time
from functools import partial

import torch
from controlled_diffusion.nodes.host import adapters, gradients, training
from controlled_diffusion.nodes.host.training_memory import Room
from controlled_diffusion.training.loop import Loop

from harness.memory import peak
from host import tiny

SD15 = dict(
    num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3,
    transformer_depth_middle=1, context_dim=768, num_heads=8,
)  # fmt: skip


def measured(o: argparse.Namespace) -> dict[str, tuple]:
    """(peak MB, told MB, seconds, gradients) of both ways."""
    model, _ = training.trainable(tiny.unet("eps", output_scale=0.1, model_channels=o.channels, **SD15))
    learnt, draw = adapters.Design(rank=8).adapters(model, 1), torch.Generator().manual_seed(1)
    for p in learnt.parameters.values():
        p.add_(0.01 * torch.randn(p.shape, generator=draw))
    learnt.put_on(model)
    row = [torch.randn(1, 77, 768, generator=draw), {}]
    x, found = torch.randn(o.batch, 4, o.size, o.size, generator=draw), {}
    loop = Loop(learnt.parameters, steps=1, learning_rate=0.001)

    def steps(ground):
        room = Room("off", loop, x.shape, o.batch, lambda count: [row] * count, 0.5)
        told = room._kept(ground, gradients.blocks_of(model.model), o.batch)

        def step(blocks) -> None:
            with gradients.recomputed(blocks):
                loss = ground.denoised(x, torch.full([o.batch], ground.scale.sigma(0.5)), [row] * o.batch).square().mean()
                slopes.append(torch.autograd.grad(loss, list(learnt.parameters.values())))

        for name, blocks, need in (("plain", (), told.whole), ("checkpointing", gradients.blocks_of(model.model), told.again)):
            slopes, begin = [], time.perf_counter()
            needed = peak(partial(step, blocks))
            found[name] = (needed, need / 1e6, time.perf_counter() - begin, slopes[0])
        return iter(())

    guider = training.comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": [row]})
    guider.sample(
        torch.zeros_like(x), torch.zeros_like(x), training.Lesson(steps, (), lambda s: None, False), torch.ones(1), disable_pbar=True
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="side of the latents")
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    o = parser.parse_args()
    with torch.inference_mode(False), torch.no_grad():
        found = measured(o)
    print(f"| {o.batch} x {8 * o.size} x {8 * o.size} pixels, {o.channels} channels | peak | told before | seconds |\n|---|---|---|---|")
    for name, (needed, told, seconds, _) in found.items():
        print(f"| {name} | {needed:.0f} MB | {told:.0f} MB | {seconds:.1f} |")
    (*_, one), (*_, other) = found.values()
    far = max(float((a - b).norm() / a.norm()) for a, b in zip(one, other))
    print(f"largest relative difference of a gradient: {far:.1e}")


if __name__ == "__main__":
    main()
