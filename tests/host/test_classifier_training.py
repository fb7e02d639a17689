"""The trainer of noisy classifiers on the demo model's images, and its file in the loader."""

import os
import re
from dataclasses import replace

import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
from controlled_diffusion.guidance.classifier import NoisyClassifier
from controlled_diffusion.nodes.classifier import ClassifierChannel, NoisyClassifierLoader
from controlled_diffusion.nodes.classifier_training import NoisyClassifierTrainer
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance import classifier as files
from controlled_diffusion.nodes.host.guidance.multi_cfg import check_guidance_channels
from controlled_diffusion.nodes.host.latents import latent_space
from controlled_diffusion.nodes.host.training import memory, trainer
from controlled_diffusion.nodes.host.training import noisy_classifier as host
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.loop import Diverged, Loop
from controlled_diffusion.training.settings import Data

from compare import assert_close
from demo import model as demo_model
from demo.world import render
from host import tiny, tiny_text, video
from host.training import execute, full_disk, watching

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
COUNT = 16


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Classifiers and outputs in a folder of the test."""
    known = folder_paths.folder_names_and_paths.get(files.CLASSIFIERS.name)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    folder_paths.folder_names_and_paths.pop(files.CLASSIFIERS.name, None)
    folder_paths.filename_list_cache.pop(files.CLASSIFIERS.name, None)  # which knows the files of the test before
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path
    folder_paths.set_output_directory(before)
    if known is not None:
        folder_paths.folder_names_and_paths[files.CLASSIFIERS.name] = known


@pytest.fixture(scope="module")
def demo_vae():
    return demo.load(FILES["shapes"].model)[2]


def scenes(count=COUNT):
    return [demo_model.scene(i, 31) for i in range(count)]


def images(count=COUNT):
    """At half their size, which takes the VAE a quarter of the time."""
    return torch.from_numpy(np.stack([render(s)[::2, ::2] for s in scenes(count)])).float() / 255


def backgrounds(count=COUNT):
    return [s.background for s in scenes(count)]


def settings(**knobs):
    return host.Settings(4, 8, 1e-3, 0, kind="exclusive", size="small", **knobs)


def picked(sample, count):
    """The images of a sample whose targets are their numbers."""
    return [images(count)[int(row.argmax())][None] for row in sample.targets]


def train(model, vae, given=None, labels=None, **knobs):
    """(classifier, name, loss curve, accuracy image) of the node with its defaults and few steps."""
    usual = dict(kind="exclusive", steps=4, batch_size=8, average=0.0, name="mine", labels=backgrounds() if labels is None else labels)
    return execute(NoisyClassifierTrainer, model=model, vae=vae, images=[images()] if given is None else given, **usual | knobs)


def trained(model, vae, given, labels, asked):
    """(task, loop) after a training that writes no file."""
    with torch.inference_mode(False), torch.no_grad():
        task = host.prepare(model, vae, [given], labels, asked)
        return task, trainer.run(task, files.CLASSIFIERS.state("trained"), lambda loop: "nowhere")


def test_other_labels_on_the_same_images_are_another_training(eps_model, demo_vae):
    given = [["a", "b", "a", "b"], ["a", "a", "b", "b"]]
    with torch.inference_mode(False), torch.no_grad():
        one, other = (host.prepare(eps_model, demo_vae, [images(4)], labels, settings()).loop().about for labels in given)
    assert [k for k in one if one[k] != other[k]] == ["labels of each image"]


def test_a_vae_that_loading_moves_is_trained_with(folders, eps_model):
    """On a GPU the host gives weights that a node made in inference mode new data, in the mode that it is called in."""
    made = tiny.as_on_a_gpu(demo.load(FILES["shapes"].model)[2])
    for number in range(2):
        assert train(eps_model, made, name=f"mine{number}", steps=2)[1] == f"mine{number}.safetensors"


def test_it_tells_the_backgrounds_of_images_that_it_never_saw(eps_model, demo_vae):
    asked = host.Settings(60, 32, 2e-3, 0, kind="exclusive", size="small", held_out=0.25, average=0.9)
    task, loop = trained(eps_model, demo_vae, images(48), backgrounds(48), asked)
    with loop.averaged():
        rows = task.accuracy()
    assert task.judged_on == "12 images held out" and rows[-1][1] >= 0.9 and rows[0][1] < rows[-1][1]
    assert loop.history[-1].loss < 0.7 * loop.history[0].loss


def test_the_file_is_what_the_loader_and_the_channel_take(eps_model, demo_vae, folders):
    given = [", ".join({s.background, s.things[0].color}) for s in scenes()]
    classifier, name, curve, chart = train(eps_model, demo_vae, labels=given, kind="independent")
    loaded, labels = NoisyClassifierLoader.execute(name).args
    assert name == "mine.safetensors" and (folders / "models" / "noisy_classifiers" / name).exists()
    assert set(labels.split("\n")) == {s.background for s in scenes()} | {s.things[0].color for s in scenes()}
    assert loaded.latent_format.same(latent_space(eps_model)) and loaded.kind == "independent" and curve.ndim == chart.ndim == 4
    before = NoisyClassifierLoader.fingerprint_inputs(name)
    assert before == NoisyClassifierLoader.fingerprint_inputs(name)
    os.utime(folders / "models" / "noisy_classifiers" / name, (1, 1))
    assert NoisyClassifierLoader.fingerprint_inputs(name) != before
    x, level = torch.randn(2, 4, 16, 16), torch.zeros(2)
    assert torch.equal(loaded.network(x, level), classifier.network(x, level))
    assert len(ClassifierChannel.execute(classifier, "red").args[0]) == 1


def test_it_learns_in_the_latents_that_the_model_sees(demo_vae):
    model = demo.load(FILES["shapes"].model)[0]
    latents = host._latents(model, demo_vae, Data(images(6).split(1)), 0)
    assert_close(latents := torch.cat(latents), model.model.process_latent_in(demo_vae.encode(images(6))), atol=1e-5, rtol=1e-5)
    assert 0.5 < latents.std() < 2


def test_changed_copies_keep_labels_and_are_not_held_out(demo_vae):
    model, count = demo.load(FILES["shapes"].model)[0], 8
    changed = dict(flip=True, augmentation=Augmentation(variants=2, crop=0.2))
    targets = torch.eye(count)
    plain, judged = host._samples(model, demo_vae, images(count).split(1), targets, settings(held_out=0.25))
    shown, same = host._samples(model, demo_vae, images(count).split(1), targets, settings(held_out=0.25, **changed))
    assert plain.latents.shape[0] == 6 and torch.equal(judged.latents, same.latents) and torch.equal(judged.targets, same.targets)
    assert not (plain.targets.sum(0) * judged.targets.sum(0)).any()  # none is both
    assert shown.latents.shape[0] == shown.targets.shape[0] == 6 * 2 * 3 and torch.equal(shown.latents[:6], plain.latents)
    mirrored = torch.cat(host._latents(model, demo_vae, Data([p.flip(2) for p in picked(plain, count)]), 0))
    assert_close(shown.latents[6:12], mirrored, atol=1e-5, rtol=1e-5)
    for rows in shown.targets.split(6):
        assert torch.equal(rows, plain.targets)
    own = shown.latents.flatten(1)
    near = torch.cdist(own[12:], own[:12]).argmin(1)  # a cropped copy is nearest to the image that it is of, or to its mirror image
    assert torch.equal(near % 6, torch.arange(24) % 6)


def test_copies_are_asked_for_on_the_node(eps_model, demo_vae):
    plain, flipped, cropped = (train(eps_model, demo_vae, **k)[0].network for k in ({}, dict(flip=True), dict(variants=2, crop=0.3)))
    weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (plain, flipped, cropped)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_seed_decides_and_global_randomness_is_untouched(eps_model, demo_vae):
    state = torch.get_rng_state()
    one, two, other = (train(eps_model, demo_vae, seed=s)[0].network.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], two[k]) for k in one) and not all(torch.equal(one[k], other[k]) for k in one)


def test_where_the_loss_is_lost_the_last_good_classifier_is_kept(eps_model, demo_vae, folders):
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d"):
        train(eps_model, demo_vae, learning_rate=1e4, steps=40)
    saved = files.read(folders / "models" / "noisy_classifiers" / "mine.safetensors")
    assert all(not torch.isnan(v).any() for v in saved.network.state_dict().values())


def test_an_error_keeps_what_is_learned_before_it_goes_on(eps_model, demo_vae, folders):
    def unheard(value, total, preview):
        if (value, total) == (1, 4):
            raise OSError("nobody listens")

    with watching(unheard), pytest.raises(OSError, match="nobody listens"):
        train(eps_model, demo_vae, [images(8)], backgrounds(8))
    assert (folders / "models" / "noisy_classifiers" / "mine.safetensors").exists()


def test_a_full_disk_costs_the_state_and_not_the_classifier(eps_model, demo_vae, folders, monkeypatch):
    monkeypatch.setattr(Loop, "save", full_disk)
    train(eps_model, demo_vae, [images(8)], backgrounds(8))
    assert (folders / "models" / "noisy_classifiers" / "mine.safetensors").exists()


@pytest.mark.parametrize("side", [16, 64])
def test_what_a_batch_takes_is_reckoned(side, monkeypatch):
    """As much as autograd keeps of it."""
    x = torch.zeros(2, 4, side, side)
    with torch.inference_mode(False), torch.enable_grad():
        network = NoisyClassifier(4, 3, (8, 16))
        with memory.pass_memory((), network.parameters()) as found:
            network(torch.zeros(x.shape), torch.zeros(2))
            exact = found().plain
        monkeypatch.setattr(memory, "get_free_memory", lambda device: exact * 1.03)
        host._check_room(network, x, 2, 0)
        monkeypatch.setattr(memory, "get_free_memory", lambda device: exact * 0.97)
        with pytest.raises(ValueError, match=r"A batch of 2 needs .* Set batch_size to 1 or less"):
            host._check_room(network, x, 2, 0)


def test_a_batch_too_large_is_refused_with_one_that_fits(eps_model, demo_vae, folders, monkeypatch):
    def run(free, batch):
        asked = replace(settings(), batch_size=batch)
        monkeypatch.setattr(memory, "get_free_memory", lambda device: free * memory.GB)
        host.learn(eps_model, demo_vae, [images(8)], backgrounds(8), asked, "mine", "refuse")

    with pytest.raises(ValueError, match=r"A batch of 64 needs about 0\.\d+ GB of memory, and 0\.02 GB are free") as told:
        run(0.02, 64)
    assert not list(folders.rglob("*.safetensors"))
    fits = int(re.search(r"batch_size to (\d+)", str(told.value))[1])
    assert 1 < fits < 64
    with pytest.raises(ValueError, match="A batch of"):
        run(0.02, fits + 2)
    run(0.02, fits)


def test_the_packs_own_classifier_is_never_written_over(eps_model, demo_vae):
    assert train(eps_model, demo_vae, name="shapes_model")[1] == "shapes_model_2.safetensors"


def test_a_classifier_is_replaced_where_the_loader_finds_it(eps_model, demo_vae, folders):
    shared = folders / "shared"
    shared.mkdir()
    folder_paths.add_model_folder_path(files.CLASSIFIERS.name, str(shared))
    train(eps_model, demo_vae, name="other")
    own = folders / "models" / "noisy_classifiers"
    (own / "other.safetensors").rename(shared / "mine.safetensors")
    first = (shared / "mine.safetensors").read_bytes()
    assert train(eps_model, demo_vae, if_exists="replace", seed=5)[1] == "mine.safetensors"
    assert (shared / "mine.safetensors").read_bytes() != first and not (own / "mine.safetensors").exists()
    with pytest.raises(ValueError, match=r"'mine' exists: .*shared"):
        train(eps_model, demo_vae, if_exists="refuse")


def test_it_learns_the_format_that_another_node_gives_the_model(demo_vae):
    """Playground's latents, which the model itself knows only while it is loaded."""
    model = ModelSamplingContinuousEDM().patch(tiny_text.denoiser("sdxl"), "edm_playground_v2.5", 80.0, 0.002)[0]
    form = model.get_model_object("latent_format")
    made = host.learn(model, demo_vae, [images(4)], ["a", "b", "a", "b"], settings(), "mine", "refuse").model
    assert made.latent_format.name == type(form).__name__ == "SDXL_Playground_2_5"
    latents = torch.cat(host._latents(model, demo_vae, Data(images(4).split(1)), 0))
    assert_close(latents, form.process_in(demo_vae.encode(images(4))).float(), atol=1e-5, rtol=1e-5)
    channel = ClassifierChannel.execute(made, "a").args[0]
    check_guidance_channels(model, channel)
    with pytest.raises(ValueError, match="SDXL_Playground_2_5, but SDXL has SDXL"):
        check_guidance_channels(tiny_text.denoiser("sdxl"), channel)


