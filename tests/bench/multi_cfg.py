"""Time of multi-condition guidance beside the host's CFG: `python . run tests/bench/multi_cfg.py`.

For 1 to 6 channels: seconds and network evaluations a step, and the host's CFGGuider on a batch with the same number of
evaluations a step, measured in turn in the same run. The ratio is what the channels cost beyond the network itself; memory is the peak above the start.
"""

import argparse
import statistics
import time

import comfy.samplers
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG

from bench.shapes import SHAPES, Shape, model_of
from harness.demo_images import Studio
from harness.memory import peak
from host.sampling import Count


def seconds_a_step(guider, latent: torch.Tensor, steps: int) -> float:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    start = time.perf_counter()
    guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", *SHAPES], default="demo")
    parser.add_argument("--side", type=int, help="of the latent, in cells; default: what the model is made for")
    parser.add_argument("--channels", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="each time is the median of this many runs, taken in turn")
    options = parser.parse_args()
    if options.model == "demo":
        model, shape = Studio().model, Shape(*[None] * 3, width=128, pooled=128, side=16)
    else:
        model, shape = model_of(options.model), SHAPES[options.model]
    count, texts, side = Count(model), [shape.conditioning(seed) for seed in range(7)], options.side or shape.side
    print(f"| channels, {options.model}, latent {side} x {side} | evaluations a step | ms a step | host's CFG, same evaluations, ms a step "
          "| ratio | peak memory, MB | host's |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for n in options.channels:
        ours = MultiCFG(count.model, texts[0], [Channel(t, 2.0) for t in texts[1 : n + 1]])
        host = comfy.samplers.CFGGuider(model)
        host.set_conds(texts[1], texts[0])
        one, many = shape.latent(1, side), shape.latent(n + 1, side)
        host.set_cfg(1.0)  # evaluates the prompt alone: n + 1 images are n + 1 rows
        seconds_a_step(ours, one, 2), seconds_a_step(host, many, 2)
        memory = [peak(lambda run=run: seconds_a_step(*run, 1)) for run in ((ours, one), (host, many))]
        count.rows = 0
        times = [(seconds_a_step(ours, one, options.steps), seconds_a_step(host, many, options.steps)) for _ in range(options.repeats)]
        a, b = (1000 * statistics.median(t) for t in zip(*times))
        evaluations = count.rows / options.steps / options.repeats
        print(f"| {n} | {evaluations:.0f} | {a:.1f} | {b:.1f} | {a / b:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
