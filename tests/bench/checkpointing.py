"""Memory of a training step with and without checkpointing: `python . run tests/bench/checkpointing.py [--model sd15] [--size 32] [--narrow]`.

A model of the shape of SD1.5, SDXL or Flux with random weights, a LoRA on its attention, one loss and its gradients. The peak is the
allocator's own above the start; beside it stands what a trainer told before. The gradients of both ways are compared.
"""

import argparse
from functools import partial

import torch
from controlled_diffusion.nodes.host import checkpointing
from controlled_diffusion.nodes.host.gradients import trainable
from controlled_diffusion.nodes.host.training import adapters, run
from controlled_diffusion.nodes.host.training.memory import MemoryPlan
from controlled_diffusion.training.loop import Loop

from bench.shapes import NARROW, SHAPES, clock, model_of
from harness.memory import peak
from measures.script import head, options_of, row, say


def measured(o: argparse.Namespace) -> dict[str, tuple]:
    """(peak MB, told MB, seconds, gradients) of both ways."""
    gpu, shape = torch.cuda.is_available(), SHAPES[o.model]
    made = model_of(o.model, torch.bfloat16 if gpu else torch.float32, **(NARROW[o.model] if o.narrow else {}))
    model, _ = trainable(made)
    learned, draw = adapters.Design(rank=8).adapters(model, 1), torch.Generator().manual_seed(1)
    for p in learned.parameters.values():
        p.add_(0.01 * torch.randn(p.shape, generator=draw))
    learned.put_on(model)
    [row] = shape.conditioning(2)
    x, found = shape.latent(o.batch, o.size), {}
    loop = Loop(learned.parameters, steps=1, learning_rate=0.001)

    def steps(denoiser):
        plan = MemoryPlan("off", loop, x.shape, o.batch, 1, lambda count: [row] * count, 0.5)
        told = plan.measured(denoiser, checkpointing.blocks_of(model.model))[1]
        start = torch.randn(x.shape, generator=draw).to(model.load_device)

        def step(blocks) -> None:
            with checkpointing.recomputed(blocks):
                sigmas = torch.full([o.batch], denoiser.scale.sigma(0.5), device=start.device)
                loss = denoiser.denoised(start, sigmas, [row] * o.batch).square().mean()
                derivatives.append(torch.autograd.grad(loss, list(learned.parameters.values())))

        for name, blocks, need in (("plain", (), told.plain), ("checkpointing", checkpointing.blocks_of(model.model), told.recomputed)):
            derivatives = []
            needed, begin = peak(partial(step, blocks)), clock()
            step(blocks)
            found[name] = (needed, need / 1e6, clock() - begin, derivatives[0])
        yield from ()

    run.run_sampler(model, [row], x.shape, run.TrainSampler(steps))
    return found


def main(arguments: list[str] | None = None) -> None:
    model, narrow = dict(choices=list(SHAPES), default="sd15"), dict(action="store_true", help="for a quick look")
    o = options_of(__doc__, arguments, model=model, size=(32, "side of the latents"), narrow=narrow, batch=1)
    with torch.inference_mode(False), torch.no_grad():
        found = measured(o)
    say(head(f"{o.model}, {o.batch} x {8 * o.size} x {8 * o.size} pixels", "peak", "told before", "seconds"))
    for name, (needed, told, seconds, _) in found.items():
        say(row(name, f"{needed:.0f} MB", f"{told:.0f} MB", f"{seconds:.2f}"))
    (*_, one), (*_, other) = found.values()
    far = max(float((a - b).norm() / a.norm()) for a, b in zip(one, other))
    say(f"largest relative difference of a gradient: {far:.1e}")


if __name__ == "__main__":
    main()
