"""DreamBooth on tiny models of several families, its files in the stock loaders, and its class images."""

from contextlib import nullcontext

import comfy.model_management
import comfy.sd
import comfy_extras.nodes_dataset as host_dataset
import comfy_extras.nodes_model_advanced as host_sampling
import folder_paths
import nodes as host_nodes
import pytest
import torch
from controlled_diffusion.nodes.dreambooth import DreamBoothTrainer
from controlled_diffusion.nodes.host.training import adapters, class_images, memory, new_words, trainer
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.nodes.host.training.custom_diffusion import KeysAndValues
from controlled_diffusion.nodes.host.training.denoiser import Objective
from controlled_diffusion.nodes.host.training.whole_weights import WholeWeights
from controlled_diffusion.training import settings
from controlled_diffusion.training.dreambooth import Preservation
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation
from controlled_diffusion.training.textual_inversion import Word
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import tiny, tiny_text
from host.sampling import ksampler
from host.training import derivatives, execute, images, inside, stir, watching

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def train(model, clip, vae, given=None, **knobs):
    """(model, lora, name, word, curve, validation) of the node with its defaults and a few steps."""
    usual = dict(name="rex", instance_prompt="a zz cat", class_prompt="a cat", steps=3, warmup=0, rank=2, seed=4, learning_rate=0.05)
    usual |= dict(class_count=2, validation_steps=2, validation_count=0, images=[images()] if given is None else given)
    return execute(DreamBoothTrainer, model=model, clip=clip, vae=vae, **usual | knobs)


def task_of(model, clip, vae, design=None, word=None, weight=1.0, data=None, **settings):
    """A task with two class images; `word`: '<z>' is trained jointly."""
    prompt = "a <z> cat" if word else "a zz cat"
    subject = host.Subject(prompt, (Word("<z>", "cat", 1),) if word else ())
    prior = host.Class("a cat", [images(2, seed=5)], preservation=Preservation(weight))
    objective = Objective(Levels(low=0.2, high=0.9))
    knobs = Settings(**{"steps": 3, "batch_size": 2, "learning_rate": 0.05, "seed": 4, "warmup": 0, **settings})
    shown = Validation(prompt, count=0, steps=2)
    design = design or adapters.Design(rank=2)
    with torch.inference_mode(False), torch.no_grad():
        return host.prepare(model, clip, vae, data or Data([images()]), subject, prior, design, objective, knobs, shown)


WHOLE = dict(train="all weights")


def sampled(model):
    return ksampler(model, tiny.conditioning(1), tiny.conditioning(0), 3.0)


def parts(family, clip, vae):
    """(MODEL, CLIP, VAE) of a UNet's family, or of a transformer with text encoders of its own."""
    if family in tiny.FAMILIES:
        return tiny.unet(family, output_scale=0.3), clip, vae
    return tiny_text.denoiser(family), tiny_text.clip(family, clip.tokenizer.clip_l.embedding_directory), tiny_text.vae(family)


@pytest.mark.parametrize("family", ["eps", "v", "flow", "sd3", "flux"])
@pytest.mark.parametrize("algorithm", adapters.ALGORITHMS)
def test_adapter_gradients_agree_with_finite_differences(family, algorithm, vae, clip):
    design = adapters.Design(algorithm, 2, layers="attn" if family == "sd3" else adapters.ATTENTION)
    small = family in tiny.FAMILIES
    task = task_of(*parts(family, clip, vae), design, word=small, batch_size=2 if small else 1)
    exact, measured = derivatives(task)
    assert abs(exact) > 1e-6
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


def test_loras_as_forward_hooks_give_the_same_gradients(eps_model, vae, clip):
    task = task_of(eps_model, clip, vae, adapters.Design(rank=2, alpha=3.0, layers=""))
    stir(task)
    layers = [eps_model.model.get_submodule(name) for name in task.adapters.layers]
    kinds = {type(m).__name__ for m in layers}

    def question(denoiser):
        loss = task.loss(denoiser, 0)
        return sum(len(m.weight_function) for m in layers), loss.detach(), torch.autograd.grad(loss, list(task.parameters.values()))

    through, beside = inside(task, question, around=nullcontext), inside(task, question)
    assert kinds == {"Linear", "Conv2d"} and (through[0], beside[0]) == (len(layers), 0)
    assert_close(beside[1:], through[1:], rtol=1e-3, atol=1e-4)
    assert all(len(m.weight_function) == 1 and not m._forward_hooks for m in layers)


