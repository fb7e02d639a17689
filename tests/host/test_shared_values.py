"""Values of the source's attention in an edit, through Inversion Sampler in the real ComfyUI."""

import math

import pytest
import torch

from checks import refused
from compare import assert_close
from host import tiny_dits
from host.inversions import EDIT, SOURCE, TARGET, apart, image, invert, sample, smooth
from host.sampling import Count

pytestmark = pytest.mark.usefixtures("inference_mode")
ON = dict(branches="direct", align=True)


def inverted(model, latent, source):
    return invert("ddim", model, latent, source, steps=2)[0]


def test_a_unets_values_are_the_sources():
    """As ComfyUI's own patch gives them, by what they are made of; the source stays, and so do the evaluations."""
    model, latent = Count(smooth("eps")), image(2)
    inversion, own = invert("ddim", model.model, latent, steps=4)[0], model.model.clone()

    def values(q, k, v, options):
        rows = len(v) // len(options["cond_or_uncond"])
        for number, index in enumerate(options["cond_or_uncond"]):
            if index == 0:
                first = number * rows
                v = torch.cat([v[: first + 2], v[first : first + 2], v[first + 4 :]])
        return q, k, v

    own.set_model_attn1_patch(values)
    before = model.rows
    found = sample(model.model, inversion, 4.0, value_end=1.0, **ON, **EDIT)
    assert model.rows - before == 4 * 8
    assert_close(found, sample(own, inversion, 4.0, **ON, **EDIT), atol=1e-4, rtol=1e-4)
    plain, part = (sample(model.model, inversion, 4.0, value_end=end, **ON, **EDIT) for end in (0.0, 0.5))
    assert torch.equal(found[:2], plain[:2]) and 1e-4 < apart(part, plain) < apart(found, plain)


@pytest.mark.parametrize("name", tiny_dits.there(dict.fromkeys(("flux", "sd3", "hunyuan_video", "wan"), tiny_dits.DITS["flux"])))
def test_a_dits_image_has_the_sources_values(name):
    """And the text its own: as by hand in ComfyUI's override. Of videos too."""
    model, (source, target) = tiny_dits.dit(name), (tiny_dits.text(name, i) for i in (1, 2))
    latent = torch.randn(tiny_dits.empty(name).shape, generator=torch.Generator().manual_seed(0))
    inversion, tokens = inverted(model, {"samples": latent}, source), math.prod(latent.shape[2:]) // 4

    def values(function, q, k, v, *args, **options):
        axis = 2 if options.get("skip_reshape") else 1
        if q.shape[axis] == k.shape[axis] >= tokens + (name != "wan"):  # not where the image attends to itself beside the text, as in SD3.5
            v = v.clone()
            image = axis, v.shape[axis] - tokens, tokens
            v[1:].narrow(*image).copy_(v[:1].narrow(*image))
        return function(q, k, v, *args, **options)

    own = model.clone()
    own.model_options["transformer_options"]["optimized_attention_override"] = values
    found, expected, plain = (
        sample(used, inversion, 1.0, positive=target, value_end=end, **ON) for used, end in ((model, 1.0), (own, 0.0), (model, 0.0))
    )
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert apart(found[1:], plain[1:]) > 1e-4 and torch.equal(found[:1], plain[:1])


def test_without_a_source_in_the_batch_it_is_not_done():
    model = smooth("eps")
    inversion = inverted(model, image(), SOURCE)
    alone, asked = (sample(model, inversion, 1.0, value_end=end, positive=TARGET) for end in (0.0, 0.3))
    assert torch.equal(alone, asked)
    longer = [[torch.cat([TARGET[0][0]] * 2, 1), TARGET[0][1]]]
    refused("differ in number of tokens, and each is predicted separately", sample, model, inversion, value_end=0.3, positive=longer, **ON)
