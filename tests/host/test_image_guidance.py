"""Image guidance inside the host's sampling: through the real VAE, CLIP vision and, if asked, the denoiser."""

import copy
import json

import comfy.clip_vision
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from controlled_diffusion.guidance.image_guidance import ImageGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host import gradients
from controlled_diffusion.nodes.host.guidance.image_guidance import nearest_size
from controlled_diffusion.nodes.host.guidance.multi_cfg import KEY, MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.host.latents import decoder
from controlled_diffusion.nodes.image_guidance import ImageGuidanceChannel

from compare import assert_close
from host import tiny
from host.sampling import Count, cfg_guider, ksampler, run
from host.tiny import conditioning, fill
from host.tiny import unet as tiny_unet

EMPTY, CAT = conditioning(0), conditioning(1)
VISION = dict(
    hidden_size=32,
    image_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_hidden_layers=2,
    patch_size=16,
    projection_dim=24,
    num_channels=3,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    model_type="clip_vision_model",
)
pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture
def vision(tmp_path):
    config = tmp_path / "vision.json"
    config.write_text(json.dumps(VISION))
    tower = comfy.clip_vision.ClipVisionModel(str(config))
    fill(tower.model, 5)
    return tower


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(seed))


def channel(model, vae, weight: float = 3.0, kind: str = "layout", through=False, batch_size=1, **kwargs):
    given = {"image": image(), **kwargs}
    return ImageGuidanceChannel.execute(model, vae, kind, through, batch_size, weight=weight, **given).args[0]


def host_cfg(model, cfg: float = 3.0):
    return cfg_guider(model, CAT, EMPTY, cfg)


def test_weight_0_is_cfg_and_decodes_nothing(any_model, vae):
    calls = []
    gradient = ImageGradient(lambda z: calls.append(1) or z.sum((1, 2, 3)))
    assert torch.equal(
        run(MultiCFG(any_model, EMPTY, [Channel(CAT, 3.0), Channel(None, 0.0, gradient=gradient)])), run(host_cfg(any_model))
    )
    assert not calls


def test_dynamic_models_are_loaded_whole_for_gradients(eps_model, vae):
    """Dynamic weights lie in memory that the host uses again, of which autograd knows nothing."""
    vague = copy.copy(vae)
    vague.patcher = tiny.dynamic(vae.patcher, lambda: tiny.vae().patcher)
    (forced,) = channel(tiny.dynamic(eps_model), vague, 0.5, "color", True)
    assert [type(m) for m in forced.gradient.models] == [
        comfy.model_patcher.ModelPatcher
    ] and vague.first_stage_model is vae.first_stage_model
    whole = run(MultiCFG(tiny.dynamic(eps_model, lambda: tiny_unet("eps")), EMPTY, [Channel(CAT, 3.0), forced]))
    (plain,) = channel(eps_model, vae, 0.5, "color", True)
    assert_close(whole, run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), plain])))
    with pytest.raises(ValueError, match=r"The model is loaded dynamically.*--disable-dynamic-vram"):
        MultiCFG(tiny.dynamic(eps_model), EMPTY, [Channel(CAT, 3.0), forced])
    with pytest.raises(ValueError, match=r"The VAE is loaded dynamically.*--disable-dynamic-vram"):
        vague.patcher = tiny.dynamic(vae.patcher)
        channel(eps_model, vague)


@pytest.mark.parametrize("kind", ["color", "brightness", "layout"])
@pytest.mark.parametrize("through", [False, True], ids=["cheap", "through the denoiser"])
def test_the_image_comes_nearer_to_the_reference(any_model, vae, kind, through):
    channels = channel(any_model, vae, 0.5, kind, through)
    decode = decoder(any_model, vae)
    plain, guided = (run(MultiCFG(any_model, EMPTY, [Channel(CAT, 3.0), *c])) for c in ((), channels))
    loss = channels[0].gradient.loss
    before, after = (float(loss(any_model.model.process_latent_in(z))) for z in (plain, guided))
    assert after < before and decode(any_model.model.process_latent_in(guided)).shape == (1, 3, 64, 64)


def test_a_vae_that_was_loaded_in_a_node_has_gradients(eps_model):
    made = tiny.vae()
    assert all(p.is_inference() for p in made.first_stage_model.parameters())
    assert torch.isfinite(run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channel(eps_model, made)]))).all()


def test_a_reference_is_made_smaller_but_never_larger():
    small, large = torch.rand(1, 64, 48, 3), torch.rand(1, 2048, 1024, 3)
    assert nearest_size(small) is small
    assert nearest_size(large).shape == (1, 512, 256, 3)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc"])
def test_stock_samplers_follow_it_through_the_denoiser(eps_model, vae, sampler):
    guided = run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channel(eps_model, vae, through=True)]), sampler=sampler)
    assert torch.isfinite(guided).all() and not torch.allclose(guided, run(host_cfg(eps_model), sampler=sampler))


