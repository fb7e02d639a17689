"""Sliders on tiny models: their loss, their file in the stock loader, and what they refuse."""

from types import SimpleNamespace

import nodes as host_nodes
import pytest
import torch
from controlled_diffusion.nodes.dreambooth import DreamBoothTrainer
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.host.training import adapters, memory
from controlled_diffusion.nodes.host.training import slider as host
from controlled_diffusion.nodes.host.training.denoiser import Objective
from controlled_diffusion.nodes.inputs import families
from controlled_diffusion.nodes.training_options import ClassImages, ConceptSlider, NewWord
from controlled_diffusion.training.objectives import Levels, squared_error
from controlled_diffusion.training.settings import Data, Settings, Validation
from safetensors.torch import load_file

from compare import assert_close
from host import tiny, tiny_text, video
from host.sampling import ksampler
from host.training import derivatives, execute, images, inside, option, stir, stopping_at

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
PROMPTS = dict(positive="a large cat", negative="a small cat", guidance=2.0, count=2, resolution=64)


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def asked(learn="prompts", **given):
    """What Concept Slider gives."""
    own = PROMPTS | {"preserve": ""} if learn == "prompts" else {"folder": ""}
    inner = own | {k: given.pop(k) for k in own.keys() & given.keys()}
    return option(ConceptSlider, learn={"learn": learn} | inner, **given)


def train(model, clip, vae, slider=None, **knobs):
    usual = dict(name="size", instance_prompt="a cat", steps=3, warmup=0, rank=2, seed=4, learning_rate=0.05, checkpointing="off")
    usual |= dict(validation_steps=2, validation_cfg=3.0, validation_count=0, concept_slider=slider or asked(), images=[])
    return execute(DreamBoothTrainer, model=model, clip=clip, vae=vae, **usual | knobs)


def task_of(model, clip, vae, slider=None, data=None, batch_size=2):
    objective, knobs = Objective(Levels(low=0.2, high=0.9)), Settings(3, batch_size, 0.05, seed=4, warmup=0)
    shown, data = Validation("a cat", count=0, steps=2), Data([images()]) if data is None else data
    slider = slider or host.Slider(**PROMPTS)
    with torch.inference_mode(False), torch.no_grad():
        return host.prepare(model, clip, vae, data, "a cat", slider, adapters.Design(rank=2), objective, knobs, shown)


def pairs(count=2):
    return host.Slider("image pairs", before=[images(count, seed=1)], after=[images(count, seed=2)])


def losses(task, count=2):
    return inside(task, lambda denoiser: [float(task.loss(denoiser, i).detach()) for i in range(count)])


@pytest.mark.parametrize("slider", [None, pairs()], ids=["prompts", "image pairs"])
def test_gradients_agree_with_finite_differences(slider, any_model, vae, clip):
    exact, measured = derivatives(task_of(any_model, clip, vae, slider))
    assert abs(exact) > 1e-6
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


def test_both_strengths_start_eta_apart(any_model, vae, clip):
    """From the same samples: untrained, the error at strength 1 and at -1 is eta times the difference of the predictions."""
    task = task_of(any_model, clip, vae)
    plain, twice = losses(task), losses(task_of(any_model, clip, vae, host.Slider(**PROMPTS | {"guidance": 4.0})))
    assert_close(plain[0], plain[1], rtol=1e-4, atol=0)
    assert_close(twice[0], 4 * plain[0], rtol=1e-3, atol=0)
    assert plain[0] > 1e-6
    with torch.no_grad():
        swapped = losses(task_of(any_model, clip, vae, host.Slider(**PROMPTS | {"positive": "a small cat", "negative": "a large cat"})))
    assert_close(swapped, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["sdxl", "flux", "video"])
def test_models_with_other_conditionings_and_latents_train(family, vae, clip, folders, monkeypatch):
    """From images that the model samples itself; of a video model those of one frame."""
    if family == "video":
        monkeypatch.setitem(video.WAN_CONFIG, "text_dim", tiny.CONTEXT)
        model, vae = video.tiny_video_model(), video.tiny_video_vae()
    else:
        model, vae = tiny_text.denoiser(family), tiny_text.vae(family)
        clip = tiny_text.clip(family, clip.tokenizer.clip_l.embedding_directory)
    task = task_of(model, clip, vae, data=Data())
    plain = losses(task)
    assert len(task.images) == 2 and task.images.latents[0].ndim == (5 if family == "video" else 4)
    assert_close(plain[0], plain[1], rtol=1e-3, atol=0)
    assert plain[0] > 0


