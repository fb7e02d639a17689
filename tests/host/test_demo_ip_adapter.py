"""A trial of the script that makes the demo model's image encoder and IP-Adapter, and what the host does with its files."""

import comfy.clip_vision
import pytest
import torch
from controlled_diffusion.attention.ip_adapter import recognize
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.demo import DEMO_ENCODER, demo_encoder
from controlled_diffusion.nodes.ip_adapter import DemoImageEncoderLoader, IPAdapterPatch
from controlled_diffusion.training.demo.packing import restored
from safetensors.torch import load_file

from demo import make_ip_adapter as script

SHIPPED = ip_adapter.ADAPTERS.shipped / "demo_model.safetensors"


@pytest.fixture
def few_steps(tmp_path, monkeypatch):
    files = dict(STATE=tmp_path / "state", ADAPTER=tmp_path / "adapter.safetensors", ENCODER=tmp_path / "encoder.safetensors")
    for name, value in (dict(ENCODER_STEPS=3, STEPS=2, SCENES=8, BATCH=2, ENCODER_BATCH=4) | files).items():
        monkeypatch.setattr(script, name, value)


@pytest.mark.slow
def test_the_script_makes_fitting_files_and_continues(few_steps, capsys):
    script.make()
    said, first = capsys.readouterr().out, load_file(script.ADAPTER)
    assert "encoder: 0 of 3 steps done" in said and "adapter: 0 of 2 steps done" in said
    script.make()
    said = capsys.readouterr().out
    assert "encoder: 3 of 3 steps done" in said and "adapter: 2 of 2 steps done" in said and "made" not in said
    again = load_file(script.ADAPTER)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert script.ADAPTER.stat().st_size + script.ENCODER.stat().st_size <= 0.6e6
    with torch.inference_mode():
        model, adapter = demo.load()[0], recognize(again, "trial")
        layer = next(iter(ip_adapter.layers_of(model).values()))
        for part, trained in zip("kv", adapter.layers[0]):
            moved = (trained.float() - getattr(layer, f"to_{part}").weight.float()).abs().max()
            assert 1e-6 < moved < 0.1, "it starts at the text's weights, and moves"
        encoder = demo_encoder(script.ENCODER)
        image = torch.rand(1, 128, 128, 3)
        embed = encoder.encode_image(image)["image_embeds"].float()
        assert torch.isfinite(embed).all() and embed.abs().sum() > 0
        IPAdapterPatch.execute(model, adapter, encoder, 1.0, 0.0, 1.0, "concat", "", "center", image=image)


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