DESIGNS = [("eps", adapters.Design(algorithm, 2, layers="")) for algorithm in adapters.ALGORITHMS]
DESIGNS += [(family, adapters.Design(rank=2, layers="")) for family in ("v", "flow", "sd3", "flux")]
DESIGNS += [(family, KeysAndValues()) for family in ("eps", "v", "flow")]


@pytest.mark.parametrize(("family", "design"), DESIGNS)
def test_untrained_is_the_model_and_the_file_what_was_trained(family, design, vae, clip, folders):
    model, clip, vae = parts(family, clip, vae)
    task = task_of(model, clip, vae, design, word=isinstance(design, KeysAndValues), batch_size=1)
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "")]
    algorithm, empty = getattr(design, "algorithm", ""), torch.zeros(1, task.shape[1], 8, 8)

    def drawn(model):
        return ksampler(model, *prompts, 3.0, empty)

    plain = drawn(model)
    assert_close(drawn(task.model), plain, rtol=0, atol=1e-3 if algorithm == "OFT" else 0)  # whose product with 1 is rounded otherwise
    stir(task)
    trained = drawn(task.model)
    assert not torch.equal(trained, plain)
    adapters.save("rex", task.adapters.tensors(), {}, {})
    loaded, _ = host_nodes.LoraLoader().load_lora(model, clip, "rex.safetensors", 1.0, 1.0)
    assert_close(drawn(loaded), trained, rtol=0, atol={"OFT": 1e-3, "LoHa": 1e-5}.get(algorithm, 0))
    assert torch.equal(drawn(model), plain)


def test_the_stock_loader_reads_the_lora(any_model, vae, clip, folders):
    knobs = dict(validation_count=2, placeholder="<subject>", instance_prompt="a <subject>")
    model, lora, name, word, curve, validation = train(any_model, clip, vae, **knobs)
    assert name == "rex.safetensors" and word == "embedding:rex" and curve.ndim == 4 and validation.shape == (2, 64, 64, 3)
    loaded, _ = host_nodes.LoraLoader().load_lora(any_model, clip, name, 1.0, 1.0)
    with_it = sampled(model)
    assert torch.equal(sampled(loaded), with_it) and not torch.equal(with_it, sampled(any_model))
    file, beside = load_file(folders / "loras" / name), load_file(folders / "embeddings" / name)
    assert torch.equal(file["bundle_emb.rex.clip_l"], beside["clip_l"]) and beside["clip_l"].shape == (1, tiny.CONTEXT)
    assert file.keys() - {"bundle_emb.rex.clip_l"} == lora.keys()


@pytest.mark.parametrize("weights", [torch.float8_e4m3fn, torch.bfloat16])
def test_a_lora_is_learned_of_weights_that_are_kept_in_few_bits(weights, vae, clip, folders):
    model = tiny.unet("eps", output_scale=0.3, weights=weights)
    plain = sampled(model)
    made, lora, name, *_ = train(model, clip, vae, prior_weight=0.0)
    assert all(v.isfinite().all() for v in lora.values()) and not torch.equal(sampled(made), plain) and torch.equal(sampled(model), plain)
    assert torch.equal(sampled(host_nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)[0]), sampled(made))


def test_a_mask_limits_the_subject_and_not_the_class(eps_model, vae, clip):
    half = torch.zeros(2, 64, 64)
    half[..., :32] = 1
    given = [(settings.Data([images()], masks=m), w) for m in ((), [torch.ones(2, 64, 64)], [half]) for w in (1.0, 2.0)]
    tasks = [task_of(eps_model, clip, vae, data=data, weight=w) for data, w in given]
    losses = [inside(t, lambda g, t=t: float(t.loss(g, 1))) for t in tasks]
    assert losses[:2] == pytest.approx(losses[2:4], rel=1e-6) and abs(losses[4] - losses[0]) > 1e-3 * losses[0]
    assert losses[5] - losses[4] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_two_images_of_the_class_may_go_with_each_of_the_subject(eps_model, vae, clip, folders):
    """And connected ones are taken instead of sampled ones."""
    for ratio, rows in (("1:1", 2), ("1:2", 3)):
        shown = []
        watched = eps_model.clone()
        watched.set_model_unet_function_wrapper(
            lambda f, a, shown=shown: shown.append(len(a["input"])) or f(a["input"], a["timestep"], **a["c"])
        )
        train(watched, clip, vae, ratio=ratio, class_images=[images(3, seed=7)], batch_size=1, steps=4)
        assert shown[-4:] == [rows] * 4
    assert not list((folders / "output").rglob("class_images"))


