"""What Prompt-to-Prompt costs: `python . run tests/bench/prompt_to_prompt.py [--model sdxl] [--channels 160]`.

A batch of two, source and target, with the patch and without, on a UNet of SD1.5's or SDXL's shape with random weights and the paper's
windows: cross-attention is edited in 80 % of the steps and self-attention in 40 %. Beside it attention maps of all words, and the classic
way of Prompt-to-Prompt: every attention as an explicit softmax and every map stored. Time is CPU time where there is no GPU, so that other
work on the machine does not count; there, set COMFYUI_OPTIONS=--use-pytorch-cross-attention for the fused attention that a GPU has.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import comfy.samplers
import torch
from controlled_diffusion.attention.prompt_to_prompt import Edit, Settings, Window
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.host.attention.local_blend import control_of
from controlled_diffusion.nodes.host.attention.unet import SLOTS, unet_places
from controlled_diffusion.nodes.host.noise_levels import noise_scale
from torch.profiler import ProfilerActivity, profile

import explicit
from bench.cases import guider_of
from bench.shapes import SHAPES, clock, model_of, shortest
from harness.memory import peak
from host import tiny
from host.editing import patch
from measures.script import head, options_of, row, say

STEPS = {0.2: 0.4, 0.6: 0.4, 0.9: 0.2}  # percent of a step, and its share: both are edited, cross-attention is, nothing is
SOURCE, SWAP, INSERT = "a red cat on a mat", "a blue cat on a mat", "a very fluffy red cat on a mat"
LARGEST = 32**2  # queries of the largest self-attention that is taken over, as in the paper's code


@dataclass
class Classic:
    """The published way: all attentions explicit, all maps of up to 32 x 32 queries added up, edits in their place."""

    edit: Edit
    scale: object
    layers: int
    maps: list[torch.Tensor] = field(default_factory=list)
    step: list[torch.Tensor] = field(default_factory=list)

    def attend(self, kind: str, q, k, v, options: dict) -> torch.Tensor:
        p = explicit.probabilities(q, k, options["n_heads"])
        first, percent = 2 * options["cond_or_uncond"].index(0), self.scale.percent(float(options["sigmas"][0]))
        source, target = p[first], p[first + 1]
        if kind == "cross":
            p[first + 1] = explicit.edited(self.edit, percent, source, target)
        elif q.shape[1] <= LARGEST and percent in self.edit.settings.self:
            p[first + 1] = source
        self.keep(p[first : first + 2], q.shape[1])
        return explicit.attended(p, v)

    def keep(self, p: torch.Tensor, queries: int) -> None:
        self.step.append(p.clone() if queries <= LARGEST else p.new_zeros(0))
        if len(self.step) == self.layers:
            self.maps = [a + b for a, b in zip(self.maps, self.step)] if self.maps else self.step
            self.step = []


def classic(model, edit: Edit):
    patched, places = model.clone(), unet_places(model)
    state = Classic(edit, noise_scale(model), 2 * len(places))
    for place in places:
        for kind, slot in SLOTS.items():
            patched.set_model_patch_replace(partial(state.attend, kind), slot, *place.key)
    return patched


def random_features(conditioning: list, name: str, seed: int) -> list:
    """A conditioning with features of the model's own width; what else it holds stays."""
    features, extras = conditioning[0]
    [[rows, own]] = SHAPES[name].conditioning(seed, len(features))
    return [[rows, {**extras, **own}]]


CASES = {
    "swap": dict(targets=SWAP), "insert words": dict(targets=INSERT), "swap, local blend": dict(targets=SWAP, blend_words="*"),
    "insert words, local blend": dict(targets=INSERT, blend_words="*"),
}  # fmt: skip


def ways(model, side: int, name: str) -> dict[str, Callable]:
    """What is compared: a function of sigmas for each."""
    clip, made = tiny.clip(dtype=torch.float32), {}
    given = dict(source=SOURCE, latent={"samples": torch.zeros(1, 4, side, side)})
    for case, own in CASES.items():
        patched, positive, negative, _latent, _ = patch(model, clip, **given, **own)
        rest = random_features(positive, name, 0), random_features(negative, name, 1)
        made[case] = guider_of(patched, *rest)
        if case == "insert words":
            edit = Edit.from_alignment(control_of(patched).prompts.alignments[0], Settings(Window(0.0, 0.8), Window(0.0, 0.4)))
    captured, words = AttentionMapCapture.execute(model, clip, SOURCE, "", "all", 0.0, 1.0, 1).args
    made["maps of all words"] = guider_of(captured, random_features(words, name, 0), rest[1])
    made = {"no patch": guider_of(model, *rest), **made, "classic, insert words": guider_of(classic(model, edit), *rest)}
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2)).repeat(2, 1, 1, 1)

    def sampled(guider):
        euler, empty = comfy.samplers.sampler_object("euler"), torch.zeros_like(noise)
        return lambda sigmas: guider.sample(noise, empty, euler, sigmas, disable_pbar=True, seed=0)

    return {case: sampled(guider) for case, guider in made.items()}


def seconds(run: Callable, sigmas: torch.Tensor) -> float:
    start = clock()
    run(sigmas)
    return clock() - start


def measured(runs: dict[str, Callable], steps: dict[float, torch.Tensor], repeats: int) -> dict[str, tuple[dict[float, float], float, int]]:
    """Of every way the seconds of each step, the best of all repeats; its peak memory in MB, and torch's operations, in the first of the steps."""
    timed = {(case, percent): partial(seconds, run, sigmas) for percent, sigmas in steps.items() for case, run in runs.items()}
    best, first = shortest(timed, repeats), next(iter(steps.values()))
    times = {case: {percent: best[case, percent] for percent in steps} for case in runs}
    return {case: (times[case], peak(partial(run, first)), operations(partial(run, first))) for case, run in runs.items()}


def operations(run: Callable) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.name().startswith("aten::") for event in seen.profiler.kineto_results.events())


@torch.inference_mode()
def main() -> None:
    options = options_of(
        __doc__, model=dict(choices=["sd15", "sdxl"], default="sd15"), side=(64, "of the latent, in cells"),
        repeats=(2, "each time is the best of so many runs, taken in turn"),
        channels=(320, "of the first layer; fewer for a quick look"),
        only=dict(nargs="*", metavar="CASE", help="some of the cases; 'no patch' always"),
    )  # fmt: skip
    model = model_of(options.model, model_channels=options.channels)
    scale, runs = noise_scale(model), ways(model, options.side, options.model)
    runs = {case: run for case, run in runs.items() if options.only is None or case in ("no patch", *options.only)}
    steps = {percent: torch.tensor([scale.sigma(percent), 0.0]) for percent in STEPS}
    about = f"{options.model}, {options.channels} channels, latent {options.side} x {options.side}"
    say(head(about, "a step, all windows open", "a mean step", "ratio", "peak memory, MB", "ratio", "operations"))
    found = measured(runs, steps, options.repeats)
    mean = {case: sum(share * times[percent] for percent, share in STEPS.items()) for case, (times, *_) in found.items()}
    for case, (times, memory, count) in found.items():
        whole, most = mean[case] / mean["no patch"], memory / found["no patch"][1]
        say(row(case, f"{times[min(STEPS)]:.2f} s", f"{mean[case]:.2f} s", f"{whole:.2f}", f"{memory:.0f}", f"{most:.2f}", str(count)))


if __name__ == "__main__":
    main()
