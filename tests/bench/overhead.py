"""What each patch of the pack costs beside none: `python . run tests/bench/overhead.py [--model sdxl] [--full] [--only attention]`.

A network with the layers of SD1.5, SDXL or Flux and random weights, at a tenth of its width and with one head on a latent of 4 cells unless
`--full`: then an operation costs about what launching it costs, and what is left is the work of Python. All cases run in turn; of every case the
shortest run counts, in CPU time on one thread where there is no GPU, so that other work on the machine counts little. A step's share is that of a
longer run beyond one of two steps, the rest is the run's. Operations are launches on a GPU, waits are values that Python reads from there, calls
are those of Python's and built-in functions: all three are the same on a busy machine. A case that fails leaves the others. Without a GPU set
COMFYUI_OPTIONS=--use-pytorch-cross-attention for the attention that a GPU has.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from controlled_diffusion.nodes.host.noise_levels import NoiseScale, noise_scale

from bench.cases import Case, Cases
from bench.shapes import SHAPES, TENTH, clock, model_of, shortest
from harness.memory import peak
from harness.operations import Operations, calls
from measures.script import head, options_of, row, say

KINDS = {"sd15": ("guidance", "gradients", "adapters", "attention", "classic", "inversions"), "flux": ("guidance",)}
SHORT = 2  # steps of the shorter run


def cases_of(o: argparse.Namespace) -> tuple[dict[str, Case], NoiseScale]:
    """The cases of a model at its own or a tenth of its width, and its noise levels."""
    model = model_of(o.model, o.dtype and getattr(torch, o.dtype), **({} if o.full else TENTH[o.model]))
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


def split(short: float, long: float, steps: int) -> tuple[float, float]:
    """(of a step, of the rest of a run), from runs of SHORT and of so many steps."""
    step = (long - short) / (steps - SHORT)
    return step, short - SHORT * step


def first_look(case: Case, short: torch.Tensor, long: torch.Tensor) -> tuple[float, list[tuple]]:
    """(peak memory, counts of both runs) of a case, which then is warm."""
    case.run(short)
    case.run(long)
    return peak(partial(case.run, short)), list(zip(counted(case.run, short), counted(case.run, long)))


def told(name: str, case: Case, times: dict, counts: dict, memory: dict, steps: int) -> str:
    """A line of the table."""
    base = case.base or name
    (step, run), (plain, rest) = (split(times[n, SHORT], times[n, steps], steps) for n in (name, base))
    more, once = 1000 * (step - case.times * plain), 1000 * (run - case.times * rest)
    launched, waits, called = (split(*pair, steps)[0] - case.times * split(*other, steps)[0] for pair, other in zip(counts[name], counts[base]))
    added = (f"{more:+.1f}", f"{once:+.1f}", f"{launched:+.0f}", f"{waits:+.1f}", f"{called:+.0f}") if case.base else [""] * 5
    return row(name, f"{1000 * step:.1f}", f"{step / case.times / plain:.2f}", *added, f"{memory[name]:.0f}", f"{memory[name] / memory[base]:.2f}")


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    o = options_of(
        __doc__, arguments, model=dict(choices=list(SHAPES), default="sd15"), full=dict(action="store_true", help="at its own width"),
        dtype=dict(choices=["float32", "float16", "bfloat16"], help="default: half precision on a GPU"),
        side=dict(type=int, help="of the latent, in cells; default: 4, or what the full model is made for"),
        only=dict(nargs="*", metavar="KIND", help=f"some of {', '.join(KINDS['sd15'])}"),
        channels=dict(type=int, nargs="*", default=[1, 2, 3]), steps=(8, "of the longer run"), repeats=(7, "rounds, taken in turn"),
        start=(0.05, "percent of the first step"), end=(0.35, "percent of the last; all that edits attention acts until 0.4"),
    )  # fmt: skip
    torch.set_num_threads(1)
    cases, scale = cases_of(o)
    percents = [o.start + (o.end - o.start) * i / (o.steps - 1) for i in range(o.steps)]
    short, long = (torch.tensor([*map(scale.sigma, chosen), 0.0]) for chosen in (percents[:SHORT], percents))
    counts, memory = {}, {}
    for name, case in list(cases.items()):
        try:
            memory[name], counts[name] = first_look(case, short, long)
        except Exception as error:  # the others are worth their figures
            say(f"{name}: failed, {type(error).__name__}: {str(error).splitlines()[0]}")
            cases = {other: own for other, own in cases.items() if name not in (other, own.base)}
    runs = {(name, len(sigmas) - 1): partial(seconds, case.run, sigmas) for name, case in cases.items() for sigmas in (short, long)}
    times = shortest(runs, o.repeats)
    titles = "ms a step", "ratio", "added ms", "added ms a run", "operations", "waits", "calls", "peak memory, MB", "ratio"
    say(head(f"{o.model}{'' if o.full else ', a tenth of its width'}", *titles))
    for name, case in cases.items():
        say(told(name, case, times, counts, memory, o.steps))


if __name__ == "__main__":
    main()