def test_a_lora_below_stays_below(eps_model, vae, clip):
    one = train(eps_model, clip, vae)[0]
    two, _lora, _, _, _, _ = train(one, clip, vae, instance_prompt="another zz", seed=9)
    both = host_nodes.LoraLoader().load_lora(one, clip, "rex_2.safetensors", 1.0, 1.0)[0]
    assert torch.equal(sampled(two), sampled(both)) and len(two.patches) == len(one.patches)


def test_without_prior_weight_it_is_plain_fine_tuning(eps_model, vae, clip):
    """The loss of the subject's images alone, whatever class images there are."""
    task = task_of(eps_model, clip, vae, weight=0.0)
    plain = inside(task, lambda g: [float(g.errors(task.images, task.batches.indices(i)[0], [task.rows["a zz cat"]] * 2, task.objective, 4, 2 * i).mean()) for i in (0, 3)])  # fmt: skip
    assert inside(task, lambda g: [float(task.loss(g, i)) for i in (0, 3)]) == plain
    assert len(task.images) == 2 and task.batches.total == 2


def test_the_class_counts_by_its_weight(eps_model, vae, clip):
    losses = [inside(t := task_of(eps_model, clip, vae, weight=w), lambda g, t=t: float(t.loss(g, 1))) for w in (1.0, 2.0, 4.0)]
    assert_close(losses[2] - losses[1], 2 * (losses[1] - losses[0]), rtol=1e-4, atol=1e-6)
    assert losses[1] > losses[0]


def test_only_the_layers_asked_for_are_learned(eps_model, vae, clip):
    assert all(".attn2.to_k" in k for k in train(eps_model, clip, vae, layers="attn2.to_k, -input_blocks")[1])
    with pytest.raises(ValueError, match=r"No layer's name fits 'atn2'.*diffusion_model"):
        train(eps_model, clip, vae, layers="atn2")
    every = adapters.chosen(eps_model, "")
    assert all(len(shape) > 1 for shape in every.values()) and len(every) > len(adapters.chosen(eps_model, adapters.ATTENTION)) > 10


def test_a_new_word_moves_at_its_own_rate(eps_model, vae, clip):
    def moved(rate):
        task = task_of(eps_model, clip, vae, word=True, learning_rate=rate, steps=1)
        start = task.word.concepts["<z>"].rows("clip_l").detach().clone()
        with torch.inference_mode(False), torch.no_grad():
            host.finish(task, eps_model, f"r{rate}".replace(".", "_"), False)
        return (task.word.concepts["<z>"].rows("clip_l").detach() - start).abs().mean()

    assert_close(moved(0.01), moved(0.0001), rtol=0.02, atol=0)


def test_class_images_are_sampled_once_kept_and_completed(eps_model, vae, clip, folders):
    train(eps_model, clip, vae, class_count=5, class_prompt="a cat\na dog", class_batch=2)
    files = sorted((folders / "output").rglob("class_images/*/*.png"))
    assert [f.name for f in files] == [f"{i:05d}.png" for i in range(5)]
    stamps = [f.stat().st_mtime_ns for f in files]
    files[3].unlink()
    train(eps_model, clip, vae, class_count=5, class_prompt="a cat\na dog", class_batch=2)
    assert files[3].exists() and [f.stat().st_mtime_ns for f in files][:3] == stamps[:3]
    train(eps_model, clip, vae, class_count=1, class_prompt="a fish")
    assert len({f.parent for f in (folders / "output").rglob("class_images/*/*.png")}) == 2


def test_a_stop_while_class_images_are_sampled_keeps_the_others(eps_model, vae, clip, folders):
    def stop(value, total, preview):
        if preview:  # as class images have
            comfy.model_management.interrupt_current_processing(True)

    with watching(stop), pytest.raises(comfy.model_management.InterruptProcessingException):
        train(eps_model, clip, vae, class_count=4, class_batch=2)
    assert len(list((folders / "output").rglob("*.png"))) == 2 and not list((folders / "loras").iterdir())


