"""Image guidance inside ComfyUI's sampling: through the real VAE, CLIP vision and, if asked, the denoiser."""

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
from host.sampling import STEPS, Count, cfg_guider, ksampler, run
from host.tiny import conditioning, fill
from host.tiny import unet as tiny_unet
from host.video import tiny_video_model, tiny_video_vae

EMPTY, CAT = conditioning(0), conditioning(1)
VISION = dict(hidden_size=32, image_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, patch_size=16, projection_dim=24,
              num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5, model_type="clip_vision_model")  # fmt: skip
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


def multi(model, *channels):
    """Guidance by the text and more channels."""
    return MultiCFG(model, EMPTY, [Channel(CAT, 3.0), *channels])


def losses(model, channels) -> tuple[float, float]:
    """The loss of what is sampled without and with the channels."""
    sampled = (run(multi(model, *c)) for c in ((), channels))
    return tuple(float(channels[0].gradient.loss(model.model.process_latent_in(z))) for z in sampled)


def test_weight_0_is_cfg_and_decodes_nothing(any_model, vae):
    calls = []
    gradient = ImageGradient(lambda z: calls.append(1) or z.sum((1, 2, 3)))
    assert torch.equal(run(multi(any_model, Channel(None, 0.0, gradient=gradient))), run(host_cfg(any_model))) and not calls


def test_dynamic_models_are_loaded_whole_for_gradients(eps_model, vae):
    """Dynamic weights are in memory that ComfyUI uses again, which autograd does not know."""
    vague = copy.copy(vae)
    vague.patcher = tiny.dynamic(vae.patcher, lambda: tiny.vae().patcher)
    (forced,) = channel(tiny.dynamic(eps_model), vague, 0.5, "color", True)
    assert [type(m) for m in forced.gradient.models] == [comfy.model_patcher.ModelPatcher]
    assert vague.first_stage_model is vae.first_stage_model
    whole = run(multi(tiny.dynamic(eps_model, lambda: tiny_unet("eps")), forced))
    assert_close(whole, run(multi(eps_model, *channel(eps_model, vae, 0.5, "color", True))))
    with pytest.raises(ValueError, match=r"The model is loaded dynamically.*--disable-dynamic-vram"):
        multi(tiny.dynamic(eps_model), forced)
    with pytest.raises(ValueError, match=r"The VAE is loaded dynamically.*--disable-dynamic-vram"):
        vague.patcher = tiny.dynamic(vae.patcher)
        channel(eps_model, vague)


@pytest.mark.parametrize("kind", ["color", "brightness", "layout"])
@pytest.mark.parametrize("through", [False, True], ids=["cheap", "through the denoiser"])
def test_the_image_comes_nearer_to_the_reference(any_model, vae, kind, through):
    before, after = losses(any_model, channel(any_model, vae, 0.5, kind, through))
    assert after < before and decoder(any_model, vae)(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)


def test_images_of_a_video_vae_are_decoded_as_it_decodes_them():
    """Qwen-Image and Wan have another level for each channel of their latents."""
    model, vae, z = tiny_video_model(), tiny_video_vae(), torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(model.model.process_latent_out(z[:, :, None]))
    assert_close(decoder(model, vae)(z), expected[:, 0].movedim(-1, 1).float(), atol=1e-4, rtol=1e-4)


def test_a_vae_that_was_loaded_in_a_node_has_gradients(eps_model):
    made = tiny.vae()
    assert all(p.is_inference() for p in made.first_stage_model.parameters())
    assert torch.isfinite(run(multi(eps_model, *channel(eps_model, made)))).all()


def test_a_reference_is_made_smaller_but_never_larger():
    small = torch.rand(1, 64, 48, 3)
    assert nearest_size(small) is small and nearest_size(torch.rand(1, 2048, 1024, 3)).shape == (1, 512, 256, 3)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc"])
