"""Textual inversion on tiny models of several families: gradients, words in prompts, and embedding files."""

import gc
import json
import weakref
from dataclasses import replace

import comfy.model_management
import comfy.sd1_clip
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from controlled_diffusion.nodes.host import gradients
from controlled_diffusion.nodes.host.model_folder import check_name
from controlled_diffusion.nodes.host.training import denoiser as training_denoiser
from controlled_diffusion.nodes.host.training import run, trainer
from controlled_diffusion.nodes.host.training import textual_inversion as host
from controlled_diffusion.nodes.host.training.denoiser import Objective, levels
from controlled_diffusion.nodes.host.training.embeddings import EMBEDDINGS
from controlled_diffusion.nodes.textual_inversion import TIEmbeddingTrainer
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.loop import Loop
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation
from controlled_diffusion.training.textual_inversion import Word
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import tiny, tiny_text
from host.training import derivatives, execute, full_disk, images, inside

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
NO_IMAGES = Validation("<z>", count=0)


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def settings(**more):
    return Settings(**{"steps": 3, "batch_size": 2, "learning_rate": 0.01, "seed": 4, "warmup": 0, **more})


def task_of(model, clip, vae, word=Word("<z>", "cat", 2), templates=("a photo of {}", "{} here"), objective=Objective(Levels()), **more):
    data = Data(**{"images": [images(3)], **more.pop("data", {})})
    with torch.inference_mode(False), torch.no_grad():
        return host.prepare(model, clip, vae, data, word, templates, objective, settings(**more), NO_IMAGES)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("weighting", ["own", "min-snr"])
def test_vector_gradients_agree_with_finite_differences(family, weighting, vae, clip):
    objective = Objective(Levels(low=0.2, high=0.9), weighting)
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, objective=objective)
    exact, measured = derivatives(task)
    assert abs(exact) > 1e-6
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_gradients_with_several_text_encoders(kind, folders):
    clip = tiny_text.clip(kind, [str(folders / "embeddings")])
    task = task_of(tiny_text.denoiser(kind), clip, tiny_text.vae(kind), objective=Objective(Levels(low=0.3, high=0.9)))
    assert set(task.word.parameters) == set(tiny_text.KINDS[kind][2])
    exact, measured = derivatives(task)
    assert_close(exact, measured, rtol=0.03, atol=1e-6)
    encoders = weakref.ref(clip.cond_stage_model)
    del clip, task
    gc.collect()
    assert encoders() is None  # Flux writes in place; until ComfyUI has let go, each loading of a model collects garbage


def gradient(task):
    p = task.word.parameters["clip_l"]
    return inside(task, lambda denoiser: torch.autograd.grad(task.loss(denoiser, 0), p)[0])


def losses_of(task, numbers):
    """The loss of single samples, each as a batch of one."""
    alone = replace(task, settings=replace(task.settings, batch_size=1))
    return inside(alone, lambda denoiser: [float(alone.loss(denoiser, n)) for n in numbers])


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_a_batch_is_the_mean_of_its_samples(family, vae, clip):
    """ComfyUI's LoRA trainer averages the predictions of all prompts of a batch; here each image has its own."""
    data = {"captions": ["red", "a very long caption " * 30, "(blue:1.4)"], "images": [images(2), images(1, 48)]}
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, batch_size=6, data=data)
    together = inside(task, lambda denoiser: float(task.loss(denoiser, 1).detach()))
    assert_close(together, sum(losses_of(task, range(6, 12))) / 6, rtol=1e-4, atol=1e-6)
    assert len({round(v, 5) for v in losses_of(task, range(6, 12))}) == 6


