"""The demo model is ComfyUI's own: everything stock works on it, and what training saw is what the host computes."""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import latent_preview
import nodes
import numpy as np
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer
from controlled_diffusion.nodes.demo import DemoCheckerLoader, DemoModelLoader
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.model_folder import SHIPPED
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.demo.config import HEAD_CHANNELS
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.instruct_pix2pix import PromptPair
from controlled_diffusion.training.loop import save_atomically
from safetensors.torch import load_file, save_file

from checks import refused
from compare import assert_close
from demo import illustrated_reader, make_model
from demo import model as demo_model
from demo.packing import quantized
from demo.worlds import WORLDS
from host.training import check_deep_copy

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS)
def world(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(world):
    with torch.inference_mode():
        return demo.load(world.files.model)


@pytest.fixture
def model(loaded):
    return loaded[0]


def encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def scenes_of(world, count):
    """Images that training never saw, (count, 3, H, W)."""
    return demo_model.as_images([world.image(world.scene(i, 4321)) for i in range(count)])


def sample(model, clip, text="a red flower", steps=4):
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    return nodes.common_ksampler(model, 1, steps, 4.0, "euler", "normal", encode(clip, text), encode(clip, ""), empty)[0]["samples"]


def test_the_weights_are_small_and_safetensors_only():
    files = [f for f in SHIPPED.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".safetensors", ".md"}  # tests/host/test_packaging.py weighs those that are packed
    for shipped in FILES.values():
        own = {f: f.stat().st_size for f in files if f.name.startswith(shipped.name)}
        assert own.get(shipped.model, 0) <= 16e6 and sum(own.values()) <= 24e6


@pytest.mark.parametrize("there", [["shapes"], ["illustrated"], ["illustrated", "shapes"]], ids="+".join)
def test_worlds_with_files_are_offered(there, monkeypatch, tmp_path):
    elsewhere = {name: replace(files, folder=tmp_path) for name, files in FILES.items()}
    monkeypatch.setattr(demo, "FILES", elsewhere)
    for name in there:
        elsewhere[name].model.touch()
    (offered,) = DemoModelLoader.define_schema().inputs
    assert list(offered.options) == there, "the first is the default"
    for missing in FILES.keys() - there:
        refused(f"'{missing}' is missing: .*{FILES[missing].name}.*Choose another world .{there[0]}", DemoModelLoader.execute, missing)


def test_a_pack_without_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "FILES", {name: replace(files, folder=tmp_path) for name, files in FILES.items()})
    (offered,) = DemoModelLoader.define_schema().inputs
    refused("'illustrated' is missing: .* Install the pack again", DemoModelLoader.execute, offered.options[0])


def test_the_illustrated_checker_reads_with_its_network(monkeypatch, tmp_path):
    """An untrained one here, which reads nothing as it is told; images of another size are scaled."""
    files = replace(FILES["illustrated"], folder=tmp_path)
    files.reader.parent.mkdir()
    save_atomically(illustrated_reader.stored(illustrated_reader.new_reader()), files.reader)
    monkeypatch.setattr(demo, "FILES", {**FILES, "illustrated": files})
    (offered,) = DemoCheckerLoader.define_schema().inputs
    assert list(offered.options) == ["illustrated", "shapes"]
    checker, images = DemoCheckerLoader.execute("illustrated").args[0], torch.rand(2, 128, 128, 3)
    assert checker(images, images, PromptPair("a cat", "a dog", "make it a dog")) == [0.0, 0.0]
    assert checker.settings_key != DemoCheckerLoader.execute("shapes").args[0].settings_key


def test_training_reads_weights_in_8_bits(tmp_path):
    stored, path = load_file(FILES["shapes"].model), tmp_path / "small.safetensors"
    matrices = {k: v for k, v in stored.items() if v.ndim > 1 and k.startswith(("model.", "cond_stage_model.clip_l"))}
    save_file({k: v for k, v in stored.items() if k not in matrices} | quantized(matrices), path)
    for part, exact in zip(make_model.shipped(path), make_model.shipped()):
        for name, weight in exact.state_dict().items():
            assert (part.state_dict()[name] - weight).abs().max() <= weight.abs().max() / 250, name


def test_tokens_of_training_are_the_tokens_of_the_host(world):
    tokenizer = SD1Tokenizer()
    tokens = demo_model.Tokens(lambda word: tokenizer.clip_l.tokenizer(word)["input_ids"][1:-1])
    rng = np.random.default_rng(0)
    texts = [world.caption(world.scene(i), rng).text for i in range(50)] + [""]
    for text in texts:
        host = [token for token, _ in tokenizer.tokenize_with_weights(text)["l"][0]]
        assert tokens(text).tolist() == host, text


