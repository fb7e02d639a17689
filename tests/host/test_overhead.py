"""What patches ask of torch in a step, which a GPU feels: no layer waits for the GPU, and a step only where the weights depend on its sigma. How
many operations a layer asks for is written down here."""

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
    "Prompt-to-Prompt, insert words, local blend", "Word Weights", "Negative Attention",
}  # fmt: skip
# Which read what is made on the CPU, and wait for nothing; the last two are ComfyUI's schedulers, by which inverters choose their sigmas.
ON_THE_CPU = ("sampling.py", "prompt_to_prompt.py", "model_sampling.py", "samplers.py")
pytestmark = pytest.mark.usefixtures("inference_mode")


ALL, SMALL, LARGE = 7, 4, 3  # layers that MORE has beyond FEW: those of half the latent's side, whose self-attention is shared, and the others
OF_ATTENTION = {"baddbmm", "softmax", "bmm", "scaled_dot_product_attention"}
MORE_LAYERS = {  # (operations, attentions) that these layers ask for beyond ComfyUI's
    "Attention Map Capture, 2 words": (2 * ALL, ALL),
    "Prompt-to-Prompt, swap": (2 * ALL + 2 * SMALL, 0),
    "Prompt-to-Prompt, insert words": (6 * ALL + 2 * SMALL, ALL),
    "Prompt-to-Prompt, insert words, local blend": (6 * ALL + 2 * SMALL + 5 * LARGE, ALL + LARGE),
    "Word Weights": (ALL, 0),
    "Negative Attention": (10 * ALL, ALL),
    "IP-Adapter, base (4 tokens)": (ALL, ALL),
    "IP-Adapter, a mask": (2 * ALL, ALL),
    "IP-Adapter, twice": (2 * ALL, 2 * ALL),
}


def asked_in_a_step(kind: str, **config) -> dict[str, tuple[list[str], Counter]]:
    """Of every case the values that a step of it reads, and its operations beyond those of what it is compared with."""
    model = unet("eps", **config)
    scale = noise_scale(model)
    sigmas = [scale.sigma(0.1 * (i + 1)) for i in range(3)]

    def asked(run, steps: int) -> tuple[Counter, Counter]:
        run(torch.tensor([*sigmas[:steps], 0.0]))
        with Operations() as found:
            run(torch.tensor([*sigmas[:steps], 0.0]))
        return Counter(read for read in found.reads if not any(f" {name}:" in read for name in ON_THE_CPU)), found.names

    cases, reads, names = Cases(model, SHAPE, SHAPE.side).of((kind,)), {}, {}
    for name, case in cases.items():
        (own, names[name]), (before, begun) = asked(case.run, 3), asked(case.run, 2)
        reads[name] = sorted((own - before).elements())
        names[name].subtract(begun)
    return {name: (reads[name], without(names[name], names.get(case.base, Counter()))) for name, case in cases.items()}


def without(names: Counter, others: Counter) -> Counter:
    left = Counter(names)
    left.subtract(others)
    return left


@pytest.mark.parametrize("kind", ["guidance", "gradients", "adapters", "attention", "inversions"])
def test_a_step_waits_for_the_gpu_no_more_than_it_must(kind):
    few = asked_in_a_step(kind, **FEW)
    assert {name: reads for name, (reads, _) in few.items() if len(reads) != (name in READ_SIGMA)} == {}
    if kind in ("adapters", "attention"):
        more = asked_in_a_step(kind, **MORE)
        assert {name: reads for name, (reads, _) in more.items()} == {name: reads for name, (reads, _) in few.items()}
        names = {name: without(more[name][1], few[name][1]) for name in MORE_LAYERS if name in more}
        calls = {name: found["softmax"] + found["scaled_dot_product_attention"] for name, found in names.items()}
        own = {name: sum(count for kind, count in found.items() if kind not in OF_ATTENTION) for name, found in names.items()}
        assert {name: (own[name], calls[name]) for name in names} == {name: MORE_LAYERS[name] for name in names}


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