def test_accumulated_batches_are_one_large_batch(eps_model, vae, clip):
    large = inside(t := task_of(eps_model, clip, vae, batch_size=4), lambda denoiser: float(t.loss(denoiser, 1).detach()))
    small = task_of(eps_model, clip, vae, batch_size=2)
    parts = inside(small, lambda denoiser: [float(small.loss(denoiser, i)) for i in (2, 3)])
    assert_close(large, sum(parts) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("weighting", ["own", "min-snr", "clean"])
def test_an_error_is_that_of_what_the_network_itself_predicts(family, weighting, vae, clip):
    """By hand: the network's output beside the noise, v or velocity that it should have given, and what that is of the clean image."""
    objective = Objective(Levels(low=0.1, high=0.9), weighting, 5.0)
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, objective=objective)

    def by_hand(denoiser, row, number):
        model = denoiser.guider.inner_model
        (sigma,) = s = torch.tensor(denoiser.sigmas(objective, 4, number, 1))
        x0 = model.process_latent_in(task.images.latents[number - 6])
        noise, scale = training_denoiser._noise(4, number, x0.shape), (s**2 + 1).sqrt()
        if family == "flow":
            seen, wanted, of_clean, snr = (1 - s) * x0 + s * noise, noise - x0, sigma**2, ((1 - sigma) / sigma) ** 2
        else:
            seen, snr = (x0 + s * noise) / scale, sigma**-2
            wanted, of_clean = (noise, sigma**2) if family == "eps" else ((noise - s * x0) / scale, sigma**2 / (1 + sigma**2))
        error = (model.diffusion_model(seen, model.model_sampling.timestep(s), context=row[0]) - wanted).square().mean()
        return error * {"own": 1.0, "min-snr": of_clean * snr.clamp(max=5.0), "clean": of_clean}[weighting]

    def question(denoiser):
        row = task.word.conditioning("a cat")[0]
        with torch.no_grad():
            given = denoiser.errors(task.images, [0, 1, 2], [row] * 3, objective, 4, 6)
            return given, torch.stack([by_hand(denoiser, row, number) for number in (6, 7, 8)])

    given, expected = inside(task, question)
    assert_close(given, expected, rtol=1e-3, atol=1e-6)
    assert len({round(float(v), 5) for v in given}) == 3


