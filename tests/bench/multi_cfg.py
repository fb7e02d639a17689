"""Time of multi-condition guidance beside ComfyUI's CFG: `python . run tests/bench/multi_cfg.py`.

For 1 to 6 channels: seconds and network evaluations a step, and ComfyUI's CFGGuider on a batch with the same number of
evaluations a step, measured in turn in the same run. The ratio is what the channels cost beyond the network itself; memory is the peak above the start.
"""

import statistics
import time
from collections.abc import Callable, Hashable

import comfy.samplers
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG

from bench.shapes import SHAPES, Shape, model_of
from harness.demo_images import Studio
from harness.memory import peak
from host.sampling import Count
from measures.script import head, options_of, row, say


def guider_of(model, positive: list, negative: list, cfg: float = 7.5) -> comfy.samplers.CFGGuider:
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


@torch.inference_mode()
def seconds_a_step(guider, latent: torch.Tensor, steps: int) -> float:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    start = time.perf_counter()
    guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def shortest(runs: dict[Hashable, Callable[[], float]], repeats: int) -> dict[Hashable, float]:
    """Of every run the shortest time of `repeats`, taken in turn."""
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in runs}


@torch.inference_mode()
def main() -> None:
    repeats = (5, "each time is the median of this many runs, taken in turn")
    side = dict(type=int, help="of the latent, in cells; default: what the model is made for")
    model, channels = dict(choices=["demo", *SHAPES], default="demo"), dict(type=int, nargs="*", default=[1, 2, 3, 4, 5, 6])
    options = options_of(__doc__, model=model, side=side, channels=channels, steps=20, repeats=repeats)
    if options.model == "demo":
        model, shape = Studio().model, Shape(*[None] * 3, width=128, pooled=128, side=16)
    else:
        model, shape = model_of(options.model), SHAPES[options.model]
    count, texts, side = Count(model), [shape.conditioning(seed) for seed in range(7)], options.side or shape.side
    titles = "evaluations a step", "ms a step", "ComfyUI's CFG, same evaluations, ms a step", "ratio"
    say(head(f"channels, {options.model}, latent {side} x {side}", *titles, "peak memory, MB", "ComfyUI's"))
    for n in options.channels:
        ours = MultiCFG(count.model, texts[0], [Channel(t, 2.0) for t in texts[1 : n + 1]])
        one, many = shape.latent(1, side), shape.latent(n + 1, side)
        host = guider_of(model, texts[1], texts[0], cfg=1.0)  # evaluates the prompt alone: n + 1 images are n + 1 rows
        seconds_a_step(ours, one, 2), seconds_a_step(host, many, 2)
        memory = [peak(lambda run=run: seconds_a_step(*run, 1)) for run in ((ours, one), (host, many))]
        count.rows = 0
        times = [(seconds_a_step(ours, one, options.steps), seconds_a_step(host, many, options.steps)) for _ in range(options.repeats)]
        a, b = (1000 * statistics.median(t) for t in zip(*times))
        evaluations = count.rows / options.steps / options.repeats
        say(row(n, f"{evaluations:.0f}", f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}", *(f"{m:.0f}" for m in memory)))


if __name__ == "__main__":
    main()
