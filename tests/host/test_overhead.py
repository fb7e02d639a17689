"""What patches ask of torch in a step, which a GPU feels: no layer waits for the GPU, and a step only where the weights depend on its sigma. How
many operations a layer asks for is written down here."""

from collections import Counter

import comfy.ldm.flux.math
import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from controlled_diffusion.nodes.host.noise_levels import noise_scale

from bench.cases import Cases
from bench.shapes import Shape
from harness.operations import LayersWithoutValues, Operations
from host import editing, tiny_dits, tiny_text
from host.tiny import CONTEXT, unet

SHAPE = Shape(*[None] * 3, width=CONTEXT, pooled=CONTEXT, side=8)
FEW, MORE = dict(transformer_depth=[1, 1]), dict(transformer_depth=[2, 2], transformer_depth_output=[2] * 4, transformer_depth_middle=2)
READ_SIGMA = {  # once a step, because something depends on it; all else reads nothing
    "Multi CFG, a schedule", "Multi CFG, 3 channels, schedules, masks, APG", "image guidance, layout", "image guidance, layout, through the denoiser",
    "IP-Adapter, a schedule", "Attention Map Capture, 2 words", "Prompt-to-Prompt, swap", "Prompt-to-Prompt, insert words",
    "Prompt-to-Prompt, insert words, local blend", "Word Weights", "Word Regions, a channel",
}  # fmt: skip
# Which read what is made on the CPU, and wait for nothing; the last two are ComfyUI's schedulers, by which inverters choose their sigmas.
ON_THE_CPU = ("sampling.py", "prompt_to_prompt.py", "model_sampling.py", "samplers.py")
pytestmark = pytest.mark.usefixtures("inference_mode")


ALL, SMALL, LARGE = 7, 4, 3  # layers that MORE has beyond FEW: those of half the latent's side, whose self-attention is shared, and the others
OF_ATTENTION = {"baddbmm", "softmax", "bmm", "scaled_dot_product_attention"}
MORE_LAYERS = {  # (operations, attentions) that these layers ask for beyond ComfyUI's
    "Attention Map Capture, 2 words": (2 * ALL, ALL),
    "Prompt-to-Prompt, swap": (2 * ALL + 2 * SMALL, 0),
    "Prompt-to-Prompt, insert words": (5 * ALL + 2 * SMALL, ALL),
    "Prompt-to-Prompt, insert words, local blend": (5 * ALL + 2 * SMALL + 5 * LARGE, ALL + LARGE),
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


@pytest.fixture
def fused(monkeypatch):
    """ComfyUI's attention as on a GPU; its choice for a CPU asks how much memory is free."""
    for module in (host_attention, comfy.ldm.flux.math):
        monkeypatch.setattr(module, "optimized_attention", host_attention.attention_pytorch)


def without_values(model) -> LayersWithoutValues:
    """What a model, once patched, samples within."""
    layers = LayersWithoutValues(model)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "without values", layers.evaluate)
    comfy.model_management.load_models_gpu([model])
    return layers


@pytest.mark.parametrize("kind", ["adapters", "attention"])
def test_no_layer_of_a_unet_needs_a_value(kind, fused):
    model = unet("eps", **FEW)
    layers, sigmas = without_values(model), torch.tensor([noise_scale(model).sigma(0.3), 0.0])
    cases = [case for case in Cases(model, SHAPE, SHAPE.side).of((kind,)).values() if case.base]
    with layers:
        for case in cases:
            case.run(sigmas)


def test_no_layer_of_a_dit_needs_a_value(fused):
    model = tiny_dits.dit("flux")
    layers, clip = without_values(model), tiny_dits.Clip(tiny_text.clip("flux"), "flux")
    patched, *rest = editing.patch(model, clip, "a very blue circle", "a red circle", blend_words="*", **editing.ALL)
    with layers:
        editing.sample(patched, *rest, cfg=1.0, scheduler="simple", steps=2)


READINGS = [
    lambda x: x.max().item(), lambda x: float(x[0]), lambda x: bool(x[0] > 0), lambda x: torch.equal(x, x), lambda x: x.tolist(), lambda x: x.nonzero(),
    lambda x: x[x > 0],
]  # fmt: skip


@pytest.mark.parametrize("reading", [*READINGS, lambda x: x.cpu(), lambda x: x.to("cpu")])
def test_a_layer_that_reads_a_value_fails(reading, fused):
    model = unet("eps", **FEW)
    layers = without_values(model)
    model.set_model_attn2_output_patch(lambda x, options: (reading(x[0, 0]), x)[1])
    with layers, pytest.raises((RuntimeError, NotImplementedError)):
        Cases(model, SHAPE, SHAPE.side).rows(1).run(torch.tensor([1.0, 0.0]))


def test_every_reading_of_a_value_counts():
    x = torch.ones(2)
    for reading in READINGS:
        with Operations() as found:
            reading(x)
        assert len(found.reads) == 1
    with Operations() as found:
        x.to(x), x.view(1, 2), x[None], x + 1, x.add_(1)
    assert (found.launched, found.reads) == (2, [])