def test_through_the_denoiser_matches_finite_differences():
    model = tiny_unet("eps", output_scale=0.5)
    sigma, found = 2.0, []

    class Kept(ImageGradient):
        def __call__(self, x, sigma, denoised, scale):
            delta = super().__call__(x, sigma, denoised, scale)
            found.append((x.detach().clone(), delta.clone()))
            return delta

    def loss(z):
        return (z[:, :, 2:5, 2:5] - 1).square().mean((1, 2, 3))

    run(
        MultiCFG(model, EMPTY, [Channel(CAT, 3.0), Channel(None, 1.0, gradient=Kept(loss, through_denoiser=True))]),
        sigmas=torch.tensor([sigma, 0.0]),
    )
    (x, delta), base = found[0], host_cfg(model)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)

    def log_p(shift):
        noise = (x + shift * direction) / sigma
        z = base.sample(
            noise, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0
        )
        return -64 * float(loss(model.model.process_latent_in(z)).double())

    derivative = (log_p(0.004) - log_p(-0.004)) / 0.008
    assert sigma**2 * derivative == pytest.approx(float((delta * direction).sum()), rel=0.02)


def test_through_the_denoiser_weight_0_keeps_no_graph(eps_model):
    gradient, kept = ImageGradient(lambda z: z.square().mean((1, 2, 3)), through_denoiser=True), []
    guider = MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), Channel(None, 0.0, gradient=gradient)])
    guider.model_patcher = guider.model_patcher.clone()
    guider.model_patcher.set_model_sampler_post_cfg_function(lambda args: kept.append(args["denoised"].requires_grad) or args["denoised"])
    guider.model_options = guider.model_patcher.model_options
    assert torch.equal(run(guider), run(host_cfg(eps_model))) and kept and not any(kept)


def test_the_cheap_form_costs_no_evaluation_of_the_model(eps_model, vae):
    plain, guided = Count(eps_model), Count(eps_model)
    run(MultiCFG(plain.model, EMPTY, [Channel(CAT, 3.0)]))
    run(MultiCFG(guided.model, EMPTY, [Channel(CAT, 3.0), *channel(eps_model, vae)]))
    assert guided.rows == plain.rows


def test_the_patch_does_the_same_under_ksampler(eps_model, vae):
    for through in (False, True):
        channels = channel(eps_model, vae, through=through)
        patched = MultiCFGWrapper(channels).install(eps_model)
        assert_close(
            ksampler(patched, CAT, EMPTY, 3.0), run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channels])), atol=1e-4, rtol=1e-4
        )


def test_the_shared_model_works_as_before_afterwards(eps_model, vae):
    before = run(host_cfg(eps_model))
    run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channel(eps_model, vae, through=True)]))
    assert torch.equal(run(host_cfg(eps_model)), before)
    assert not any(p.requires_grad for p in eps_model.model.parameters())
    assert not comfy.model_management.in_training


def test_the_vae_is_loaded_with_a_clone_of_the_model(eps_model, vae):
    guider = MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channel(eps_model, vae)])
    assert vae.patcher in guider.model_patcher.get_nested_additional_models()
    assert not eps_model.get_additional_models_with_key(KEY)


def test_clip_moves_towards_an_image_and_a_text_of_its_space(eps_model, vae, vision):
    text = [[torch.zeros(1, 77, 64), {"pooled_output": torch.randn(1, 24, generator=torch.Generator().manual_seed(3))}]]
    for reference in (dict(image=image()), dict(image=None, text=text)):
        channels = channel(eps_model, vae, 30.0, "clip", clip_vision=vision, **reference)
        loss = channels[0].gradient.loss
        plain, guided = (run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *c])) for c in ((), channels))
        before, after = (float(loss(eps_model.model.process_latent_in(z))) for z in (plain, guided))
        assert after < before


def test_a_dynamic_clip_vision_model_is_copied_whole(eps_model, vae, vision):
    (plain,) = channel(eps_model, vae, 30.0, "clip", clip_vision=vision)
    given = copy.copy(vision)
    given.patcher = tiny.dynamic(vision.patcher)
    (forced,) = channel(eps_model, vae, 30.0, "clip", clip_vision=given)
    assert [m.is_dynamic() for m in forced.gradient.models] == [False, False] and given.patcher.is_dynamic()
    assert_close(run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), forced])), run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), plain])))


@pytest.mark.parametrize(
    "kind, given, message",
    [
        ("clip", dict(), "needs a clip_vision"),
        ("layout", dict(image=None), "needs a reference image"),
        ("clip", dict(image=None, clip_vision="vision"), "needs an image or a text"),
        ("clip", dict(image=None, clip_vision="vision", text=CAT), "embeddings of width 24, the text has one of width 64"),
        ("shape", dict(), "Unknown kind 'shape'"),
    ],
)
def test_what_is_missing_is_named(eps_model, vae, vision, kind, given, message):
    given = {k: vision if v == "vision" else v for k, v in given.items()} if "clip_vision" in given else given
    with pytest.raises(ValueError, match=message):
        channel(eps_model, vae, 1.0, kind, **given)


def test_only_inference_tensors_are_replaced(eps_model):
    model = eps_model.model.diffusion_model
    values = {k: v.clone() for k, v in model.state_dict().items()}
    assert gradients.to_normal_tensors(model) > 0 and gradients.to_normal_tensors(model) == 0
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
