"""What patches ask of torch in a step, which a GPU feels: no layer waits for the GPU, and a step only where the weights depend on its sigma."""

from collections import Counter

import pytest
import torch
from controlled_diffusion.nodes.host.noise_levels import noise_scale

from bench.cases import Cases
from bench.shapes import Shape
from harness.operations import Operations
from host.tiny import CONTEXT, unet

SHAPE = Shape(*[None] * 3, width=CONTEXT, pooled=CONTEXT, side=8)
FEW, MORE = dict(transformer_depth=[1, 1]), dict(transformer_depth=[2, 2], transformer_depth_output=[2] * 4, transformer_depth_middle=2)
READ_SIGMA = {  # once a step, because something depends on it; all else reads nothing
    "Multi CFG, a schedule", "Multi CFG, 3 channels, schedules, masks, APG", "image guidance, layout", "image guidance, layout, through the denoiser",
    "IP-Adapter, a schedule", "Attention Map Capture, 2 words", "Prompt-to-Prompt, swap", "Prompt-to-Prompt, insert words",
    "Prompt-to-Prompt, insert words, local blend",
}  # fmt: skip
# Which read what is made on the CPU, and wait for nothing; the last two are ComfyUI's schedulers, by which inverters choose their sigmas.
ON_THE_CPU = ("sampling.py", "prompt_to_prompt.py", "model_sampling.py", "samplers.py")
pytestmark = pytest.mark.usefixtures("inference_mode")


def reads_of_a_step(kind: str, **config) -> dict[str, list[str]]:
    """Of every case the values that a step of it reads."""
    model = unet("eps", **config)
    scale = noise_scale(model)
    sigmas = [scale.sigma(0.1 * (i + 1)) for i in range(3)]

    def reads(run, steps: int) -> Counter:
        run(torch.tensor([*sigmas[:steps], 0.0]))
        with Operations() as found:
            run(torch.tensor([*sigmas[:steps], 0.0]))
        return Counter(read for read in found.reads if not any(f" {name}:" in read for name in ON_THE_CPU))

    cases = Cases(model, SHAPE, SHAPE.side).of((kind,))
    return {name: sorted((reads(case.run, 3) - reads(case.run, 2)).elements()) for name, case in cases.items()}


@pytest.mark.parametrize("kind", ["guidance", "gradients", "adapters", "attention", "inversions"])
def test_a_step_waits_for_the_gpu_no_more_than_it_must(kind):
    few = reads_of_a_step(kind, **FEW)
    assert {name: found for name, found in few.items() if len(found) != (name in READ_SIGMA)} == {}
    if kind in ("adapters", "attention"):
        assert reads_of_a_step(kind, **MORE) == few


def test_every_reading_of_a_value_counts():
    x = torch.ones(2)
    readings = [lambda: x.max().item(), lambda: float(x[0]), lambda: bool(x[0] > 0), lambda: torch.equal(x, x), x.tolist, x.nonzero, lambda: x[x > 0]]
    for reading in readings:
        with Operations() as found:
            reading()
        assert len(found.reads) == 1
    with Operations() as found:
        x.to(x), x.view(1, 2), x[None], x + 1, x.add_(1)
    assert (found.launched, found.reads) == (2, [])