@pytest.mark.parametrize("kind", ["flux", "video"])
def test_it_learns_in_latents_of_many_channels_and_of_videos(kind, demo_vae, folders):
    flux = kind == "flux"
    model, vae = (tiny_text.denoiser(kind), tiny_text.vae(kind)) if flux else (video.tiny_video_model(), video.tiny_video_vae())
    made = host.learn(model, vae, [images(4)], ["a", "b", "a", "b"], settings(), "mine", "refuse").model
    channels = model.model.latent_format.latent_channels
    assert made.network(torch.zeros(2, channels, 8, 8), torch.zeros(2)).shape == (2, 2) and channels >= 16
    assert files.load("mine.safetensors").latent_format.same(latent_space(model))


@pytest.mark.parametrize("knobs", [dict(optimizer="adafactor"), dict(schedule="constant"), dict(accumulate=2), dict(warmup=0, schedule="linear")])  # fmt: skip
def test_how_steps_are_taken_is_asked_for_on_the_node(eps_model, demo_vae, knobs):
    plain, other = (train(eps_model, demo_vae, steps=12, **k)[0].network.state_dict() for k in ({}, knobs))
    assert all(torch.isfinite(v).all() for v in other.values()) and not all(torch.equal(other[k], plain[k]) for k in plain)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(given=[]), "There are no images"),
        (dict(labels=["a", "b"]), "2 labels for 16 images"),
        (dict(labels=["a"] * COUNT), "nothing to tell apart"),
        (dict(given=[images(8), images(8)[:, :32]]), r"several sizes \(latents of 8 x 4, 8 x 8\)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(eps_model, demo_vae, knobs, message, folders):
    with pytest.raises(ValueError, match=message):
        train(eps_model, demo_vae, **knobs)
    assert not list(folders.rglob("*.safetensors"))


def test_too_few_images_to_be_judged_on_are_still_learned_from(eps_model, demo_vae):
    task, _ = trained(eps_model, demo_vae, images(4), ["a", "b", "a", "b"], settings(held_out=0.25))
    assert task.accuracy() and task.judged_on == "1 images held out"
    independent = replace(settings(held_out=0.25), kind="independent")
    task, _ = trained(eps_model, demo_vae, images(4), ["a", "b", "a", "b"], independent)
    assert task.accuracy() == []
    made = host.learn(eps_model, demo_vae, [images(4)], ["a", "b", "a", "b"], independent, "mine", "refuse")
    assert made.images.shape[-1] == 3
