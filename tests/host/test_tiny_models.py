"""The tiny models behave like real ones: ComfyUI's own text encoder, sampler and decoder run on them."""

import comfy.sample
import comfy.samplers
import nodes
import torch

from host import tiny


def sample(model, seed=3):
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    return comfy.sample.sample(model, noise, 3, 2.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=seed)


def test_every_family_samples_and_repeats_itself(any_model, inference_mode):
    first = sample(any_model)
    assert first.isfinite().all() and first.std() > 0
    torch.testing.assert_close(sample(any_model), first, rtol=0, atol=0)


def test_the_families_differ(eps_model, v_model, flow_model, inference_mode):
    images = [sample(model) for model in (eps_model, v_model, flow_model)]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_clip_and_vae_fit_the_stock_nodes(clip, vae, inference_mode):
    (condition,) = nodes.CLIPTextEncode().encode(clip, "a red circle")
    assert condition[0][0].shape == (1, 77, tiny.CONTEXT)
    (image,) = nodes.VAEDecode().decode(vae, {"samples": torch.zeros(1, 4, 8, 8)})
    assert image.shape == (1, 64, 64, 3)


def test_the_hosts_nodes_module_is_not_hidden_by_ours():
    assert hasattr(nodes, "NODE_CLASS_MAPPINGS")


def test_inference_mode_is_the_executors(inference_mode):
    assert torch.ones(1).is_inference()