@pytest.mark.parametrize("weights", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_weights_that_are_kept_in_few_bits_are_trained_with(weights, vae, clip):
    """As with the same numbers in float32."""
    few = tiny.unet("eps", output_scale=0.3, weights=weights)
    whole = tiny.unet("eps", output_scale=0.3)
    whole.model.diffusion_model.load_state_dict({k: v.float() for k, v in few.model.diffusion_model.state_dict().items()})
    assert {p.dtype for p in few.model.diffusion_model.parameters()} == {weights}
    one, two = (gradient(task_of(m, clip, vae)) for m in (few, whole))
    assert one.any() and assert_close(one, two) is None
    assert train(few, clip, vae)[0] == "embedding:thing" and saved()["clip_l"].isfinite().all()


def test_images_at_other_scales_say_so_in_their_sentences(eps_model, vae, clip):
    plain = task_of(eps_model, clip, vae)
    task = task_of(eps_model, clip, vae, data={"augmentation": Augmentation(variants=8, scale=1.0)})
    assert len(task.images) == 27 and all(torch.equal(a, b) for a, b in zip(task.images.latents, plain.images.latents))
    texts = []
    encode = task.word.encode
    task.word.encode = lambda text: texts.append(text) or encode(text)
    inside(task, lambda denoiser: [task.loss(denoiser, i) for i in range(20)])
    hints = {text.split(" <z>")[0].removesuffix(" a photo of") for text in texts}
    assert {"very small", "a far away"} & hints and {"zoomed in", "close up"} & hints and {"a photo of", "<z> here"} & hints
    assert train(eps_model, clip, vae, variants=2, scale=1.0, crop=0.2, jitter=0.1)[0] == "embedding:thing"


def test_a_mask_limits_the_error(eps_model, vae, clip):
    half = torch.zeros(3, 64, 64)
    half[..., :32] = 1
    values = []
    for masks in ([], [torch.ones(3, 64, 64)], [half], [half[:1]]):
        task = task_of(eps_model, clip, vae, data={"masks": masks})
        values.append(inside(task, lambda denoiser, task=task: float(task.loss(denoiser, 0))))
    assert_close(values[0], values[1], rtol=1e-6, atol=0)
    assert abs(values[2] - values[0]) > 1e-3 * values[0] and values[2] == values[3]


def test_patches_of_the_network_act_and_guidance_does_not(eps_model, vae, clip):
    seen, patched = [], eps_model.clone()
    patched.set_model_unet_function_wrapper(lambda f, a: seen.append("network") or f(a["input"], a["timestep"], **a["c"]))
    patched.set_model_sampler_post_cfg_function(lambda args: seen.append("guidance") or args["denoised"])
    task = task_of(patched, clip, vae)
    inside(task, lambda denoiser: float(task.loss(denoiser, 0)))
    assert set(seen) == {"network"}


def train(model, clip, vae, given=None, **knobs):
    """(word, curve, validation) of the node with its defaults and a few steps."""
    usual = dict(name="thing", placeholder="<z>", initial_words="cat", steps=4, batch_size=2, warmup=0, seed=4, validation_steps=2)
    usual |= dict(validation_prompt="a {} there", validation_count=1, images=[images(3)] if given is None else given)
    return execute(TIEmbeddingTrainer, model=model, clip=clip, vae=vae, **usual | knobs)


def saved(name="thing"):
    return load_file(EMBEDDINGS.place(name))


def facts(name="thing"):
    with safe_open(EMBEDDINGS.place(name), "pt") as file:
        return file.metadata()


def test_it_learns_saves_and_shows(any_model, vae, folders, clip):
    word, curve, validation = train(any_model, clip, vae, steps=6, validation_every=2, validation_count=2, vectors=2, learning_rate=0.02)
    assert word == "embedding:thing" and validation.shape == (2 * 3, 64, 64, 3) and curve.shape[0] == 1 and curve.shape[-1] == 3
    assert {k: v.shape for k, v in saved().items()} == {"clip_l": (2, tiny.CONTEXT)}
    assert facts()["steps"] == "6" and "cat" in facts()["word"] and facts()["encoders"] == "clip_l"
    assert json.loads(facts()["settings"])["learning_rate"] == 0.02
    assert not torch.equal(saved()["clip_l"][0], saved()["clip_l"][1])
    assert [p.name for p in (folders / "embeddings").iterdir()] == ["thing.safetensors"]


def test_the_loss_falls_on_one_noisy_image(eps_model, vae, clip):
    """With many vectors and steps the word learns something of a random network: the mean loss over all samples falls."""

    def mean_loss(steps):
        word = Word("<z>", "cat", 4, "free")
        task = task_of(eps_model, clip, vae, word, steps=steps, learning_rate=0.1, batch_size=3, schedule="constant")
        with torch.inference_mode(False), torch.no_grad():
            loop = host.run(task, f"w{steps}")
        assert len(loop.history) == steps
        return sum(inside(task, lambda denoiser: [float(task.loss(denoiser, i)) for i in range(100, 106)])) / 6

    assert mean_loss(15) < 0.995 * mean_loss(1)


def test_a_list_of_images_and_captions_as_folder_loaders_give_it(eps_model, vae, clip):
    given = [images(1, 64), images(1, 48, seed=1), images(2, 64, seed=2)]
    word, _, _ = train(eps_model, clip, vae, given, captions=["one", "two", "three", "a <z> in rain"], flip=True)
    assert word == "embedding:thing" and "a <z> in rain" in facts()["prompts"]


@pytest.mark.parametrize("knobs", [dict(optimizer="adafactor"), dict(accumulate=2, average=0.5), dict(norm="keep"), dict(weighting="min-snr", timesteps="logit-normal")])  # fmt: skip
def test_options_change_the_word(eps_model, vae, knobs, clip):
    train(eps_model, clip, vae)
    train(eps_model, clip, vae, name="other", **knobs)
    assert torch.isfinite(saved("other")["clip_l"]).all() and not torch.equal(saved("other")["clip_l"], saved()["clip_l"])


def test_captions_are_dropped_by_noise_level(eps_model, vae, clip):
    """Never at pure noise and always at low-noise timesteps: what a sample is trained under goes with the level that it draws."""
    data = {"images": [images(1)], "captions": ["a red cat"], "clean_caption_dropout": 1.0}
    task, told = task_of(eps_model, clip, vae, data=data, batch_size=1), []
    encode = task.word.encode
    task.word.encode = lambda text: told.append("red" in text) or encode(text)
    levels = inside(task, lambda denoiser: [float(denoiser.log_snr(task.objective, task.settings.seed, i, 1)) for i in range(40)])
    inside(task, lambda denoiser: [task.loss(denoiser, i) for i in range(40)])
    told = told[-40:]
    kept, left_out = ([level for level, t in zip(levels, told) if t == there] for there in (True, False))
    assert len(kept) > 5 and len(left_out) > 5 and sum(kept) / len(kept) < sum(left_out) / len(left_out) - 1
    assert train(eps_model, clip, vae, caption_dropout=1.0, clean_caption_dropout=0.0, captions=["a red cat"] * 3)[0] == "embedding:thing"


def test_auto_levels_are_those_of_the_models_kind(eps_model, flow_model):
    assert levels(eps_model, "auto").kind == "uniform" and levels(flow_model, "auto").kind == "logit-normal"
    assert levels(flow_model, "uniform", low=0.2).low == 0.2


def test_another_gamma_is_another_training(eps_model, vae, clip):
    one, other = (task_of(eps_model, clip, vae, objective=Objective(Levels(), "min-snr", gamma)).about for gamma in (3.0, 5.0))
    assert [k for k in one if one[k] != other[k]] == ["gamma"]


def test_another_noise_schedule_is_another_training(eps_model, vae, clip):
    schedules = [ModelSamplingDiscrete().patch(eps_model, "eps", zsnr=zsnr)[0] for zsnr in (False, True)]
    one, other = (task_of(model, clip, vae).about for model in schedules)
    assert [k for k in one if one[k] != other[k]] == ["model"]


def test_noise_levels_keep_to_the_percents_asked_for(eps_model, vae, clip):
    seen, watched = [], eps_model.clone()
    watched.set_model_unet_function_wrapper(lambda f, a: seen.append(float(a["timestep"][0])) or f(a["input"], a["timestep"], **a["c"]))
    train(watched, clip, vae, steps=8, start_percent=0.25, end_percent=0.5, validation_count=0)
    sampling = eps_model.get_model_object("model_sampling")
    assert sampling.percent_to_sigma(0.5) * 0.99 <= min(seen) and max(seen) <= sampling.percent_to_sigma(0.25) * 1.01


def test_a_stop_at_the_last_validation_keeps_the_word(eps_model, vae, clip, monkeypatch):
    def stopped(*args):
        raise run.Stopped

    monkeypatch.setattr(trainer, "sampled", stopped)
    word, _, blocked = train(eps_model, clip, vae, steps=2)
    assert word == "embedding:thing" and facts()["steps"] == "2" and "no validation image" in blocked.message


def test_a_full_disk_loses_the_state_but_not_the_word(eps_model, vae, clip, monkeypatch):
    monkeypatch.setattr(Loop, "save", full_disk)
    train(eps_model, clip, vae, steps=2)
    assert facts()["steps"] == "2"


def test_a_stop_before_the_first_step_writes_nothing(eps_model, vae, clip):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(run.Stopped):
        train(eps_model, clip, vae)
    assert EMBEDDINGS.existing("thing") is None


def test_continuing_with_other_data_is_refused_by_what_differs(eps_model, vae, clip):
    train(eps_model, clip, vae)
    with pytest.raises(ValueError, match="another training: images was"):
        train(eps_model, clip, vae, [images(seed=7)], if_exists="continue")
    with pytest.raises(ValueError, match="batch_size was 2, now 3"):
        train(eps_model, clip, vae, batch_size=3, if_exists="continue")


def test_a_word_is_replaced_where_prompts_find_it(eps_model, vae, folders, clip):
    """The host takes the first file of a name in any subfolder, so that there must not be a second."""
    (folders / "embeddings" / "deep").mkdir()
    save_file({"clip_l": torch.zeros(1, 4)}, folders / "embeddings" / "deep" / "thing.safetensors")
    assert train(eps_model, clip, vae, if_exists="replace")[0] == "embedding:thing"
    assert load_file(folders / "embeddings" / "deep" / "thing.safetensors")["clip_l"].shape == (1, tiny.CONTEXT)
    assert not (folders / "embeddings" / "thing.safetensors").exists()
    assert train(eps_model, clip, vae, name="other/thing")[0] == "embedding:other/thing_2"  # or `embedding:thing` could mean both


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a\\b", "", "my x", "x.safetensors", "a//b", ".hidden", "a[b", "..", "x/."])
def test_bad_file_names_are_refused(name):
    with pytest.raises(ValueError, match="The name '"):
        check_name(name)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(given=[]), "There are no images"),
        (dict(captions=["a\nb"]), "2 captions for 3 images"),
        (dict(placeholder="cat"), "'cat' is a word that the model knows"),
        (dict(initial_words="<|endoftext|>"), "hold no word that clip_l knows"),
        (dict(templates="own", own_templates="a photo"), r"'a photo' lacks \{\}"),
        (dict(validation_prompt="a cat"), "validation prompt 'a cat' lacks the new word"),
        (dict(masks=[torch.zeros(3, 64, 64)]), "Mask 1 is empty"),
        (dict(masks=[torch.ones(2, 64, 64)]), "2 masks for 3 images"),
        (dict(masks=[torch.ones(3, 32, 64)]), "Mask 1 is 64 x 32, its image 64 x 64"),
        (dict(start_percent=0.6, end_percent=0.5), r"start_percent is 0\.6 and end_percent 0\.5; give 0 <= start_percent"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(eps_model, vae, knobs, message, folders, clip):
    with pytest.raises(ValueError, match=message):
        train(eps_model, clip, vae, knobs.pop("given", None), **knobs)
    assert not list(folders.rglob("*.safetensors"))


def test_text_encoders_that_read_no_embeddings_are_refused(eps_model, vae):
    with pytest.raises(ValueError, match="SD1Tokenizer reads no embedding files"):
        train(eps_model, tiny.clip(torch.float32), vae)


def test_dynamic_weights_are_copied_or_refused(eps_model, vae, clip):
    with pytest.raises(ValueError, match=r"The model is loaded dynamically.*--disable-dynamic-vram"):
        train(tiny.dynamic(eps_model), clip, vae)
    made = tiny.dynamic(eps_model, lambda: tiny.unet("eps", seed=5))
    train(made, clip, vae)
    with torch.inference_mode(False):
        copied = gradients.trainable(made)[0]
    assert copied.model is not made.model and not copied.is_dynamic()


def test_models_that_are_partly_off_loaded_are_refused(eps_model):
    eps_model.model.model_lowvram = True
    with pytest.raises(ValueError, match=r"does not fit into memory whole, which gradients need; .* GB are free"):
        gradients.check_whole([eps_model])


def test_the_loop_scales_the_loss_for_half_precision_alone(eps_model):
    assert gradients.half_precision_scale(eps_model) == 1.0
    eps_model.model.manual_cast_dtype = torch.float16
    assert gradients.half_precision_scale(eps_model) > 1
