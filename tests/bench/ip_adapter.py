"""What IP-Adapter costs beside plain CFG: `python . run tests/bench/ip_adapter.py`.

SD1.5's UNet and adapters of the published shapes, all with random weights. Time of a step as a ratio to the same model without the
patch, in turn in the same run, and the most memory that torch held at a time above that before the run.
"""

from functools import partial

import comfy.samplers
import torch
from controlled_diffusion.attention.ip_adapter import image_prompt, recognize
from controlled_diffusion.nodes.host.attention import ip_adapter

from adapters import SD15, published
from bench.multi_cfg import guider_of, seconds_a_step, shortest
from bench.shapes import model_of
from harness.memory import peak
from measures.script import head, options_of, row, say

ENCODED = {"base": (1024,), "plus": (257, 1280)}  # what the encoder gives of an image
PLAIN = "without"


def patched(model, kind: str, **settings):
    """The model under a patch of an image that is noise."""
    shape = dict(width=768) if kind == "plus" else {}
    adapter = recognize(published(kind, ENCODED[kind][-1], SD15["text"], SD15["widths"], **shape), kind)
    prompt = image_prompt(adapter, torch.randn(1, *ENCODED[kind]), torch.zeros(1, *ENCODED[kind]))
    return ip_adapter.patch_for(model, adapter, prompt, **settings).install(model)


def guided(model) -> comfy.samplers.CFGGuider:
    return guider_of(model, *([[torch.randn(1, 77, SD15["text"]), {}]] for _ in range(2)), cfg=7.0)


@torch.inference_mode()
def main() -> None:
    repeats = (2, "each time is the shortest of this many runs, taken in turn")
    options, model = options_of(__doc__, side=(32, "of the latent"), steps=1, repeats=repeats), model_of("sd15")
    models = {
        PLAIN: model,
        "base, weight 0": patched(model, "base", weight=0.0),
        "base (4 tokens)": patched(model, "base"),
        "base, a mask": patched(model, "base", mask=torch.rand(1, 64, 64)),
        "base, twice": patched(patched(model, "base"), "base"),
        "plus (16 tokens)": patched(model, "plus"),
    }
    guiders, empty = {name: guided(m) for name, m in models.items()}, torch.zeros(1, 4, options.side, options.side)
    memory = {name: peak(partial(seconds_a_step, guider, empty, 1)) for name, guider in guiders.items()}
    best = shortest({name: partial(seconds_a_step, guider, empty, options.steps) for name, guider in guiders.items()}, options.repeats)
    say(head(f"IP-Adapter, SD1.5, latent {options.side} x {options.side}", "time of a step, ratio", "peak memory, MB", "ratio"))
    for name in guiders:
        say(row(name, f"{best[name] / best[PLAIN]:.3f}", f"{memory[name]:.0f}", f"{memory[name] / memory[PLAIN]:.3f}"))


if __name__ == "__main__":
    main()