def test_another_model_has_class_images_of_its_own(eps_model, vae, clip):
    def place(model=eps_model, clip=clip, vae=vae, prompt="a"):
        return class_images.folder(model, clip, vae, class_images.Order((prompt,), 1, 1, settings.Validation(prompt)), (4, 8, 8))

    def with_lora(seed):
        key = "diffusion_model.input_blocks.0.0"
        weight = torch.rand(32, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        return adapters.patched(eps_model, {f"{key}.diff": weight})

    earlier = clip.clone()
    earlier.clip_layer(-2)
    models = [tiny.unet("eps", seed=3), host_sampling.ModelSamplingDiscrete().patch(eps_model, "v_prediction", False)[0]]
    others = [place(model) for model in (*models, with_lora(1), with_lora(2))]
    others += [place(clip=earlier), place(clip=tiny.clip(torch.float32, seed=9)), place(vae=tiny.vae(seed=5)), place(prompt="b")]
    assert len({place(), *others}) == 1 + len(others)
    assert place() == place(eps_model.clone(), clip.clone()) and place(with_lora(1)) == others[2]


def test_the_hosts_folder_of_images_and_captions_plugs_in(eps_model, vae, clip, folders, monkeypatch):
    place = folders / "output" / "lessons"
    place.mkdir()
    for number, size in enumerate((64, 72)):
        Image.new("RGB", (size, 64), (90 * number, 80, 40)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"a zz cat number {number}")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(place.parent))
    images, texts = host_dataset.LoadImageTextDataSetFromFolderNode.execute("lessons").args
    train(eps_model, clip, vae, images, captions=texts, prior_weight=0.0, steps=2)
    with safe_open(folders / "loras" / "rex.safetensors", "pt") as file:
        assert file.metadata()["texts"] == str(tuple((text,) for text in texts)) and len(images) == len(texts) == 2


def test_a_caption_may_say_one_thing_in_several_ways(eps_model, vae, clip):
    told = ("a red <z> | a photo of a <z>|a <z> cat", "a <z>")
    task = task_of(eps_model, clip, vae, word=True, data=settings.Data([images()], told))
    assert task.texts[:2] == (("a red <z>", "a photo of a <z>", "a <z> cat"), ("a <z>",)) and set(task.rows) == {"a cat"}
    drawn = [task.sentences([0, 1, 2], 3 * i, torch.zeros(3)) for i in range(60)]
    assert {text for text, *_ in drawn} == set(task.texts[0]) and {tuple(rest) for _, *rest in drawn} == {("a <z>", "a cat")}
    assert all(10 <= [text for text, *_ in drawn].count(text) <= 30 for text in task.texts[0])
    assert drawn == [task.sentences([0, 1, 2], 3 * i, torch.zeros(3)) for i in range(60)]


def test_class_images_do_not_depend_on_the_seed(eps_model, vae, clip, folders, monkeypatch):
    """And their sentences are encoded once."""
    told, encode = [], type(clip).encode_from_tokens_scheduled
    monkeypatch.setattr(type(clip), "encode_from_tokens_scheduled", lambda clip, t, **k: told.append(t) or encode(clip, t, **k))
    train(eps_model, clip, vae, class_count=4, class_batch=1)
    first, files = len(told), sorted((folders / "output").rglob("class_images/*/*.png"))
    train(eps_model, clip, vae, class_count=4, class_batch=1, seed=5)
    assert sorted((folders / "output").rglob("class_images/*/*.png")) == files and len(files) == 4
    assert first - (len(told) - first) == 2  # the prompt and the empty one


def test_existing_files_of_the_word_count_too(eps_model, vae, clip, folders):
    save_file({"x": torch.zeros(1)}, folders / "loras" / "rex.safetensors")
    save_file({"x": torch.zeros(1)}, folders / "embeddings" / "rex_2.safetensors")
    assert train(eps_model, clip, vae, placeholder="<subject>", instance_prompt="<subject>")[2] == "rex_3.safetensors"
    assert train(eps_model, clip, vae)[2] == "rex_2.safetensors"
    with pytest.raises(ValueError, match="'rex' exists"):
        train(eps_model, clip, vae, if_exists="refuse")
    assert list(load_file(folders / "loras" / "rex.safetensors")) == ["x"]


