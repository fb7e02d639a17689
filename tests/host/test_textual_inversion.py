import json
import shutil
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import folder_paths
import pytest
import torch
from controlled_diffusion.nodes.host import gradients
from controlled_diffusion.nodes.host.training import denoiser, new_words, run, trainer
from controlled_diffusion.nodes.host.training import textual_inversion as host
from controlled_diffusion.nodes.host.training.embeddings import EMBEDDINGS
from controlled_diffusion.nodes.host.training.images import images_of
from controlled_diffusion.nodes.textual_inversion import TIEmbeddingTrainer
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.loop import Diverged, Loop
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation
from controlled_diffusion.training.textual_inversion import Concept, Vocabulary
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compare import assert_close, repeated
from host import tiny, tiny_text
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
OBJECTIVE = denoiser.Objective(Levels())
NO_IMAGES = Validation("<z>", count=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Embeddings and outputs of this file's tests."""
    made = tmp_path_factory.mktemp("host")
    (made / "embeddings").mkdir()
    before = folder_paths.get_output_directory(), folder_paths.folder_names_and_paths["embeddings"]
    folder_paths.set_output_directory(str(made / "output"))
    folder_paths.folder_names_and_paths["embeddings"] = ([str(made / "embeddings")], {".safetensors", ".pt"})
    yield made
    folder_paths.set_output_directory(before[0])
    folder_paths.folder_names_and_paths["embeddings"] = before[1]


@pytest.fixture(scope="module")
def clip(base):
    """A tiny CLIP that reads embeddings; its weights are made in inference mode, as a loader node's are. Not to be changed."""
    with torch.inference_mode():
        return tiny.clip(torch.float32, embedding_directory=folder_paths.get_folder_paths("embeddings"))


@pytest.fixture(scope="module")
def several(base):
    """A CLIP of a kind in `tiny_text.KINDS`."""
    return cache(lambda kind: tiny_text.clip(kind, folder_paths.get_folder_paths("embeddings")))


@pytest.fixture
def folders(base):
    """The folders, empty again."""
    for folder in ("embeddings", "output"):
        shutil.rmtree(base / folder, ignore_errors=True)
        (base / folder).mkdir()
    return base


def images(count=3, size=64, seed=0):
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def settings(**more):
    return Settings(**{"steps": 3, "batch_size": 2, "learning_rate": 0.01, "seed": 4, "warmup": 0, **more})


def task_of(model, clip, vae, word=host.Word("<z>", "cat", 2), templates=("a photo of {}", "{} here"), objective=OBJECTIVE, **more):
    data = Data(**{"images": [images()], **more.pop("data", {})})
    with torch.inference_mode(False), torch.no_grad():
        return host.prepare(model, clip, vae, data, word, templates, objective, settings(**more), NO_IMAGES)


def inside(task, question, mutations=False):
    """What `question(ground)` gives while the host's sampling runs, with gradients."""
    found = []

    def steps(ground):
        found.append(question(ground))
        return iter(())

    course = run.Course(
        task.model, task.word.conditioning("a"), task.loop(), task.loss, torch.Size([2, *task.images.latents[0].shape[1:]])
    )
    lesson = run.Lesson(steps, [task.word.clip.cond_stage_model], lambda step: None, mutations)
    with torch.inference_mode(False), torch.no_grad():
        guider = run.comfy.samplers.CFGGuider(task.model)
        guider.inner_set_conds({"positive": course.start})
        guider.sample(torch.zeros(course.batch), torch.zeros(course.batch), lesson, torch.ones(1), disable_pbar=True, seed=0)
    return found[0]


def test_weights_that_loading_moves_are_trained_with(folders, eps_model):
    """On a GPU the host gives weights that a node made in inference mode new data, in the mode that it is called in."""
    with torch.inference_mode():
        clip = tiny.clip(torch.float32, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    given = [tiny.as_on_a_gpu(made) for made in (eps_model, clip, tiny.vae())]
    for number in range(2):
        _, curve, images = train(*given, name=f"cat{number}", steps=2, validation_count=1, validation_steps=1)
        assert curve.isfinite().all() and images.isfinite().all()




def derivatives(task, mutations=False):
    """(derivative by autograd, by differences) of the loss along a random direction of all vectors."""
    parameters = list(task.word.concept.parameters.values())
    draw = torch.Generator().manual_seed(3)
    with torch.inference_mode(False):
        along = [torch.randn(p.shape, generator=draw) for p in parameters]

    def question(ground):
        loss = task.loss(ground, 0)
        gradients = torch.autograd.grad(loss, parameters)
        assert all(float(g.abs().sum()) > 0 for g in gradients)
        exact = sum(float((g * a).sum()) for g, a in zip(gradients, along))
        values, step = [], 0.02
        with torch.no_grad():
            for sign in (1, -1):
                for p, a in zip(parameters, along):
                    p.add_(a, alpha=sign * step)
                values.append(float(task.loss(ground, 0)))
                for p, a in zip(parameters, along):
                    p.sub_(a, alpha=sign * step)
        return exact, (values[0] - values[1]) / (2 * step)

    return inside(task, question, mutations)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("weighting", ["own", "min-snr"])
def test_the_gradient_of_the_vectors_agrees_with_finite_differences(family, weighting, vae, clip):
    objective = denoiser.Objective(Levels(low=0.2, high=0.9), weighting)
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, objective=objective)
    exact, measured = derivatives(task)
    assert abs(exact) > 1e-6
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_so_it_does_for_models_with_several_text_encoders(kind, several):
    clip = several(kind)
    task = task_of(tiny_text.denoiser(kind), clip, tiny_text.vae(kind), objective=denoiser.Objective(Levels(low=0.3, high=0.9)))
    assert set(task.word.concept.parameters) == set(tiny_text.KINDS[kind][2])
    exact, measured = derivatives(task, mutations=kind == "flux")
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


def gradient(task, mutations):
    p = task.word.concept.parameters["clip_l"]
    return inside(task, lambda ground: torch.autograd.grad(task.loss(ground, 0), p)[0], mutations)


def test_both_ways_of_recording_give_the_same_gradient(any_model, vae, clip):
    one, two = (gradient(task_of(any_model, clip, vae), m) for m in (True, False))
    assert_close(one, two)


def test_networks_that_change_what_is_saved_are_found_out_and_trained_all_the_same(several, folders):
    task = task_of(tiny_text.denoiser("flux"), several("flux"), tiny_text.vae("flux"), steps=3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(task, False)
    with torch.inference_mode(False), torch.no_grad():
        loop = host.run(task, "flux")
    assert loop.done == 3 and set(saved("flux")) == {"clip_l", "t5xxl"}


def test_hooks_of_the_training_are_gone_after_it(eps_model, vae, clip):
    train(eps_model, clip, vae)
    assert not [m for part in (clip.cond_stage_model, eps_model.model) for m in part.modules() if m._forward_pre_hooks]


def losses_of(task, numbers):
    """The loss of single samples, each as a batch of one."""
    alone = replace(task, settings=replace(task.settings, batch_size=1))
    return inside(alone, lambda ground: [float(alone.loss(ground, n)) for n in numbers])


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_a_batch_is_the_mean_of_its_samples_each_under_its_own_prompt(family, vae, clip):
    """The host's LoRA trainer averages the predictions of all prompts of a batch; here each image has its own."""
    data = {"captions": ["red", "a very long caption " * 30, "(blue:1.4)"], "images": [images(2), images(1, 48)]}
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, batch_size=6, data=data)
    together = inside(task, lambda ground: float(task.loss(ground, 1).detach()))
    assert_close(together, sum(losses_of(task, range(6, 12))) / 6, rtol=1e-4, atol=1e-6)
    assert len({round(v, 5) for v in losses_of(task, range(6, 12))}) == 6


def test_accumulated_batches_are_the_same_samples_as_one_large_batch(eps_model, vae, clip):
    large = inside(t := task_of(eps_model, clip, vae, batch_size=4), lambda ground: float(t.loss(ground, 1).detach()))
    small = task_of(eps_model, clip, vae, batch_size=2)
    parts = inside(small, lambda ground: [float(small.loss(ground, i)) for i in (2, 3)])
    assert_close(large, sum(parts) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("weighting", ["own", "min-snr", "clean"])
def test_an_error_is_that_of_what_the_network_itself_predicts(family, weighting, vae, clip):
    """By hand: the network's output beside the noise, v or velocity that it should have given, and what that is of the clean image."""
    objective = denoiser.Objective(Levels(low=0.1, high=0.9), weighting, 5.0)
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, objective=objective)

    def by_hand(ground, row, number):
        model = ground.guider.inner_model
        (sigma,) = s = torch.tensor(ground.sigmas(objective, 4, number, 1))
        x0 = model.process_latent_in(task.images.latents[number - 6])
        noise, scale = denoiser._noise(4, number, x0.shape), (s**2 + 1).sqrt()
        if family == "flow":
            seen, wanted, of_clean, snr = (1 - s) * x0 + s * noise, noise - x0, sigma**2, ((1 - sigma) / sigma) ** 2
        else:
            seen, snr = (x0 + s * noise) / scale, sigma**-2
            wanted, of_clean = (noise, sigma**2) if family == "eps" else ((noise - s * x0) / scale, sigma**2 / (1 + sigma**2))
        error = (model.diffusion_model(seen, model.model_sampling.timestep(s), context=row[0]) - wanted).square().mean()
        return error * {"own": 1.0, "min-snr": of_clean * snr.clamp(max=5.0), "clean": of_clean}[weighting]

    def question(ground):
        row = task.word.conditioning("a cat")[0]
        with torch.no_grad():
            given = ground.errors(task.images, [0, 1, 2], [row] * 3, objective, 4, 6)
            return given, torch.stack([by_hand(ground, row, number) for number in (6, 7, 8)])

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
    one, two = (gradient(task_of(m, clip, vae), False) for m in (few, whole))
    assert one.any() and assert_close(one, two) is None
    assert train(few, clip, vae)[0] == "embedding:thing" and saved()["clip_l"].isfinite().all()


def test_images_at_other_scales_say_so_in_their_sentences(eps_model, vae, clip):
    plain = task_of(eps_model, clip, vae)
    task = task_of(eps_model, clip, vae, data={"augmentation": Augmentation(variants=8, scale=1.0)})
    assert len(task.images) == 27 and all(torch.equal(a, b) for a, b in zip(task.images.latents, plain.images.latents))
    told = []
    encode = task.word.encode
    task.word.encode = lambda text: told.append(text) or encode(text)
    inside(task, lambda ground: [task.loss(ground, i) for i in range(20)])
    hints = {text.split(" <z>")[0].removesuffix(" a photo of") for text in told}
    assert {"very small", "a far away"} & hints and {"zoomed in", "close up"} & hints and {"a photo of", "<z> here"} & hints
    assert train(eps_model, clip, vae, variants=2, scale=1.0, crop=0.2, jitter=0.1)[0] == "embedding:thing"


@pytest.mark.parametrize("change", [dict(crop=0.3), dict(jitter=0.3)])
def test_variants_are_of_the_images_and_not_the_same(change, eps_model, vae, clip):
    images = task_of(eps_model, clip, vae, data={"augmentation": Augmentation(variants=2, **change)}).images
    assert len(images) == 9 and not images.hints and len({float(z.sum()) for z in images.latents}) == 9


def test_colours_of_images_with_an_alpha_channel_change_as_those_without(eps_model, vae, clip):
    given = images()
    found = [
        task_of(eps_model, clip, vae, data={"images": [p], "augmentation": Augmentation(variants=2, jitter=0.3)}).images.latents
        for p in (given, torch.cat([given, torch.ones(3, 64, 64, 1)], -1))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_mask_lies_where_its_image_does_though_the_vae_cuts_the_image(eps_model, vae, clip):
    wide, mask = torch.rand(1, 64, 78, 3), torch.zeros(1, 64, 78)
    mask[:, :, 7 + 8 : 7 + 16] = 1  # the VAE takes 72 of 78 columns, from the fourth on
    task = task_of(eps_model, clip, vae, data={"images": [wide], "masks": [mask]})
    found = task.images.masks[0][0, 0]
    assert_close(found[0], torch.tensor([0, 4 / 8, 4 / 8, *[0.0] * 6]))


def test_a_mask_of_ones_changes_nothing_and_another_limits_the_error(eps_model, vae, clip):
    half = torch.zeros(3, 64, 64)
    half[..., :32] = 1
    values = []
    for masks in ([], [torch.ones(3, 64, 64)], [half], [half[:1]]):
        task = task_of(eps_model, clip, vae, data={"masks": masks})
        values.append(inside(task, lambda ground, task=task: float(task.loss(ground, 0))))
    assert_close(values[0], values[1], rtol=1e-6, atol=0)
    assert abs(values[2] - values[0]) > 1e-3 * values[0] and values[2] == values[3]


def test_other_nodes_patches_of_the_network_act_in_training_and_their_guidance_does_not(eps_model, vae, clip):
    seen, patched = [], eps_model.clone()
    patched.set_model_unet_function_wrapper(lambda f, a: seen.append("network") or f(a["input"], a["timestep"], **a["c"]))
    patched.set_model_sampler_post_cfg_function(lambda args: seen.append("guidance") or args["denoised"])
    task = task_of(patched, clip, vae)
    inside(task, lambda ground: float(task.loss(ground, 0)))
    assert set(seen) == {"network"}




def test_a_word_that_starts_as_one_word_is_that_word(vae, eps_model, clip):
    task = task_of(eps_model, clip, vae, host.Word("<z>", "cat", 1))
    for prompt in ("a photo of {}", "{}", "(a {}:1.3) here"):
        new, known = task.word.conditioning(prompt.format("<z>")), clip.encode_from_tokens_scheduled(clip.tokenize(prompt.format("cat")))
        assert_close(new[0][0], known[0][0])
        assert_close(new[0][1]["pooled_output"], known[0][1]["pooled_output"])


def test_with_no_initial_words_it_starts_as_the_mean_of_all(vae, eps_model, clip):
    task = task_of(eps_model, clip, vae, host.Word("<z>", "", 1))
    table = new_words.encoders(clip)[0].usual
    assert_close(task.word.concept.rows("clip_l").detach(), table.mean(0, keepdim=True), atol=1e-6, rtol=1e-4)


def concept_for(clip, vectors=2):
    found = new_words.encoders(clip)
    draw = torch.Generator().manual_seed(9)
    starts = {e.key: torch.randn(vectors, e.table.shape[1], generator=draw) for e in found}
    return Concept(starts, {e.key: Vocabulary(1.0, 1.0) for e in found}, "free")


@pytest.mark.parametrize("kind", ["sd1", *tiny_text.KINDS])
@pytest.mark.parametrize("vectors", [1, 3, 9])
def test_the_saved_file_gives_the_trained_word_back_through_the_hosts_loader(kind, vectors, folders, request, several):
    clip = request.getfixturevalue("clip") if kind == "sd1" else several(kind)
    widths = {"clip_l": tiny.CONTEXT} if kind == "sd1" else tiny_text.KINDS[kind][2]
    with torch.inference_mode(False), torch.no_grad():
        word = new_words.NewWord(clip, "<z>", concept_for(clip, vectors), vectors)
        EMBEDDINGS.save("toys/my-word", word.concept.tensors(), {})
    saved = load_file(folders / "embeddings" / "toys" / "my-word.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: (vectors, w) for k, w in widths.items()}
    for prompt in ("{}", "a photo of {}, red (and {}:1.2) " + "with many other words " * 25):
        trained = word.conditioning(prompt.replace("{}", "<z>"))
        used = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.replace("{}", "embedding:toys/my-word")))
        assert len(trained) == len(used) == 1
        assert torch.equal(trained[0][0], used[0][0])
        assert torch.equal(trained[0][1]["pooled_output"], used[0][1]["pooled_output"])


def test_a_prompt_encoded_in_training_is_what_the_host_encodes(folders, clip):
    with torch.inference_mode(False), torch.no_grad():
        word = new_words.NewWord(clip, "<z>", concept_for(clip), 2)
        (features, extras), (hosts, hosts_extras) = word.encode("a <z> there"), word.conditioning("a <z> there")[0]
    assert torch.equal(features, hosts) and torch.equal(extras["pooled_output"], hosts_extras["pooled_output"])


def test_the_layer_that_the_user_chose_is_the_one_that_is_trained_on(folders, clip):
    other_clip, clip = clip, clip.clone()
    clip.clip_layer(-2)
    with torch.inference_mode(False), torch.no_grad():
        word = new_words.NewWord(clip, "<z>", concept_for(clip), 2)
        other = new_words.NewWord(other_clip, "<z>", word.concept, 2)
        assert torch.equal(word.encode("a <z>")[0], word.conditioning("a <z>")[0][0])
        assert not torch.equal(word.encode("a <z>")[0], other.encode("a <z>")[0])


def test_embeddings_that_the_user_has_keep_their_place_in_captions(folders, clip):
    save_file({"clip_l": torch.full((1, tiny.CONTEXT), 0.3)}, folders / "embeddings" / "other.safetensors")
    with torch.inference_mode(False), torch.no_grad():
        word = new_words.NewWord(clip, "<z>", concept_for(clip), 2)
        tokens = [t for t, _ in word.learnt("embedding:other and <z>")["l"][0] if torch.is_tensor(t)]
    assert torch.equal(tokens[0], torch.full((tiny.CONTEXT,), 0.3))
    assert_close(torch.stack(tokens[1:]), word.concept.rows("clip_l").detach())


def test_the_users_tokenizer_is_not_touched(folders, clip):
    before = dict(vars(clip.tokenizer.clip_l))
    with torch.inference_mode(False), torch.no_grad():
        new_words.NewWord(clip, "<z>", concept_for(clip), 2).conditioning("a <z>")
    assert vars(clip.tokenizer.clip_l) == before and clip.tokenizer.clip_l.embedding_directory == [str(folders / "embeddings")]




def train(model, clip, vae, given=None, **knobs):
    """(word, curve, validation) of the node with its defaults and a few steps."""
    usual = defaults(TIEmbeddingTrainer) | dict(name="thing", placeholder="<z>", initial_words="cat", steps=4, batch_size=2, warmup=0)
    usual |= dict(validation_prompt="a {} there", validation_steps=2, validation_count=1, seed=4)
    lists = {k: v if isinstance(v, list) else [v] for k, v in {**usual, **knobs}.items()}
    return TIEmbeddingTrainer.execute(model=[model], clip=[clip], vae=[vae], images=[images()] if given is None else given, **lists).args


def saved(name="thing"):
    return load_file(EMBEDDINGS.place(name))


def facts(name="thing"):
    with safe_open(EMBEDDINGS.place(name), "pt") as file:
        return file.metadata()


def state_dicts(model, clip, vae):
    parts = model.model, clip.cond_stage_model, vae.first_stage_model
    return [{k: v.cpu().clone() for k, v in part.state_dict().items()} for part in parts]


def test_it_learns_saves_and_shows(any_model, vae, folders, clip):
    word, curve, validation = train(any_model, clip, vae, steps=6, validation_every=2, validation_count=2, vectors=2)
    assert word == "embedding:thing" and validation.shape == (2 * 3, 64, 64, 3) and curve.shape[0] == 1 and curve.shape[-1] == 3
    assert {k: v.shape for k, v in saved().items()} == {"clip_l": (2, tiny.CONTEXT)}
    assert facts()["steps"] == "6" and "cat" in facts()["word"]
    assert not torch.equal(saved()["clip_l"][0], saved()["clip_l"][1])
    assert [p.name for p in (folders / "embeddings").iterdir()] == ["thing.safetensors"]


def test_nothing_but_the_word_is_changed(any_model, vae, clip):
    options, before = any_model.model_options.copy(), state_dicts(any_model, clip, vae)
    sampled = ksample(any_model)
    train(any_model, clip, vae, steps=5)
    for now, then in zip(state_dicts(any_model, clip, vae), before):
        assert now.keys() == then.keys() and all(torch.equal(now[k], then[k]) for k in now)
    assert any_model.model_options == options and not any_model.wrappers and not any_model.get_nested_additional_models()
    assert not any(p.requires_grad or p.grad is not None for m in (any_model.model, clip.cond_stage_model) for p in m.parameters())
    assert not comfy.model_management.in_training
    assert torch.equal(ksample(any_model), sampled)


def ksample(model):
    from host.sampling import ksampler

    return ksampler(model, tiny.conditioning(1), tiny.conditioning(0), 3.0)


def test_the_loss_falls_on_one_noisy_image(eps_model, vae, clip):
    """With many vectors and steps the word learns something of a random network: the mean loss over all samples falls."""

    def mean_loss(steps):
        word = host.Word("<z>", "cat", 4, "free")
        task = task_of(eps_model, clip, vae, word, steps=steps, learning_rate=0.1, batch_size=3, schedule="constant")
        with torch.inference_mode(False), torch.no_grad():
            loop = host.run(task, f"w{steps}")
        assert len(loop.history) == steps
        return sum(inside(task, lambda ground: [float(task.loss(ground, i)) for i in range(100, 106)])) / 6

    assert mean_loss(15) < 0.995 * mean_loss(1)


def test_the_same_seed_learns_the_same_word_and_another_another(eps_model, vae, clip):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(eps_model, clip, vae, name=name, seed=seed)
    assert repeated(saved("a")["clip_l"], saved("b")["clip_l"]) and not torch.equal(saved("a")["clip_l"], saved("c")["clip_l"])


def test_a_list_of_images_and_captions_as_folder_loaders_give_it(eps_model, vae, clip):
    given = [images(1, 64), images(1, 48, seed=1), images(2, 64, seed=2)]
    word, _, _ = train(eps_model, clip, vae, given, captions=["one", "two", "three", "a <z> in rain"], flip=True)
    assert word == "embedding:thing" and "a <z> in rain" in facts()["prompts"]


def test_flipped_images_keep_their_captions(eps_model, vae, clip):
    task = task_of(eps_model, clip, vae, data={"flip": True, "captions": ["one", "two", "three"], "masks": [images(3)[..., 0]]})
    plain = task_of(eps_model, clip, vae)
    assert len(task.images) == 6 and task.images.originals == 3
    assert all(torch.equal(a, b) for a, b in zip(task.images.latents, plain.images.latents))
    assert_close(task.images.latents[4], vae.encode(images()[1:2].flip(2)))
    assert_close(task.images.masks[4], task.images.masks[1].flip(-1))


@pytest.mark.parametrize("knobs", [dict(optimizer="prodigy", learning_rate=1.0), dict(accumulate=2, average=0.5), dict(norm="keep"), dict(weighting="min-snr", timesteps="logit-normal")])  # fmt: skip
def test_options_change_the_word(eps_model, vae, knobs, clip):
    train(eps_model, clip, vae)
    train(eps_model, clip, vae, name="other", **knobs)
    assert torch.isfinite(saved("other")["clip_l"]).all() and not torch.equal(saved("other")["clip_l"], saved()["clip_l"])


def test_captions_are_left_out_by_the_noise_where_it_is_asked_for(eps_model, vae, clip):
    """Never at pure noise and always at clean levels: what a sample is learnt under goes with the level that it draws."""
    data = {"images": [images(1)], "captions": ["a red cat"], "clean_caption_dropout": 1.0}
    task, told = task_of(eps_model, clip, vae, data=data, batch_size=1), []
    encode = task.word.encode
    task.word.encode = lambda text: told.append("red" in text) or encode(text)
    levels = inside(task, lambda ground: [float(ground.log_snr(task.objective, task.settings.seed, i, 1)) for i in range(40)])
    inside(task, lambda ground: [task.loss(ground, i) for i in range(40)])
    told = told[-40:]
    kept, left_out = ([level for level, t in zip(levels, told) if t == there] for there in (True, False))
    assert len(kept) > 5 and len(left_out) > 5 and sum(kept) / len(kept) < sum(left_out) / len(left_out) - 1
    assert train(eps_model, clip, vae, caption_dropout=1.0, clean_caption_dropout=0.0, captions=["a red cat"] * 3)[0] == "embedding:thing"


def test_auto_levels_are_those_of_the_models_kind(eps_model, flow_model):
    assert denoiser.levels(eps_model, "auto").kind == "uniform" and denoiser.levels(flow_model, "auto").kind == "logit-normal"
    assert denoiser.levels(flow_model, "uniform", low=0.2).low == 0.2


def test_noise_levels_keep_to_the_percents_asked_for(eps_model, vae, clip):
    seen, watched = [], eps_model.clone()
    watched.set_model_unet_function_wrapper(lambda f, a: seen.append(float(a["timestep"][0])) or f(a["input"], a["timestep"], **a["c"]))
    train(watched, clip, vae, steps=8, start_percent=0.25, end_percent=0.5, validation_count=0)
    sampling = eps_model.get_model_object("model_sampling")
    assert sampling.percent_to_sigma(0.5) * 0.99 <= min(seen) and max(seen) <= sampling.percent_to_sigma(0.25) * 1.01




@pytest.fixture
def cancel():
    """Stops the host after a number of steps, as its button does; `of` so many, as images that are encoded count too."""

    def after(steps, of=8):
        def watch(value, total, preview, node_id=None):
            if (value, total) == (steps, of):
                comfy.model_management.interrupt_current_processing(True)

        comfy.utils.set_progress_bar_global_hook(watch)

    yield after
    comfy.utils.set_progress_bar_global_hook(None)
    comfy.model_management.interrupt_current_processing(False)


def test_a_stop_keeps_what_is_learnt_and_another_run_continues_to_the_same_word(eps_model, vae, cancel, clip):
    train(eps_model, clip, vae, steps=8, name="whole")
    cancel(1)  # the host leaves out updates that follow fast, but never the first
    word, curve, blocked = train(eps_model, clip, vae, steps=8)
    assert word == "embedding:thing" and facts()["steps"] == "1" and "no validation image" in blocked.message and curve.ndim == 4
    part = saved()["clip_l"]
    cancel(-1)
    train(eps_model, clip, vae, steps=8, if_exists="continue")
    assert facts()["steps"] == "8" and not torch.equal(part, saved()["clip_l"])
    assert repeated(saved()["clip_l"], saved("whole")["clip_l"])


def test_a_stop_at_the_last_validation_images_keeps_the_finished_word(eps_model, vae, clip, monkeypatch):
    def stopped(*args):
        raise run.Stopped

    monkeypatch.setattr(trainer, "sampled", stopped)
    word, _, blocked = train(eps_model, clip, vae, steps=2)
    assert word == "embedding:thing" and facts()["steps"] == "2" and "no validation image" in blocked.message


def test_a_full_disk_loses_the_state_but_not_the_word(eps_model, vae, clip, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Loop, "save", full)
    with pytest.raises(OSError, match="No space"):
        train(eps_model, clip, vae, steps=2)
    assert facts()["steps"] == "2"


def test_a_stop_while_images_are_encoded_is_passed_on(eps_model, vae, clip, cancel):
    cancel(1, of=3)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        images_of(vae, [images(3)])


def test_a_continued_run_repeats_the_losses(any_model, vae, clip):

    def losses(name, steps, resume=False):
        task = task_of(any_model, clip, vae, steps=steps, schedule="constant", average=0.9)
        with torch.inference_mode(False), torch.no_grad():
            return [s.loss for s in host.run(task, name, resume).history]

    whole, part = losses("whole", 6), losses("part", 4)
    assert repeated(part, whole[:4]) and repeated(losses("part", 6, resume=True), whole)


def test_a_stop_before_the_first_step_is_passed_on_and_writes_nothing(eps_model, vae, clip):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(eps_model, clip, vae)
    assert EMBEDDINGS.existing("thing") is None


def test_where_the_loss_is_lost_the_last_good_word_is_saved_and_said(eps_model, vae, clip):
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d.* is saved: embedding:thing"):
        train(eps_model, clip, vae, norm="free", learning_rate=1e30, optimizer="sgd", schedule="constant", steps=50)
    assert torch.isfinite(saved()["clip_l"]).all() and int(facts()["steps"]) >= 1


def test_continuing_with_other_data_is_refused_by_what_differs(eps_model, vae, clip):
    train(eps_model, clip, vae)
    with pytest.raises(ValueError, match="another training: images was"):
        train(eps_model, clip, vae, [images(seed=7)], if_exists="continue")
    with pytest.raises(ValueError, match="batch_size was 2, now 3"):
        train(eps_model, clip, vae, batch_size=3, if_exists="continue")




def test_existing_files_are_numbered_refused_or_replaced_as_asked(eps_model, vae, folders, clip):
    (folders / "embeddings" / "deep").mkdir()
    save_file({"clip_l": torch.zeros(1, 4)}, folders / "embeddings" / "deep" / "thing.safetensors")
    assert train(eps_model, clip, vae)[0] == "embedding:thing_2" and train(eps_model, clip, vae)[0] == "embedding:thing_3"
    with pytest.raises(ValueError, match=r"'thing_2' exists: .*thing_2.safetensors"):
        train(eps_model, clip, vae, name="thing_2", if_exists="refuse")
    first = saved("thing_2")["clip_l"]
    assert train(eps_model, clip, vae, name="thing_2", if_exists="replace", seed=9)[0] == "embedding:thing_2"
    assert not torch.equal(saved("thing_2")["clip_l"], first)
    with pytest.raises(ValueError, match="There is no state of its training"):
        train(eps_model, clip, vae, if_exists="continue")
    assert load_file(folders / "embeddings" / "deep" / "thing.safetensors")["clip_l"].shape == (1, 4)


def test_a_word_is_replaced_where_prompts_find_it(eps_model, vae, folders, clip):
    """The host takes the first file of a name in any subfolder, so that there must not be a second."""
    (folders / "embeddings" / "deep").mkdir()
    save_file({"clip_l": torch.zeros(1, 4)}, folders / "embeddings" / "deep" / "thing.safetensors")
    assert train(eps_model, clip, vae, if_exists="replace")[0] == "embedding:thing"
    assert load_file(folders / "embeddings" / "deep" / "thing.safetensors")["clip_l"].shape == (1, tiny.CONTEXT)
    assert not (folders / "embeddings" / "thing.safetensors").exists()
    assert train(eps_model, clip, vae, name="other/thing")[0] == "embedding:other/thing_2"  # or `embedding:thing` could mean both


@pytest.mark.parametrize(
    "name", ["../thing", "/tmp/thing", "a/../../thing", "a\\b", "", "my thing", "thing.safetensors", "a//b", ".hidden", "a[b", "..", "x/."]
)
def test_names_that_leave_the_folder_or_cannot_be_prompted_are_refused(eps_model, vae, name, folders, clip):
    with pytest.raises(ValueError, match="The name '"):
        train(eps_model, clip, vae, name=name)
    assert not list(folders.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(given=[]), "There are no images"),
        (dict(given=[images()[:0]]), "There are no images"),
        (dict(given=[images() * torch.nan]), "Number 1 of the images holds NaN"),
        (dict(captions=["a\nb"]), "2 captions for 3 images"),
        (dict(placeholder="cat"), "'cat' is a word that the model knows"),
        (dict(placeholder="my cat"), "is several words"),
        (dict(placeholder=" "), "The placeholder is empty"),
        (dict(initial_words="<|endoftext|>"), "hold no word that clip_l knows"),
        (dict(templates="own"), "'own' but none is given"),
        (dict(templates="own", own_templates="a photo"), r"'a photo' lacks \{\}"),
        (dict(templates="own", own_templates="{caption} {}"), "asks for a caption but there are none"),
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


def two_encoders(kind, tokenizer):
    """A CLIP, as far as it is asked here, whose second encoder reads no embeddings or is not there."""
    there = {"qwen25_7b": torch.nn.Identity()} if kind == "unread" else {}
    stage = SimpleNamespace(clip_l=torch.nn.Identity(), **there)
    return SimpleNamespace(tokenizer=SimpleNamespace(clip_l=tokenizer("somewhere"), **{kind if kind == "t5xxl" else "qwen25_7b": tokenizer("somewhere" if kind == "t5xxl" else None)}), cond_stage_model=stage)  # fmt: skip


@pytest.mark.parametrize(("kind", "part"), [("unread", "qwen25_7b"), ("t5xxl", "t5xxl")])
def test_models_of_which_one_text_encoder_could_not_use_the_word_are_refused(kind, part):
    """Kandinsky 5's Qwen reads no embedding files; Anima's denoiser takes T5's tokens themselves."""
    with pytest.raises(ValueError, match=f"reads no embedding files for its text encoder {part}, so a learnt word"):
        new_words.encoders(two_encoders(kind, lambda folder: comfy.sd1_clip.SDTokenizer(embedding_directory=folder)))


def test_a_training_that_was_stopped_runs_again_though_nothing_on_the_node_has_changed(eps_model, vae, clip, cancel):
    """What the host would give out of its cache else."""

    def fingerprint(**more):
        return TIEmbeddingTrainer.fingerprint_inputs(**{"name": ["thing"], "steps": [8], "if_exists": ["continue"], **more})

    assert fingerprint() == fingerprint(name=[None]) == fingerprint(name=["../x"]) == ""
    cancel(1)
    train(eps_model, clip, vae, steps=8, if_exists="continue")
    assert fingerprint() == "1 of 8" and fingerprint(if_exists=["number it"]) == fingerprint(steps=[None]) == ""
    cancel(-1)
    train(eps_model, clip, vae, steps=8, if_exists="continue")
    assert facts()["steps"] == "8" and fingerprint() == "8 of 8"  # not what it was before the stop, whose outputs may still be kept
    assert fingerprint(steps=[9]) == "8 of 9"


def test_dynamic_weights_are_copied_where_the_host_can_and_refused_where_not(eps_model, vae, clip):
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


def test_settings_are_written_with_the_word(eps_model, vae, clip):
    train(eps_model, clip, vae, learning_rate=0.02)
    assert json.loads(facts()["settings"])["learning_rate"] == 0.02 and facts()["encoders"] == "clip_l"