def test_the_text_tower_of_training_is_the_hosts(world, loaded):
    clip, text = loaded[1], world.caption(world.scene(3), np.random.default_rng(0)).text
    ids = torch.tensor([[token for token, _ in clip.tokenize(text)["l"][0]]])
    tower = demo.DemoClip(dtype=torch.float32).clip_l.transformer.text_model
    tower.load_state_dict({k: v.float() for k, v in clip.cond_stage_model.clip_l.transformer.text_model.state_dict().items()})
    host = encode(clip, text)[0][0]
    assert_close(demo_model.encode_text(tower, ids), host, atol=2e-2, rtol=2e-2)


def test_noise_levels_of_training_are_the_hosts(model):
    sigmas = model.get_model_object("model_sampling").sigmas
    a = demo_model.alphas_cumprod()
    assert_close(((1 - a) / a).sqrt(), sigmas, atol=1e-4, rtol=1e-4)


def test_words_that_training_never_saw_keep_their_start_values(loaded):
    table = loaded[1].cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    start = config.start_tokens(*table.shape)
    changed = (table.float() - start.half().float()).abs().amax(1) > 0
    assert 40 < int(changed.sum()) < 200


def test_an_image_survives_the_autoencoder(world, loaded):
    images, vae = scenes_of(world, 8), loaded[2]
    latents = vae.encode(images.movedim(1, -1))
    assert latents.shape == (8, 4, world.latent, world.latent)
    assert demo_model.psnr(vae.decode(latents).movedim(-1, 1), images).mean() >= 30


def test_latents_have_the_scale_that_sd15s_format_expects(world, loaded):
    latents = loaded[0].model.process_latent_in(loaded[2].encode(scenes_of(world, 8).movedim(1, -1)))
    assert latents.mean().abs() < 0.15 and 0.85 < latents.std() < 1.15


def test_a_deep_copy_owns_its_weights(model):
    check_deep_copy(model, lambda network: network.out[2].weight)


@pytest.mark.parametrize("part", range(3), ids=["model", "clip", "vae"])
def test_the_host_can_load_each_part_once_more(loaded, part):
    """As it does where a part must not be loaded dynamically, piece by piece."""
    patcher = getattr(loaded[part], "patcher", loaded[part])
    again, arguments, *_ = patcher.cached_patcher_init
    other = again(*arguments, disable_dynamic=True)
    assert other.model is not patcher.model and not getattr(other, "is_dynamic", bool)()
    ours, theirs = patcher.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert other.cached_patcher_init == patcher.cached_patcher_init


def test_a_lora_acts(loaded):
    model, clip, _ = loaded
    draw = torch.Generator().manual_seed(0)
    key = next(k for k in model.model.state_dict() if k.endswith("attn2.to_v.weight")).removesuffix(".weight")
    out, width = model.model.state_dict()[f"{key}.weight"].shape
    lora = {f"{key}.lora_up.weight": torch.randn(out, 4, generator=draw), f"{key}.lora_down.weight": torch.randn(4, width, generator=draw)}
    patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    before = sample(model, clip)
    assert not torch.allclose(sample(patched, clip), before)
    assert torch.equal(sample(model, clip), before)


def test_a_controlnet_acts(world, loaded):
    model, clip, _ = loaded
    config = {k: v for k, v in world.unet_config.items() if k not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(hint_channels=3, num_head_channels=HEAD_CHANNELS, device="cpu", **config)
    noisy_classifier.initialize(network, 1)
    control = comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())
    hint = torch.rand(1, 128, 128, 3)
    prompt, empty = encode(clip, "a red flower"), encode(clip, "")
    controlled = nodes.ControlNetApplyAdvanced().apply_controlnet(prompt, empty, control, hint, 1.0, 0.0, 1.0)
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    how = (model, 1, 3, 4.0, "euler", "normal")
    assert not torch.allclose(*(nodes.common_ksampler(*how, *p, latent)[0]["samples"] for p in (controlled, (prompt, empty))))


def test_previews_have_the_images_colors(world, loaded):
    model, _, vae = loaded
    image = scenes_of(world, 6)[5:]
    latent = model.model.process_latent_in(vae.encode(image.movedim(1, -1)))
    layout = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(layout.latent_rgb_factors, layout.latent_rgb_factors_bias)
    drawn = np.asarray(previewer.decode_latent_to_preview(latent), np.float32) / 255
    wanted = torch.nn.functional.avg_pool2d(image, 8)[0].movedim(0, -1).numpy()
    assert drawn.shape == wanted.shape and np.abs(drawn - wanted).mean() < 0.2
    latent_preview.prepare_callback(model, 4)(0, latent, latent, 4)


def test_the_host_can_save_it_as_a_checkpoint(loaded, tmp_path):
    model, clip, vae = loaded
    path = tmp_path / "checkpoint.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clip, vae)
    saved = comfy.utils.load_torch_file(str(path))
    assert any(k.startswith("model.diffusion_model.") for k in saved) and any(k.startswith("first_stage_model.") for k in saved)