def test_stock_samplers_follow_it_through_the_denoiser(eps_model, vae, sampler):
    guided = run(multi(eps_model, *channel(eps_model, vae, through=True)), sampler=sampler)
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

    once = torch.tensor([sigma, 0.0])
    run(multi(model, Channel(None, 1.0, gradient=Kept(loss, through_denoiser=True))), sigmas=once)
    (x, delta), base, euler = found[0], host_cfg(model), comfy.samplers.sampler_object("euler")
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)

    def log_p(shift):
        noise = (x + shift * direction) / sigma
        z = base.sample(noise, torch.zeros_like(x), euler, once, disable_pbar=True, seed=0)
        return -64 * float(loss(model.model.process_latent_in(z)).double())

    derivative = (log_p(0.004) - log_p(-0.004)) / 0.008
    assert sigma**2 * derivative == pytest.approx(float((delta * direction).sum()), rel=0.02)


def test_through_the_denoiser_weight_0_keeps_no_graph(eps_model):
    gradient, kept = ImageGradient(lambda z: z.square().mean((1, 2, 3)), through_denoiser=True), []
    watched = eps_model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: kept.append(args["denoised"].requires_grad) or args["denoised"])
    made = run(multi(watched, Channel(None, 0.0, gradient=gradient)))
    assert torch.equal(made, run(host_cfg(eps_model))) and kept and not any(kept)


def test_the_patch_does_the_same_under_ksampler(eps_model, vae):
    """The cheap form costs no evaluation of the model."""
    for through in (False, True):
        channels, counted = channel(eps_model, vae, through=through), Count(eps_model)
        made = run(multi(counted.model, *channels))
        patched = MultiCFGWrapper(channels).install(eps_model)
        assert_close(ksampler(patched, CAT, EMPTY, 3.0), made, atol=1e-4, rtol=1e-4)
        assert through or counted.rows == 2 * STEPS


def test_the_shared_model_works_as_before_afterwards(eps_model, vae):
    """The VAE is loaded with a clone of it."""
    before, guider = run(host_cfg(eps_model)), multi(eps_model, *channel(eps_model, vae, through=True))
    assert vae.patcher in guider.model_patcher.get_nested_additional_models()
    run(guider)
    assert not eps_model.get_additional_models_with_key(KEY)
    assert torch.equal(run(host_cfg(eps_model)), before)
    assert not any(p.requires_grad for p in eps_model.model.parameters())
    assert not comfy.model_management.in_training


def test_clip_moves_towards_an_image_and_a_text_of_its_space(eps_model, vae, vision):
    text = [[torch.zeros(1, 77, 64), {"pooled_output": torch.randn(1, 24, generator=torch.Generator().manual_seed(3))}]]
    for reference in (dict(image=image()), dict(image=None, text=text)):
        before, after = losses(eps_model, channel(eps_model, vae, 30.0, "clip", clip_vision=vision, **reference))
        assert after < before


def test_a_dynamic_clip_vision_model_is_copied_whole(eps_model, vae, vision):
    (plain,) = channel(eps_model, vae, 30.0, "clip", clip_vision=vision)
    given = copy.copy(vision)
    given.patcher = tiny.dynamic(vision.patcher)
    (forced,) = channel(eps_model, vae, 30.0, "clip", clip_vision=given)
    assert [m.is_dynamic() for m in forced.gradient.models] == [False, False] and given.patcher.is_dynamic()
    assert_close(*(run(multi(eps_model, c)) for c in (forced, plain)))


@pytest.mark.parametrize(
    "kind, given, message",
    [
        ("clip", dict(), "needs a clip_vision"),
        ("layout", dict(image=None), "needs a reference image"),
        ("clip", dict(image=None, clip_vision="vision"), "needs an image or a text"),
        ("clip", dict(image=None, clip_vision="vision", text=CAT), "embeddings of width 24, the text has one of width 64"),
        ("clip", dict(image=None, clip_vision="vision", text=CAT + CAT), "'text' holds several prompts"),
        ("layout", dict(image=torch.rand(2, 8, 8, 3)), "'image' holds 2 images, but one guides all"),
        ("clip", dict(image=torch.rand(2, 8, 8, 3), clip_vision="vision"), "'image' holds 2 images, but one guides all"),
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
