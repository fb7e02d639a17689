"""Weights in 8 bits."""

import torch
from controlled_diffusion.training import instruct_pix2pix
from controlled_diffusion.training.demo import packing
from controlled_diffusion.training.demo.packing import restored

from checks import draw, refused
from demo.packing import packed, quantized


def test_every_weight_comes_back_to_half_a_step_of_its_channel():
    shapes = {"linear.weight": (5, 7), "conv.weight": (4, 3, 3, 3), "norm.bias": (6,), "count": ()}
    given = {k: draw(*shape, seed=i) for i, (k, shape) in enumerate(shapes.items())} | {"still.weight": torch.zeros(3, 2)}
    stored = quantized(given)
    assert all(stored[k].dtype == torch.int8 and stored[k].shape == v.shape for k, v in given.items())
    assert set(restored(stored)) == set(given)
    for name, found in restored(stored).items():
        step = (given[name].flatten(1).abs().amax(1) if given[name].ndim > 1 else given[name].abs().amax().reshape(1)) / 127
        apart = (found - given[name]).abs().reshape(len(step), -1).amax(1)
        assert (apart <= step * 0.5001).all(), name
    fine = {"w": torch.tensor([[1.0, -0.3], [1e-4, 0.7e-4]])}  # a small channel beside a large one
    assert torch.allclose(restored(quantized(fine))["w"], fine["w"], rtol=0.01, atol=0)


def test_weights_without_a_scale_stay_as_they_are():
    stored = quantized({"a.weight": draw(3, 3)}) | {"b.bias": draw(3, seed=1).half(), "ids": torch.arange(3)}
    found = restored(stored)
    assert set(found) == {"a.weight", "b.bias", "ids"} and all(found[k] is stored[k] for k in ("b.bias", "ids"))


def test_the_instruction_model_is_stored_as_differences():
    """8 bits of the weights themselves would be far coarser than of what training changed."""
    base = {"input_blocks.0.0.weight": draw(4, 2, 3, 3), "out.bias": draw(4, seed=1)}
    trained = {k: v + 0.01 * draw(*v.shape, seed=2) for k, v in base.items()}
    trained["input_blocks.0.0.weight"] = instruct_pix2pix.widened(trained["input_blocks.0.0.weight"], 4) + 0.01
    found = packing.unpacked(packed(trained, base), base)
    assert all(torch.allclose(found[k], trained[k], rtol=0, atol=3e-4) for k in trained)


def test_differences_know_the_denoiser_that_they_are_from():
    """By its tensors as stored; the other parts of the file may change."""
    base = quantized({f"{packing.DENOISER}out.bias": draw(4), "first_stage_model.bias": draw(4, seed=1)})
    about = {packing.BASE: packing.name_of(base)}
    packing.check_base(about, base | {"first_stage_model.bias": torch.zeros(4)}, "instruct", "model")
    other = quantized({f"{packing.DENOISER}out.bias": draw(4, seed=2)})
    names = packing.name_of(base), packing.name_of(other)
    refused("'instruct' .* the denoiser {}, but that of 'model' is {}".format(*names), packing.check_base, about, other, "instruct", "model")
    refused("denoiser that it does not name", packing.check_base, {}, base, "instruct", "model")
