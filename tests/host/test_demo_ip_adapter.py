"""What ComfyUI does with the files of the demo model's image encoder and IP-Adapter."""

import comfy.clip_vision
import pytest
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.demo import DEMO_ENCODER
from controlled_diffusion.nodes.ip_adapter import DemoImageEncoderLoader
from controlled_diffusion.training.demo.packing import restored
from safetensors.torch import load_file

SHIPPED = ip_adapter.ADAPTERS.shipped / "demo_model.safetensors"


@pytest.mark.skipif(not SHIPPED.exists(), reason="the demo model's adapter has not been trained yet")
@pytest.mark.usefixtures("inference_mode")
def test_shipped_files_are_small_and_fit_the_demo_model():
    assert SHIPPED.stat().st_size + DEMO_ENCODER.stat().st_size <= 0.6e6 and SHIPPED.name in ip_adapter.ADAPTERS.names()
    encoder = DemoImageEncoderLoader.execute().args[0]
    assert isinstance(encoder, comfy.clip_vision.ClipVisionModel)
    assert set(restored(load_file(DEMO_ENCODER))) == set(encoder.get_sd())
    adapter = ip_adapter.load(SHIPPED.name)
    prompt = ip_adapter.prompt_of(adapter, encoder, torch.rand(1, 128, 128, 3))
    assert ip_adapter.patch_for(demo.load()[0], adapter, prompt).layers
