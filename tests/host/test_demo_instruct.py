"""The demo instruction model is ComfyUI's own InstructPix2Pix model and follows instructions."""

import comfy.model_base
import pytest
import torch
from controlled_diffusion.nodes.demo import DemoInstructModelLoader
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo import packing
from controlled_diffusion.training.demo.files import FILES
from safetensors.torch import load_file, save_file

from host.training import check_deep_copy
from measures import instruct_pix2pix as measure

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def editor():
    return measure.Editor()


def test_it_is_comfyuis_model_with_the_demo_text_tower_and_vae():
    model, clip, vae = DemoInstructModelLoader.execute("shapes").args
    assert isinstance(model.model, comfy.model_base.SD15_instructpix2pix)
    assert model.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 8
    plain, other_clip, other_vae = demo.load(FILES["shapes"].model)
    assert model.model.latent_format.latent_rgb_factors == plain.model.latent_format.latent_rgb_factors
    assert torch.equal(*(c.encode_from_tokens(c.tokenize("make it blue")) for c in (clip, other_clip)))
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.decode(latent), other_vae.decode(latent))


def test_another_base_is_refused(tmp_path):
    stored, other = load_file(FILES["shapes"].model), tmp_path / "other.safetensors"
    name = next(k for k in stored if k.startswith(packing.DENOISER) and stored[k].ndim > 1)
    save_file(stored | {name: -stored[name]}, other)
    with pytest.raises(ValueError, match=r"instruct\.safetensors' holds differences from the denoiser \w+, but that of 'other\.safetensors' is \w+\. Give"):
        demo.load_instruct(FILES["shapes"].instruct, other)


def test_a_deep_copy_owns_its_weights():
    check_deep_copy(demo.load_instruct(FILES["shapes"].instruct, FILES["shapes"].model), lambda network: network.input_blocks[0][0].weight)


@pytest.mark.parametrize("kind", measure.SHAPES.kinds)
def test_it_follows_the_instruction_and_leaves_the_rest(editor, kind):
    asked = measure.edits(4, kind)
    found = measure.judged(editor, asked)
    assert {len(e.before.things) for e in asked} == {1, 2}
    assert found.success.mean() >= 0.7 and found.kept.mean() >= 35


def test_without_an_instruction_it_keeps_the_image(editor):
    asked = measure.edits(3, "color")
    found = measure.judged(editor, asked, text=0.0, image=1.0)
    assert found.success.max() == 0 and found.kept.min() >= 30
