"""What gradient terms cost beside plain CFG: `python . run tests/bench/image_guidance.py`.

Time of a step as a ratio to ComfyUI's CFG in the same run, and the most memory that torch held at a time above that before the run.
The last row is CFG whose report is switched off.
"""

from dataclasses import replace
from functools import partial

import torch
from controlled_diffusion.guidance.classifier import ClassifierGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.guidance.record import Record
from controlled_diffusion.nodes.host.guidance.classifier import CLASSIFIERS, read
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.image_guidance import ImageGuidanceChannel

from bench.multi_cfg import seconds_a_step, shortest
from harness.demo_images import Studio
from harness.memory import peak
from measures.script import head, options_of, row, say


class Silent(Record):
    """Writes nothing down."""

    def note(self, *values):
        pass


class Unrecorded(MultiCFG):
    def begin_guidance(self, scale):
        return replace(super().begin_guidance(scale), record=Silent())


@torch.inference_mode()
def image_channel(studio: Studio, kind: str, through: bool):
    reference = torch.rand(1, 128, 128, 3)
    return ImageGuidanceChannel.execute(studio.model, studio.vae, kind, through, 0, image=reference).args[0]


def main() -> None:
    options, studio = options_of(__doc__, steps=5, repeats=3, batch=4), Studio()
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
    empty = torch.zeros(options.batch, 4, 16, 16)
    best = shortest({name: partial(seconds_a_step, guider, empty, options.steps) for name, guider in guiders.items()}, options.repeats)
    say(head(f"on top of CFG, {options.batch} images of 128 x 128", "time of a step, ratio", "peak memory, MB"))
    for name, guider in guiders.items():
        say(row(name, f"{best[name] / best['CFG']:.2f}", f"{peak(partial(seconds_a_step, guider, empty, 2)):.0f}"))


if __name__ == "__main__":
    main()
