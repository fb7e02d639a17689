"""What gradient terms cost beside plain CFG: `python . run tests/bench/image_guidance.py`.

Time of a step as a ratio to ComfyUI's CFG in the same run, and the most memory that torch held at a time above that before the run.
The last row is CFG whose report is switched off.
"""

import argparse
import time
from dataclasses import replace

import comfy.samplers
import torch
from controlled_diffusion.guidance.classifier import ClassifierGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.record import Record
from controlled_diffusion.nodes.host.guidance.classifier import CLASSIFIERS, read
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.image_guidance import ImageGuidanceChannel

from harness.demo_images import Studio
from harness.memory import peak


class Silent(Record):
    """Writes nothing down."""

    def note(self, *values):
        pass


class Unrecorded(MultiCFG):
    def begin_guidance(self, scale):
        return replace(super().begin_guidance(scale), record=Silent())


@torch.inference_mode()
def seconds(studio: Studio, guider, count: int, steps: int) -> float:
    """Seconds a step."""
    sigmas = comfy.samplers.calculate_sigmas(studio.model.get_model_object("model_sampling"), "normal", steps)
    noise = studio.noise(count, 0)
    start = time.perf_counter()
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    return (time.perf_counter() - start) / steps


@torch.inference_mode()
def image_channel(studio: Studio, kind: str, through: bool):
    reference = torch.rand(1, 128, 128, 3)
    return ImageGuidanceChannel.execute(studio.model, studio.vae, kind, through, 0, image=reference).args[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    options, studio = parser.parse_args(), Studio()
    classifier = read(CLASSIFIERS.shipped / "demo_model.safetensors")
    cases = {
        "CFG": (),
        "classifier": (Channel(None, 1.0, gradient=ClassifierGradient(classifier, classifier.choices("red"))),),
        "layout": image_channel(studio, "layout", False),
        "layout, through the denoiser": image_channel(studio, "layout", True),
    }
    primary, empty = Channel(studio.prompt("a red circle"), 4.0), studio.prompt("")
    guiders = {name: MultiCFG(studio.model, empty, [primary, *channels]) for name, channels in cases.items()}
    guiders["CFG, its report switched off"] = Unrecorded(studio.model, empty, [primary])
    best, memory = dict.fromkeys(guiders, float("inf")), {}
    for _ in range(options.repeats):
        for name, guider in guiders.items():
            best[name] = min(best[name], seconds(studio, guider, options.batch, options.steps))
    for name, guider in guiders.items():
        memory[name] = peak(lambda guider=guider: seconds(studio, guider, options.batch, 2))
    print(f"| on top of CFG, {options.batch} images of 128 x 128 | time of a step, ratio | peak memory, MB |\n|---|---|---|")
    for name in guiders:
        print(f"| {name} | {best[name] / best['CFG']:.2f} | {memory[name]:.0f} |")


if __name__ == "__main__":
    main()