SEVERAL = dict(placeholder="<rex>, <kit>", instance_prompt="<rex>")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(rank=33), r"Rank 33 does not fit the layer diffusion_model\.\S+ \(32 x 32\); give 1 to 32"),
        (dict(class_count=0), "There are no class images"),
        (dict(placeholder="cat", instance_prompt="a cat"), "'cat' is a word that the model knows"),
        (dict(placeholder="<subject>"), "'a zz cat' lacks the new word. Write '<subject>'"),
        (dict(placeholder="<subject>", instance_prompt="a <subject> cat", captions=["a red cat\na small cat"]), "No sentence names '<subject>'"),
        (dict(placeholder="<subject>", instance_prompt="<subject>", class_prompt="a <subject>"), "class prompt 'a <subject>' names"),
        (dict(captions=["a <rex>\na cat"]) | SEVERAL, "No sentence names '<kit>'"),
        (SEVERAL | dict(placeholder="<rex>, <rex>", captions=["<rex>\n<rex>"]), "'<rex>' stands for two concepts"),
        (SEVERAL | dict(placeholder="<rex>, cat", captions=["<rex>\ncat"]), "'cat' is a word that the model knows"),
        (SEVERAL | dict(initial_words="a, b, c"), "3 initial words for 2 placeholders"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(eps_model, vae, clip, knobs, message, folders):
    with pytest.raises(ValueError, match=message):
        train(eps_model, clip, vae, **knobs)
    assert not list(folders.rglob("*.safetensors"))


def test_the_stock_loader_reads_a_wholly_trained_denoiser(clip, folders):
    """SD3's layout is known to the host at any depth, so its own loader of models reads the tiny file."""
    model, clip, vae = parts("sd3", clip, None)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    made, lora, name, *_ = train(model, clip, vae, **WHOLE, prior_weight=0.0, steps=2, learning_rate=0.01)
    assert name == "rex.safetensors" and not list((folders / "loras").iterdir())
    file = load_file(folders / "diffusion_models" / name)
    changed = [k for k, v in file.items() if not torch.equal(v, before[f"diffusion_model.{k}"])]
    assert len(changed) > 0.8 * len(file) and {k.rsplit(".", 1)[1] for k in lora} == {"diff", "diff_b"}
    stock = host_nodes.UNETLoader().load_unet(name, "default")[0]
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", ""))
    own, read, plain = (ksampler(m, positive, negative, 3.0, torch.zeros(1, 16, 8, 8)) for m in (made, stock, model))
    assert torch.equal(own, read) and not torch.equal(own, plain)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert not [m for m in model.model.modules() if getattr(m, "weight_function", None) or getattr(m, "bias_function", None)]


@pytest.mark.parametrize("family", ["eps", "v", "flow", "sd3", "flux"])
def test_gradients_of_all_weights(family, vae, clip):
    task = task_of(*parts(family, clip, vae), WholeWeights(), batch_size=2 if family in tiny.FAMILIES else 1)
    exact, measured = derivatives(task, step=0.002)
    assert_close(exact, measured, rtol=0.05, atol=1e-6)
    assert sum(k.endswith(".diff_b") for k in task.parameters) > 10


def test_a_whole_model_keeps_the_lora_below_it(eps_model, vae, clip, folders):
    below = train(eps_model, clip, vae)[0]
    plain = sampled(below)
    model, *_ = train(below, clip, vae, name="whole", **WHOLE, steps=2, learning_rate=1e-9)
    assert_close(sampled(model), plain, rtol=1e-3, atol=1e-3)
    train(below, clip, vae, name="whole", **WHOLE, steps=4, if_exists="continue")
    assert train(below, clip, vae, name="whole", **WHOLE, steps=1)[2] == "whole_2.safetensors"


def test_quantized_or_too_many_weights_are_refused(eps_model, vae, clip, folders):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"needs \d+ MB beside .* 1 MB are free. Train an adapter"):
        patch.setattr(memory, "get_free_memory", lambda device: 2**20)
        WholeWeights().check(eps_model, "adamw", 0.0)
    layer = eps_model.model.diffusion_model.middle_block[1].proj_in
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), False)
    with pytest.raises(ValueError, match=r"weights are quantized \(float8_e4m3fn\), too coarse"):
        train(eps_model, clip, vae, **WHOLE)
    assert not list(folders.rglob("*.safetensors"))


def test_a_lora_that_would_not_be_in_the_file_is_refused(eps_model, vae, clip, folders):
    beside, _ = comfy.sd.load_bypass_lora_for_models(eps_model, None, tiny.lora(eps_model), 1.0, 0.0)
    with pytest.raises(ValueError, match="brings 'bypass_lora', which acts beside its weights"):
        train(beside, clip, vae, **WHOLE)
    assert not list(folders.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("placeholders", "names"),
    [
        (("<rex>",), ["pets"]),
        (("<rex>", "<kit>"), ["pets-rex", "pets-kit"]),
        (("<2>", "<猫>"), ["pets-1", "pets-2"]),
        (("<2>", "<a>", "[a]"), ["pets-1", "pets-2", "pets-3"]),
        (("<Dog>", "<dog>"), ["pets-1", "pets-2"]),
        (("<" + "a" * 31 + ">", "<dog>"), ["pets-1", "pets-2"]),
    ],
)
def test_every_word_has_a_file_of_its_own(placeholders, names):
    assert host.embeddings_of("pets", placeholders) == names


