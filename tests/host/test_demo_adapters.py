"""Each recipe of the demo models' adapters takes steps in each world, writes files that load, and goes on where it stopped."""

from dataclasses import replace

import comfy.controlnet
import pytest
import torch
from controlled_diffusion.attention.ip_adapter import recognize
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.guidance.classifier import read
from controlled_diffusion.nodes.ip_adapter import IPAdapterPatch
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.demo.files import Files
from safetensors.torch import load_file, save_file

from demo import instruct, make_classifier, make_control, make_instruct, make_ip_adapter
from demo.illustrated_world import ILLUSTRATED
from demo.shapes_world import SHAPES


@pytest.fixture(params=[SHAPES, ILLUSTRATED], ids=lambda world: world.name)
def world(request, tmp_path):
    """A world with few steps, scenes and families, and files elsewhere; its denoiser is the one of the shapes, which is always there."""
    plans = {name: replace(plan, steps=2, batch=2) for name, plan in request.param.plans.items()}
    few = dict(scenes=20, singles=8, targets=4)
    if request.param is ILLUSTRATED:
        few |= dict(scenes=4, unet_config=SHAPES.unet_config, weights=SHAPES.weights)
    return replace(request.param, plans=plans, state=tmp_path, files=Files("trial", tmp_path), **few)


def test_controlnet(world):
    make_control.make(world)
    control = comfy.controlnet.load_controlnet(str(world.files.controlnet))
    assert isinstance(control, comfy.controlnet.ControlLora)
    weights = load_file(world.files.controlnet)
    assert any(weights[k].abs().max() > 0 for k in weights if k.endswith(".up")), "it moves"


def test_states_know_what_they_were_trained_on(tmp_path):
    """A UNet or an autoencoder that was trained further: half an adapter of each would fit neither."""
    plans = {"control": replace(SHAPES.plans["control"], steps=1, batch=1)}
    world = replace(SHAPES, plans=plans, state=tmp_path, files=Files("trial", tmp_path), scenes=1)
    make_control.make(world)
    for part, told in (("model.diffusion_model.out.2.", "denoiser was"), ("first_stage_model.taesd_encoder.", "made by other weights")):
        weights = load_file(SHAPES.weights)
        save_file({k: w * 0.5 if k.startswith(part) else w for k, w in weights.items()}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=told):
            make_control.make(replace(world, weights=tmp_path / "other.safetensors"))


def test_classifier(world):
    make_classifier.make(world)
    assert make_classifier.average_precision(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])) == pytest.approx((1 + 2 / 3) / 2)
    found = read(world.files.classifier)
    assert found.labels == world.all_labels and len(set(found.labels)) == len(found.labels)
    assert found.network(torch.zeros(1, 4, world.latent, world.latent), torch.zeros(1)).shape == (1, len(found.labels))


def test_ip_adapter_and_encoder(world, capsys):
    make_ip_adapter.make(world)
    said, first = capsys.readouterr().out, load_file(world.files.adapter)
    assert "encoder: 0 of 2 steps done" in said and "adapter: 0 of 2 steps done" in said
    make_ip_adapter.make(world)
    said, again = capsys.readouterr().out, load_file(world.files.adapter)
    assert "encoder: 2 of 2 steps done" in said and "adapter: 2 of 2 steps done" in said and "made" not in said
    assert all(torch.equal(first[k], again[k]) for k in first)
    with torch.inference_mode():
        model, adapter = demo.load(world.weights)[0], recognize(again, "trial")
        layer = next(iter(ip_adapter.layers_of(model).values()))
        for part, trained in zip("kv", adapter.layers[0]):
            moved = (trained.float() - getattr(layer, f"to_{part}").weight.float()).abs().max()
            assert 1e-6 < moved < 0.1, "it starts at the text's weights, and moves"
        encoder, image = demo.demo_encoder(world.files.encoder), torch.rand(1, world.size, world.size, 3)
        assert encoder.image_size == world.vision_config["image_size"]
        IPAdapterPatch.execute(model, adapter, encoder, 1.0, 0.0, 1.0, "concat", "", "center", image=image)


def test_encoder_sizes_are_read_from_its_weights(world):
    weights = make_ip_adapter.new_encoder(world).state_dict()
    assert config.vision_config(weights) == world.vision_config


def test_instruction_model(world):
    of_two = len(world.family(0, instruct.SEED)[1][0].things) == 2
    plan = replace(world.plans["train"], settings=dict(pair_share=float(of_two)))
    make_instruct.make(replace(world, families=1, plans={"train": plan}), "train")
    model = demo.load_instruct(str(world.files.instruct), str(world.weights))
    first = model.model.diffusion_model.input_blocks[0][0].weight
    assert first.shape[1] == 8 and first[:, 4:].abs().max() > 0
