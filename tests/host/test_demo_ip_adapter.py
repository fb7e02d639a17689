"""What ComfyUI does with the files of the demo model's image encoder and IP-Adapter."""

import comfy.clip_vision
import pytest
import torch
from controlled_diffusion.nodes.demo import DemoImageEncoderLoader
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.demo.packing import restored
from safetensors.torch import load_file

SHIPPED = FILES["shapes"].adapter


@pytest.mark.skipif(not SHIPPED.exists(), reason="the demo model's adapter has not been trained yet")
@pytest.mark.usefixtures("inference_mode")
def test_shipped_files_are_small_and_fit_the_demo_model():
    assert SHIPPED.stat().st_size + FILES["shapes"].encoder.stat().st_size <= 0.6e6 and SHIPPED.name in ip_adapter.ADAPTERS.names()
    encoder = DemoImageEncoderLoader.execute("shapes").args[0]
    assert isinstance(encoder, comfy.clip_vision.ClipVisionModel)
    assert set(restored(load_file(FILES["shapes"].encoder))) == set(encoder.get_sd())
    adapter = ip_adapter.load(SHIPPED.name)
    prompt = ip_adapter.prompt_of(adapter, encoder, torch.rand(1, 128, 128, 3))
    assert ip_adapter.patch_for(demo.load(FILES["shapes"].model)[0], adapter, prompt).layers
