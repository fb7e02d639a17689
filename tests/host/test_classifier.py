"""Classifier channels inside ComfyUI's sampling, and the classifier's file."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from controlled_diffusion.guidance.classifier import ClassifierGradient, LabeledClassifier, NoisyClassifier
from controlled_diffusion.guidance.latent_space import LatentSpace
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.classifier import ClassifierChannel, NoisyClassifierLoader
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.host.latents import latent_space
from controlled_diffusion.training.demo.files import FILES
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import tiny
from host.sampling import STEPS, Count, cfg_guider, half_mask, ksampler, latent, run
from host.tiny import conditioning
from host.video import tiny_video_model, video_conditioning

EMPTY, CAT, DOG = (conditioning(i) for i in range(3))
LABELS = ("red", "blue")
pytestmark = pytest.mark.usefixtures("inference_mode")


class Counted(torch.nn.Module):
    """A classifier that counts the rows it sees."""

    def __init__(self, channels: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.rows = NoisyClassifier(channels, len(LABELS), widths=(8, 16)).requires_grad_(False), 0

    def forward(self, x, log_snr):
        self.rows += len(x)
        return self.inner(x, log_snr)


@cache
def space(model=tiny.unet) -> LatentSpace:
    return latent_space(model())


def labeled(latent_format: LatentSpace | None = None, channels: int = 4) -> LabeledClassifier:
    with torch.inference_mode(False):
        return LabeledClassifier(Counted(channels), LABELS, latent_format or space())


def toward_red(weight: float, classifier=None, **kwargs) -> Channel:
    return Channel(None, weight, name="red", gradient=ClassifierGradient(classifier or labeled(), {0: 1.0}), **kwargs)


def test_scale_0_is_cfg_and_asks_no_classifier(any_model):
    classifier = labeled()
    guided = run(MultiCFG(any_model, EMPTY, [Channel(CAT, 3.0), toward_red(0.0, classifier)]))
    assert torch.equal(guided, run(cfg_guider(any_model, CAT, EMPTY, 3.0))) and classifier.network.rows == 0


def test_outside_its_interval_the_classifier_is_not_asked(eps_model):
    channels = ClassifierChannel.execute(labeled(), "red", weight=2.0, end_percent=0.5).args[0]
    run(MultiCFG(eps_model, EMPTY, [Channel(CAT, 3.0), *channels]))
    assert 0 < channels[0].gradient.classifier.network.rows < STEPS


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "euler_ancestral"])
def test_stock_samplers_follow_the_classifier(any_model, sampler):
    plain = run(cfg_guider(any_model, CAT, EMPTY, 3.0), sampler=sampler)
    guided = run(MultiCFG(any_model, EMPTY, [Channel(CAT, 3.0), toward_red(50.0)]), sampler=sampler)
    assert torch.isfinite(guided).all() and not torch.allclose(plain, guided)


def test_alone_it_guides_the_unconditional_model(eps_model):
    counted = Count(eps_model)
    guided = run(MultiCFG(counted.model, EMPTY, [toward_red(50.0)]))
    assert counted.rows == STEPS
    assert not torch.allclose(guided, run(MultiCFG(eps_model, EMPTY, [toward_red(0.0)])))


def test_the_patch_does_the_same_under_ksampler(any_model):
    patched = MultiCFGWrapper([toward_red(20.0)]).install(any_model)
    guider = MultiCFG(any_model, EMPTY, [Channel(CAT, 3.0), toward_red(20.0)])
    assert_close(ksampler(patched, CAT, EMPTY, 3.0), run(guider))


def test_a_mask_holds_the_gradient_to_its_region(eps_model):
    channels = toward_red(0.0), toward_red(50.0, mask=half_mask(8))
    plain, guided = (run(MultiCFG(eps_model, EMPTY, [c]), sigmas=torch.tensor([2.0, 0.0])) for c in channels)
    assert torch.equal(plain[..., :4], guided[..., :4]) and not torch.allclose(plain[..., 4:], guided[..., 4:])


def test_priorities_hold_for_gradients_too(eps_model):
    def at(conflict, weight=40.0):
        channels = [Channel(CAT, 3.0, priority=1), toward_red(weight)]
        return run(MultiCFG(eps_model, EMPTY, channels, Rules(conflict)))

    assert not torch.allclose(at("sum"), at("perpendicular"))
    assert_close(at("perpendicular", 0.0), run(cfg_guider(eps_model, CAT, EMPTY, 3.0)), atol=1e-4, rtol=1e-4)


def test_a_batch_and_its_parts_are_guided_alike(eps_model):
    whole = run(MultiCFG(eps_model, EMPTY, [toward_red(20.0)]), latent(3))
    part = Channel(None, 20.0, gradient=ClassifierGradient(labeled(), {0: 1.0}, batch=2))
    assert_close(run(MultiCFG(eps_model, EMPTY, [part]), latent(3)), whole)


def test_video_latents_are_guided():
    model = tiny_video_model()
    channel = toward_red(20.0, labeled(latent_space(model), 16))
    guided = run(MultiCFG(model, video_conditioning(0), [channel]), torch.zeros(1, 16, 2, 8, 8))
    assert torch.isfinite(guided).all() and guided.ndim == 5


def test_a_classifier_of_another_latent_format_is_refused(eps_model):
    own = space()
    others = {"has SD15\\.": replace(own, name="SDXL", levels=tuple(0.7 * v for v in own.levels)), "has SD15 of another VAE": replace(own, colors=own.colors[::-1])}
    for told, other in others.items():
        channels = [toward_red(1.0, labeled(other))]
        for use in (lambda c=channels: MultiCFG(eps_model, EMPTY, c), lambda c=channels: MultiCFGWrapper(c).install(eps_model)):
            with pytest.raises(ValueError, match=f"format {other.name}.* {told}"):
                use()
    MultiCFG(eps_model, EMPTY, [toward_red(1.0, labeled(replace(own, name="the same under another name")))])


def test_the_latents_of_two_demo_models_differ(tmp_path):
    """Both have SD1.5's format at the same scale; their autoencoders are their own."""
    weights = load_file(shipped := FILES["shapes"].model)
    save_file(weights | {"preview_colors": weights["preview_colors"].flip(1)}, tmp_path / "other.safetensors")
    one, again, other = (latent_space(demo.load(path)[0]) for path in (shipped, shipped, tmp_path / "other.safetensors"))
    assert one.same(again) and not one.same(other) and one.name == other.name


def test_a_classifier_comes_back_from_its_file(tmp_path):
    network = NoisyClassifier(4, 2, widths=(8, 16))
    path = tmp_path / "c.safetensors"
    classifier.save(LabeledClassifier(network, LABELS, space(), "exclusive"), path)
    found = classifier.read(path)
    assert (found.labels, found.latent_format, found.kind) == (LABELS, space(), "exclusive")
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[key].half().float()) and not value.is_inference()


def test_another_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is no noisy classifier"):
        classifier.read(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "missing.safetensors"])
def test_names_outside_the_folders_are_refused(name):
    with pytest.raises(ValueError, match="There is no classifier"):
        classifier.load(name)


def test_the_shipped_classifier_loads_and_lists_its_labels():
    classifier, labels = NoisyClassifierLoader.execute("shapes_model.safetensors").args
    assert classifier.latent_format.same(latent_space(demo.load(FILES["shapes"].model)[0])) and {"red", "circle"} <= set(labels.split("\n"))
    assert FILES["shapes"].classifier.stat().st_size <= 2e6
    assert not any(p.requires_grad for p in classifier.network.parameters())