def test_sentences_for_merging_name_the_words_by_turns():
    told = ["a <a>", "<a> in snow", "a dog", "a <b>", "<a> and <b>", "a <a>"]
    assert host.by_turns(told, ["<a>", "<b>"]) == ["a <a>", "a <b>", "<a> in snow", "<a> and <b>"]
    assert host.by_turns(told, ["<a>"]) == ["a <a>", "<a> in snow", "<a> and <b>"]


def test_several_words_are_trained_jointly(eps_model, vae, clip, folders):
    made = train(eps_model, clip, vae, **SEVERAL, initial_words="dog, cat", captions=["a <rex>\na <kit> and <rex>"])
    assert made[3] == "embedding:rex-rex embedding:rex-kit"
    files = {p.stem: load_file(p)["clip_l"] for p in (folders / "embeddings").iterdir()}
    assert files.keys() == {"rex-rex", "rex-kit"} and not torch.equal(files["rex-rex"], files["rex-kit"])
    bundled = load_file(folders / "loras" / "rex.safetensors")
    assert all(torch.equal(bundled[f"bundle_emb.{k}.clip_l"], v) for k, v in files.items())
    task = task_of(eps_model, clip, vae, word=True)
    joint = new_words.start(task.clip, (Word("<a>", "dog"), Word("<b>", "cat")), 0)
    one, other = joint.conditioning("a <a> and a <b>")[0][0], clip.encode_from_tokens_scheduled(clip.tokenize("a dog and a cat"))[0][0]
    assert_close(one, other)


def test_prompts_are_dropped_at_their_rate(eps_model, vae, clip):
    task = task_of(eps_model, clip, vae, data=settings.Data([images()], caption_dropout=0.25))
    level = torch.zeros(2)
    given = [text for i in range(200) for text in task.sentences([0, 1], 2 * i, level)]
    assert 0.15 < given.count("") / len(given) < 0.35 and set(given) == {"", "a zz cat"}
    assert given[:20] == [text for i in range(10) for text in task.sentences([0, 1], 2 * i, level)]
    assert "" in task.rows and set(task_of(eps_model, clip, vae).sentences(range(2), 0, level)) == {"a zz cat"}


def test_prompts_are_dropped_by_noise_level(eps_model, vae, clip, monkeypatch):
    """Never at pure noise and always without noise; a batch's own levels decide."""
    data, seen = settings.Data([images()], clean_caption_dropout=1.0), []
    task = task_of(eps_model, clip, vae, data=data, weight=0.0, batch_size=1)
    assert task.sentences([0] * 4, 0, torch.tensor([-30.0, 30.0, -30.0, 30.0])) == ["a zz cat", "", "a zz cat", ""]
    plain = task.sentences
    monkeypatch.setattr(task, "sentences", lambda chosen, first, log_snr: seen.append(float(log_snr)) or plain(chosen, first, log_snr))
    levels = inside(task, lambda denoiser: [float(denoiser.log_snr(task.objective, 4, i, 1)) for i in range(9)])
    inside(task, lambda denoiser: [task.loss(denoiser, i) for i in range(9)])
    assert seen == levels and len(set(levels)) == 9
    assert train(eps_model, clip, vae, caption_dropout=0.5, clean_caption_dropout=0.0)[2] == "rex.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_taught_by_float32_numbers(dtype, vae, clip):
    model, seen = tiny.unet("eps", output_scale=0.3), set()
    model.model.manual_cast_dtype = dtype
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.time_embed.register_forward_pre_hook(lambda m, given: seen.add(given[0].dtype))
    task = task_of(model, clip, vae, steps=2)
    before = {k: p.detach().clone() for k, p in task.parameters.items()}
    with torch.inference_mode(False), torch.no_grad():
        loop = trainer.run(task, adapters.LORAS.state("half"), lambda loop: "")
    assert seen == {dtype} and all(p.dtype == torch.float32 for p in task.parameters.values())
    assert loop.done == 2 and all(s.loss == s.loss for s in loop.history)
    assert any(not torch.equal(p, before[k]) for k, p in task.parameters.items())
