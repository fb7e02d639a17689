"""What each patch of the pack costs beside none: `python . run tests/bench/overhead.py [--model sdxl] [--full] [--only attention]`.

A network with the layers of SD1.5, SDXL or Flux and random weights, at a tenth of its width or less and with few heads on a latent of 4 cells
unless `--full`: then an operation costs about what launching it costs, and what is left is the work of Python. All cases run in turn. Without a
GPU a step is the time from its first evaluation of the network to that of the next, in CPU time of one thread, and the longest of the shortest
fifth of all counts, so that other work on the machine counts little. On a GPU, which goes on while Python does, it is the share of a longer run
beyond one of two steps, and the shortest runs count. Operations are launches on a GPU, waits are values that Python reads from there, calls are those of Python's and built-in functions: all three are
the same on a busy machine. A case that fails leaves the others. Without a GPU set COMFYUI_OPTIONS=--use-pytorch-cross-attention for the
attention that a GPU has.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from comfy.patcher_extension import WrappersMP
from controlled_diffusion.nodes.host.noise_levels import NoiseScale, noise_scale

from bench.cases import Case, Cases
from bench.shapes import NARROW, SHAPES, clock, model_of, shortest
from harness.memory import peak
from harness.operations import Operations, calls
from measures.script import head, options_of, row, say

KINDS = {"sd15": ("guidance", "gradients", "adapters", "attention", "classic", "inversions"), "flux": ("guidance",)}
SHORT = 2  # steps of the shorter run


class Stopwatch:
    """When each evaluation of the network began, as a wrapper around it."""

    def __init__(self):
        self.began: list[float] = []

    def __call__(self, executor, *args, **kwargs):
        self.began.append(time.process_time())
        return executor(*args, **kwargs)

    def steps(self, run: Callable, sigmas: torch.Tensor) -> list[float]:
        """Seconds of the steps of a run but the first."""
        self.began.clear()
        run(sigmas)
        each = len(self.began) // (len(sigmas) - 1)
        return [later - earlier for earlier, later in pairwise(self.began[each::each])]


def cases_of(o: argparse.Namespace, watch: Stopwatch) -> tuple[dict[str, Case], NoiseScale]:
    """The cases of a model at its own width or narrow, and its noise levels."""
    dtype = o.dtype or (None if o.full else "float32")
    model = model_of(o.model, dtype and getattr(torch, dtype), **({} if o.full else NARROW[o.model]))
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "stopwatch", watch)
    cases = Cases(model, SHAPES[o.model], o.side or (SHAPES[o.model].side if o.full else 4), tuple(o.channels))
    kinds = (k for k in KINDS.get(o.model, KINDS["sd15"]) if o.only is None or k in o.only)
    return cases.of(tuple(kinds)), noise_scale(model)


def seconds(run: Callable, sigmas: torch.Tensor) -> float:
    start = clock()
    run(sigmas)
    return clock() - start


def counted(run: Callable, sigmas: torch.Tensor) -> tuple[int, int, int]:
    """(operations, waits, calls of functions) of a run."""
    with Operations() as found:
        run(sigmas)
    return found.launched, len(found.reads), calls(partial(run, sigmas))


def times_of(cases: dict[str, Case], watch: Stopwatch, short: torch.Tensor, long: torch.Tensor, repeats: int) -> dict[str, float]:
    """Seconds of a step of every case."""
    if torch.cuda.is_available():
        runs = {(name, len(sigmas)): partial(seconds, case.run, sigmas) for name, case in cases.items() for sigmas in (short, long)}
        found = shortest(runs, repeats)
        return {name: share(found[name, len(short)], found[name, len(long)], len(long) - 1) for name in cases}
    rounds = [{name: watch.steps(case.run, long) for name, case in cases.items()} for _ in range(repeats)]
    steps = {name: sorted(step for each in rounds for step in each[name]) for name in cases}
    return {name: found[len(found) // 5] for name, found in steps.items()}


def share(short: float, long: float, steps: int) -> float:
    """A step's share, from runs of SHORT and of so many steps."""
    return (long - short) / (steps - SHORT)


def first_look(case: Case, short: torch.Tensor, long: torch.Tensor) -> tuple[float, list[tuple]]:
    """(peak memory, counts of both runs) of a case, which then is warm."""
    case.run(short)
    case.run(long)
    return peak(partial(case.run, short)), list(zip(counted(case.run, short), counted(case.run, long)))


def told(name: str, case: Case, times: dict, counts: dict, memory: dict, steps: int) -> str:
    """A line of the table."""
    base = case.base or name
    step, plain = 1000 * times[name], 1000 * times[base] * (case.times if case.base else 1)
    launched, waits, called = (share(*pair, steps) - case.times * share(*other, steps) for pair, other in zip(counts[name], counts[base]))
    added = (f"{step - plain:+.1f}", f"{launched:+.0f}", f"{waits:+.1f}", f"{called:+.0f}") if case.base else [""] * 4
    return row(name, f"{step:.1f}", f"{step / plain:.2f}", *added, f"{memory[name]:.0f}", f"{memory[name] / memory[base]:.2f}")


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    o = options_of(
        __doc__, arguments, model=dict(choices=list(SHAPES), default="sd15"), full=dict(action="store_true", help="at its own width"),
        dtype=dict(choices=["float32", "float16", "bfloat16"], help="default: of the full model half precision on a GPU, else float32"),
        side=dict(type=int, help="of the latent, in cells; default: 4, or what the full model is made for"),
        only=dict(nargs="*", metavar="KIND", help=f"some of {', '.join(KINDS['sd15'])}"),
        channels=dict(type=int, nargs="*", default=[1, 2, 3]), steps=(8, "of the longer run"), repeats=(7, "rounds, taken in turn"),
        start=(0.05, "percent of the first step"), end=(0.35, "percent of the last; all that edits attention acts until 0.4"),
    )  # fmt: skip
    torch.set_num_threads(1)
    watch = Stopwatch()
    cases, scale = cases_of(o, watch)
    percents = [o.start + (o.end - o.start) * i / (o.steps - 1) for i in range(o.steps)]
    short, long = (torch.tensor([*map(scale.sigma, chosen), 0.0]) for chosen in (percents[:SHORT], percents))
    counts, memory = {}, {}
    for name, case in list(cases.items()):
        try:
            memory[name], counts[name] = first_look(case, short, long)
        except Exception as error:  # the others are worth their figures
            say(f"{name}: failed, {type(error).__name__}: {str(error).splitlines()[0]}")
            cases = {other: own for other, own in cases.items() if name not in (other, own.base)}
    times = times_of(cases, watch, short, long, o.repeats)
    titles = "ms a step", "ratio", "added ms", "operations", "waits", "calls", "peak memory, MB", "ratio"
    say(head(f"{o.model}{'' if o.full else ', narrow'}", *titles))
    for name, case in cases.items():
        say(told(name, case, times, counts, memory, o.steps))


if __name__ == "__main__":
    main()