def test_the_target_is_of_the_untrained_model(eps_model, vae, clip):
    """However far the slider is: at strength 1 and -1 the predictions that it is trained towards stay."""
    task, seen = task_of(eps_model, clip, vae), []

    def watched(denoised, goal, mask=None):
        seen.append(goal.detach().clone())
        return squared_error(denoised, goal, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlled_diffusion.nodes.host.training.denoiser.squared_error", watched)
        losses(task)
        stir(task)
        losses(task)
    assert_close(seen[2:], seen[:2], rtol=0, atol=0)
    assert not torch.equal(seen[0], seen[1])


def test_the_stock_loaders_strength_is_the_slider(any_model, vae, clip, folders):
    empty = ksampler(any_model, tiny.conditioning(1), tiny.conditioning(0), 3.0)
    model, _, name, word, *_ = train(any_model, clip, vae)

    def drawn(strength):
        loaded, _ = host_nodes.LoraLoader().load_lora(any_model, clip, name, strength, 0.0)
        return ksampler(loaded, tiny.conditioning(1), tiny.conditioning(0), 3.0)

    assert word == "a cat" and torch.equal(drawn(0.0), empty)
    assert torch.equal(drawn(1.0), ksampler(model, tiny.conditioning(1), tiny.conditioning(0), 3.0))
    assert len({float(drawn(s).sum()) for s in (-1.0, 0.0, 1.0)}) == 3
    assert torch.equal(ksampler(any_model, tiny.conditioning(1), tiny.conditioning(0), 3.0), empty)
    assert all(float(v) == 2 for k, v in load_file(folders / "loras" / name).items() if k.endswith(".alpha"))


def test_a_stop_keeps_the_slider_at_strength_1(eps_model, vae, clip, folders):
    with stopping_at(2, 3):
        _model, lora, *_ = train(eps_model, clip, vae)
    assert all(float(v) == 2 for k, v in lora.items() if k.endswith(".alpha"))


def test_validation_images_show_three_strengths(eps_model, vae, clip):
    """Class images and a dropout of captions, as a subject's training leaves them, are not used, and the node says so."""
    with progress.node_text() as text:
        shown = train(eps_model, clip, vae, validation_count=1, class_images=option(ClassImages), caption_dropout=0.1)[5]
    assert shown.shape == (3, 64, 64, 3) and not torch.equal(shown[0], shown[2])
    said = ["class_images is not used by a slider", "caption_dropout of Dataset Options is not used by Train LoRA (DreamBooth)"]
    assert [line for line in text.lines if "not used" in line] == said


def test_sampled_images_keep_their_attribute(eps_model, vae, clip, folders):
    task, found = task_of(eps_model, clip, vae, asked(preserve="red\nblue", count=5), Data(flip=True)), []
    assert task.texts[0] == ("red a cat", "red a large cat", "red a small cat") and task.validation.prompt == "red a cat"
    assert len(task.images) == 10 and len(list(folders.rglob("class_images/*/*.png"))) == 5

    def note(images, chosen, rows, *more):
        found.append([text for row in rows for text, own in task.rows.items() if own is row])
        return torch.zeros(len(rows))

    task.errors(SimpleNamespace(errors=note), [2, 4, 7, 9], 0, 1.0)  # the last two are mirrored ones
    assert found == [["red a cat", "blue a cat"] * 2]


def test_image_pairs_are_trained_with_the_same_noise(eps_model, vae, clip):
    """So equal images on both ends have the same loss before training, and other ones not."""
    same = host.Slider("image pairs", before=[images()], after=[images()])
    one, other = losses(task_of(eps_model, clip, vae, same)), losses(task_of(eps_model, clip, vae, pairs()))
    assert one[0] == one[1] and other[0] != other[1]


@pytest.mark.parametrize(
    ("slider", "knobs", "message"),
    [
        (dict(), dict(new_word=option(NewWord)), "cannot use New Word"),
        (dict(), dict(train="all weights"), "Set train to 'adapter' and algorithm to 'LoRA'"),
        (dict(), dict(algorithm="LoHa"), "Set train to 'adapter' and algorithm to 'LoRA'"),
        (dict(), dict(captions="a\nb"), "cannot use captions of Dataset Options"),
        (dict(positive="a small cat"), {}, "are both 'a small cat'"),
        (dict(learn="image pairs", before=[images(1)], after=[images()]), {}, "There are 1 images before and 2 after"),
        (dict(learn="image pairs", before=[images(2, 72)], after=[images()]), {}, "of pair 1 differ in size"),
        (dict(learn="image pairs", before=[images()], after=[images()]), dict(images=[images()]), "learns from pairs of its own"),
        (dict(learn="image pairs"), {}, "There are no images"),
    ],
)
def test_what_a_slider_cannot_use_is_named(slider, knobs, message, eps_model, vae, clip, folders):
    with pytest.raises(ValueError, match=message):
        train(eps_model, clip, vae, asked(**slider), **knobs)
    assert not list(folders.rglob("*.safetensors"))


def test_missing_memory_is_told_in_batches_of_the_user(eps_model, vae, clip, monkeypatch):
    """A step is of two parts, which are no setting."""
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2**10)
    with pytest.raises(ValueError, match="set batch_size to 1 and accumulate to 2 "):
        train(eps_model, clip, vae, batch_size=2)


def test_only_a_slider_needs_no_images(eps_model, vae, clip):
    with pytest.raises(ValueError, match="There are no images of the subject"):
        train(eps_model, clip, vae, concept_slider=[], new_word=option(NewWord), instance_prompt="a <concept>")


def test_images_of_pairs_need_their_mode():
    with pytest.raises(ValueError, match="connected, but learn is 'prompts'"):
        asked(before=[images()])


def test_a_slider_has_autos_of_its_own():
    found = {learn: families.setting("DreamBoothTrainer", "steps", "eps", {"concept_slider": host.Slider(learn)}).value for learn in host.LEARN}
    assert set(found.values()) == {1000} and families.setting("DreamBoothTrainer", "steps", "eps", {"concept_slider": None}).value == 500
