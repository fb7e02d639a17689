"""What a LoRA with keyframes and ComfyUI's caches do to inversions and edits: `python . run tests/measures/evaluation_order.py`.

On the demo model, 10 steps. Keyframes: how well latents come back, in dB, under a LoRA that is on for the first half of the sampling.
Caches: how near a result is to that without the cache, in dB.
"""

import comfy.hooks
import torch
from comfy.hooks import HookKeyframe, HookKeyframeGroup
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from controlled_diffusion.nodes.as_flow import ModelSamplingAsFlow
from controlled_diffusion.nodes.diffedit import DiffEditMask

from harness.demo_images import SCHEDULER, Studio
from host import inversions, tiny
from measures.diffedit import change, images, prompts
from measures.script import head, options_of, row, say
from node_schema import defaults

SETTINGS = {"ddim": dict(fixed_point_iterations=10), "null-text": dict(cfg=4.0), "rf-inversion": dict(gamma=0.0, eta=0.0)}
GUIDED = ("null-text", "negative-prompt")


def decibels(a: torch.Tensor, b: torch.Tensor) -> str:
    """Of latents, whose spread counts as the brightest value."""
    error = (a.double() - b.double()).pow(2).mean().sqrt() / b.double().std()
    return f"{-20 * float(error.clamp_min(1e-6).log10()):.0f}"


class Case:
    """An image, its prompts, and what methods make of it."""

    def __init__(self, studio: Studio, steps: int):
        changes = [change(0)]
        self.studio, self.steps, self.negative = studio, steps, studio.prompt("")
        self.latent = {"samples": studio.vae.encode(images(changes))}
        self.source, self.target = prompts(studio, changes)

    def model(self, name: str):
        return ModelSamplingAsFlow.execute(self.studio.model).args[0] if name == "rf-inversion" else self.studio.model

    def back(self, name: str, model, source: list) -> torch.Tensor:
        more = SETTINGS.get(name, {}) | (dict(negative=self.negative) if name in GUIDED else {})
        found = inversions.invert(name, model, self.latent, source, steps=self.steps, scheduler=SCHEDULER, **more)[0]
        cfg = found.cfg if name in GUIDED else 1.0
        return inversions.sample(model, found, cfg, positive=source, negative=found.null or self.negative)

    def flow_edit(self, model, source: list) -> torch.Tensor:
        prompted = dict(positive=self.target, negative=self.negative, n_max=0.75)
        return inversions.flow_edit(model, self.latent, source, steps=self.steps, scheduler=SCHEDULER, **prompted)

    def heat(self, model, source: list) -> torch.Tensor:
        given = dict(model=model, source=source, target=self.target, image=self.latent)
        return DiffEditMask.execute(**defaults(DiffEditMask) | given).args[1]

    def keyed(self, source: list, *frames) -> list:
        """The source under a strong LoRA with keyframes (strength, start)."""
        hooks, group = comfy.hooks.create_hook_lora(tiny.lora(self.studio.model), 0.3, 0.0), HookKeyframeGroup()
        for frame in frames:
            group.add(HookKeyframe(*frame))
        hooks.set_keyframes_on_hooks(group)
        return comfy.hooks.set_hooks_for_conditioning(source, hooks)


def tried(run, *given) -> torch.Tensor | None:
    try:
        return run(*given)
    except TypeError:
        return None


@torch.inference_mode()
def main() -> None:
    options = options_of(__doc__, steps=10, only=dict(nargs="*", default=[*inversions.INVERTERS]))
    case = Case(Studio(), options.steps)
    original = case.latent["samples"]
    once, half = case.keyed(case.source, (1.0, 0.0)), case.keyed(case.source, (1.0, 0.0), (0.0, 0.5))
    say(head("reconstruction, dB", "LoRA without keyframes", "on for the first half"))
    for name in options.only:
        say(row(name, *(decibels(case.back(name, case.model(name), source), original) for source in (once, half))))
    say("\n" + head("against no cache, dB", "EasyCache", "LazyCache", "EasyCache 0.3, 0 to 1", "LazyCache 0.3, 0 to 1"))
    runs = {name: lambda model, source, name=name: case.back(name, model, source) for name in options.only}
    for name, run in {**runs, "FlowEdit": case.flow_edit, "DiffEdit Mask, heat": case.heat}.items():
        model = case.model(name)
        plain = run(model, case.source)
        cached = [
            node.execute(model, *knobs, False).args[0]
            for knobs in ((0.2, 0.15, 0.95), (0.3, 0.0, 1.0))
            for node in (EasyCacheNode, LazyCacheNode)
        ]
        found = [tried(run, other, case.source) for other in cached]
        say(row(name, *("TypeError" if other is None else decibels(other, plain) for other in found)))


if __name__ == "__main__":
    main()
