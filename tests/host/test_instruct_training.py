import os
import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.model_detection
import comfy.sampler_helpers
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from comfy.utils import unet_to_diffusers
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from controlled_diffusion.guidance.instruct_pix2pix import Scales
from controlled_diffusion.nodes.host.guidance.instruct_pix2pix import InstructPix2Pix, SourceImage
from controlled_diffusion.nodes.host.training import denoiser, instruct_models, memory, run, trainer
from controlled_diffusion.nodes.host.training import instruct_pix2pix as host
from controlled_diffusion.nodes.host.training.pair_folder import PairFolder
from controlled_diffusion.nodes.instruct_training import InstructPix2PixLoader, InstructPix2PixTrainer
from controlled_diffusion.training.instruct_pix2pix import FIRST, WHAT, PromptPair
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Validation
from PIL import Image
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import sampling, tiny, tiny_editors, tiny_text
from host.training import check_deep_copy, execute, images, inside

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
INSTRUCTIONS = ["make it red", "turn it into a cat", "remove it"]


@pytest.fixture
def folders(tmp_path):
    """Empty folders of outputs and of diffusion models."""
    before = folder_paths.get_output_directory(), folder_paths.folder_names_and_paths["diffusion_models"]
    folder_paths.set_output_directory(str(tmp_path / "output"))
    places = [str(tmp_path / name) for name in ("unet", "diffusion_models")]
    folder_paths.folder_names_and_paths["diffusion_models"] = places, {".safetensors"}
    yield tmp_path
    folder_paths.set_output_directory(before[0])
    folder_paths.folder_names_and_paths["diffusion_models"] = before[1]
    shutil.rmtree(tmp_path)


def train(model, clip, vae, **knobs):
    """(model, name, curve, validation) of the node with its defaults and a few steps."""
    usual = dict(name="editor", steps=3, batch_size=2, warmup=0, rank=4, seed=4, validation_steps=2, validation_count=1, learning_rate=0.01)
    usual |= dict(before=[images(3)], after=[images(3, seed=1)], instructions=INSTRUCTIONS)
    return execute(InstructPix2PixTrainer, model=model, clip=clip, vae=vae, **usual | knobs)


def task_of(model, clip, vae, what="attention", **more):
    data = host.Data([images(3)], [images(3, seed=1)], INSTRUCTIONS)
    knobs = {"rank": 4, "alpha": 4.0, "dropout": 0.05, "steps": 3, "batch_size": 2, "learning_rate": 0.01, "seed": 4, "warmup": 0, **more}
    objective = denoiser.Objective(Levels(low=0.2, high=0.9))
    with torch.inference_mode(False), torch.no_grad():
        return host.prepare(model, clip, vae, data, objective, host.Settings(train=what, **knobs), Validation(count=0))


def edited(model, seed=3, **scales):
    """What InstructPix2PixGuider makes of an image."""
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    image = SourceImage(model, positive, {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))})
    return sampling.run(InstructPix2Pix(model, image.conditions(model, positive, negative), Scales(**scales)))


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_a_model_with_room_ignores_the_image_at_first(family):
    model = tiny.unet(family)
    wide = instruct_models.with_room(model)
    assert isinstance(wide.model, comfy.model_base.SD15_instructpix2pix)
    assert wide.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 8
    expected = sampling.ksampler(model, tiny.conditioning(1), tiny.conditioning(2), 3.0)
    for seed in (3, 4):
        assert_close(edited(wide, seed, text_scale=3.0, image_scale=1.0), expected, atol=2e-5, rtol=1e-5)


def test_sdxl_becomes_sdxls_instruction_model():
    model = tiny_text.denoiser("sdxl")
    wide = instruct_models.with_room(model)
    assert type(wide.model) is comfy.model_base.SDXL_instructpix2pix
    clip = tiny_text.clip("sdxl")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", ""))
    image = SourceImage(wide, positive, {"samples": torch.ones(1, 4, 8, 8)})
    made = sampling.run(InstructPix2Pix(wide, image.conditions(wide, positive, negative), Scales(3.0, 1.0)))
    assert_close(made, sampling.ksampler(model, positive, negative, 3.0), atol=2e-4, rtol=1e-4)


def test_patches_and_options_are_handed_on(eps_model):
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    patched = eps_model.clone()
    patched.add_patches({key: (torch.ones_like(eps_model.model.state_dict()[key]) * 0.05,)}, 0.5)
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5)
    patched.add_object_patch("model_sampling", tiny.unet("v").get_model_object("model_sampling"))
    expected = sampling.ksampler(patched, tiny.conditioning(1), tiny.conditioning(2), 3.0)
    assert not torch.equal(expected, sampling.ksampler(eps_model, tiny.conditioning(1), tiny.conditioning(2), 3.0))
    sampling.ksampler(patched, tiny.conditioning(1), tiny.conditioning(2), 3.0)  # the patch is in the shared weights now
    before = {k: v.clone() for k, v in patched.model.state_dict().items()}
    assert_close(edited(instruct_models.with_room(patched), text_scale=3.0, image_scale=1.0), expected, atol=2e-5, rtol=1e-5)
    assert not torch.equal(instruct_models.weights_of(eps_model)[key.removeprefix("diffusion_model.")], before[key])
    assert all(torch.equal(v, before[k]) for k, v in patched.model.state_dict().items())


def test_wrappers_are_handed_on_and_bypass_loras_refused(eps_model):
    seen, wrapped = [], eps_model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "mine", lambda run, *given, **more: seen.append(1) or run(*given, **more))
    edited(wide := instruct_models.with_room(wrapped))
    assert seen and wide.wrappers is not wrapped.wrappers
    beside, _ = comfy.sd.load_bypass_lora_for_models(eps_model, None, tiny.lora(eps_model), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"brings 'bypass_lora', which acts beside its weights .*Load LoRA"):
        instruct_models.with_room(beside)


def test_a_deep_copy_of_it_owns_its_weights(eps_model):
    check_deep_copy(instruct_models.with_room(eps_model), lambda network: network.input_blocks[0][0].weight)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_models_without_a_plain_unet_are_refused_by_name(kind, clip, vae):
    model = tiny_text.denoiser(kind)
    with pytest.raises(ValueError, match=f"{type(model.model).__name__} .* cannot be made an instruction model.*SD1.5, SD2, SDXL"):
        train(model, clip, vae)


def test_the_hosts_loader_knows_the_files_of_sd15_and_sdxl():
    """By the shapes of the weights alone, which is all that it looks at."""
    sd15 = dict(
        image_size=32, in_channels=8, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=768,
        use_spatial_transformer=True, legacy=False, use_checkpoint=False, num_heads=8,
    )  # fmt: skip
    sdxl = sd15 | dict(
        num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10, context_dim=2048, adm_in_channels=2816, num_classes="sequential", use_linear_in_transformer=True,
    )  # fmt: skip
    for config, expected in ((sd15, comfy.supported_models.SD15_instructpix2pix), (sdxl, comfy.supported_models.SDXL_instructpix2pix)):
        weights = UNetModel(**config, device=torch.device("meta")).state_dict()
        assert FIRST in weights and type(comfy.model_detection.model_config_from_unet(weights, "")) is expected


@pytest.mark.parametrize(
    "sampling, kind",
    [
        (None, "EPS"),
        (lambda m: ModelSamplingDiscrete().patch(m, "v_prediction", False), "V_PREDICTION"),
        (lambda m: ModelSamplingDiscrete().patch(m, "v_prediction", True), "V_PREDICTION"),
        (lambda m: ModelSamplingContinuousEDM().patch(m, "v_prediction", 200.0, 0.02), "V_PREDICTION_EDM"),
        (lambda m: ModelSamplingContinuousEDM().patch(m, "edm_playground_v2.5", 80.0, 0.002), "EDM"),
    ],
)
def test_the_hosts_loader_knows_what_an_sdxl_file_predicts(sampling, kind, folders):
    model = tiny_text.denoiser("sdxl")
    model = sampling(model)[0] if sampling else model
    wide = instruct_models.with_room(model)
    path = instruct_models.save(wide, wide.model.diffusion_model.state_dict(), "made", {})
    config, saved = comfy.supported_models.SDXL({}), load_file(path)
    assert config.model_type(saved).name == kind
    if kind.startswith("V_"):
        read, given = comfy.model_base.model_sampling(config, config.model_type(saved)), model.get_model_object("model_sampling")
        assert_close(torch.stack([read.sigma_min, read.sigma_max]), torch.stack([given.sigma_min, given.sigma_max]))
    again = instruct_models.load(model, str(path))
    assert torch.equal(again.model.diffusion_model.state_dict()[FIRST], wide.model.diffusion_model.state_dict()[FIRST])


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("what", WHAT)
def test_gradients_agree_with_finite_differences(family, what, clip, vae):
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, what, dropout=0.0)
    parameters = list(task.parameters.values())
    draw = torch.Generator().manual_seed(3)
    with torch.inference_mode(False):
        for p in parameters:
            p.data.add_(torch.randn(p.shape, generator=draw).to(p) * 0.01)
        along = [torch.randn(p.shape, generator=draw).to(p) * 0.05 for p in parameters]

    def question(denoiser):
        gradients = torch.autograd.grad(task.loss(denoiser, 0), parameters)
        exact = sum(float((g * a).sum()) for g, a in zip(gradients, along))
        values, step = [], 0.02
        with torch.no_grad():
            for sign in (1, -2):
                for p, a in zip(parameters, along):
                    p.add_(a, alpha=sign * step)
                values.append(float(task.loss(denoiser, 0)))
        assert float(gradients[0].abs().sum()) > 0 and float(gradients[0][:, 4:].abs().sum()) > 0
        return exact, (values[0] - values[1]) / (2 * step)

    exact, measured = inside(task, question)
    assert abs(exact) > 1e-5
    assert_close(exact, measured, rtol=0.03, atol=1e-6)


def test_a_batch_is_one_call_with_each_samples_own_conditions(eps_model, clip, vae):
    count = sampling.Count(eps_model)
    task = task_of(count.model, clip, vae, batch_size=6, dropout=0.3)
    count.calls = count.rows = 0
    together = inside(task, lambda denoiser: float(task.loss(denoiser, 1).detach()))
    assert (count.calls, count.rows) == (1, 6)
    one = task_of(eps_model, clip, vae, batch_size=1, dropout=0.3)
    alone = inside(one, lambda denoiser: [float(one.loss(denoiser, i)) for i in range(6, 12)])
    assert_close(together, sum(alone) / 6, rtol=1e-4, atol=1e-6)


def test_dropout_by_noise_level_of_image_and_instruction(eps_model, clip, vae, monkeypatch):
    asked = dict(dropout=0.0, channel_dropout="independently", clean_image_dropout=1.0, clean_instruction_dropout=0.0)
    task, shown = task_of(eps_model, clip, vae, batch_size=40, **asked), []
    row = host.Examples.row
    monkeypatch.setattr(host.Examples, "row", lambda self, number, *kept: shown.append(kept) or row(self, number, *kept))
    levels = inside(task, lambda denoiser: (denoiser.log_snr(task.objective, 4, 0, 40), task.loss(denoiser, 0)))[0].tolist()
    assert all(text for _, text in shown[-40:])
    kept, left_out = ([level for level, (image, _) in zip(levels, shown[-40:]) if image == there] for there in (True, False))
    assert len(kept) > 5 and len(left_out) > 5 and sum(kept) / len(kept) < sum(left_out) / len(left_out) - 0.5


def test_dropped_means_an_empty_image_or_instruction(eps_model, clip, vae):
    examples = task_of(eps_model, clip, vae).examples
    shown, untold = examples.row(1, True, False), clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]
    assert torch.equal(shown[0], untold) and torch.equal(shown[1]["concat_latent_image"], examples.before.latents[1])
    hidden = examples.row(1, False, True)
    assert torch.equal(hidden[0], examples.positive[1][0]) and not hidden[1]["concat_latent_image"].any()


@pytest.mark.parametrize("what", ["attention", "every layer", "all weights"])
def test_it_trains_saves_and_comes_back_as_an_instruction_model(what, eps_model, clip, vae, folders):
    before = {k: v.clone() for k, v in eps_model.model.state_dict().items()}
    rank = 16 if what == "all weights" else 4
    model, name, curve, seen = train(eps_model, clip, vae, train=what, rank=rank, validation_every=2, steps=4)
    assert name == "editor.safetensors" and seen.shape == (2 * 2, 64, 64, 3) and curve.shape[-1] == 3
    saved = load_file(folders / "diffusion_models" / "editor.safetensors")
    changed = {k for k, v in saved.items() if k != FIRST and not torch.equal(v, before[f"diffusion_model.{k}"])}
    asked = {"attention": lambda k: ".attn" in k, "every layer": lambda k: True, "all weights": lambda k: True}[what]
    assert changed and all(asked(k) for k in changed) and saved[FIRST][:, 4:].abs().max() > 0
    assert len(changed) > 0.9 * len(saved) if what == "all weights" else len(changed) < len(saved) / 2
    again = InstructPix2PixLoader.execute(eps_model, name).args[0]
    assert torch.equal(edited(model), edited(again)) and not torch.equal(edited(model, 3), edited(model, 4))
    assert all(torch.equal(v, before[k]) for k, v in eps_model.model.state_dict().items()) and not eps_model.wrappers
    assert not run.comfy.model_management.in_training


def test_the_loader_reads_files_of_other_tools(eps_model, folders):
    weights = instruct_models.with_room(eps_model).model.diffusion_model.state_dict()
    diffusers = {ours: theirs for theirs, ours in unet_to_diffusers(eps_model.model.model_config.unet_config).items()}
    files = {
        "checkpoint": {f"model.diffusion_model.{k}": w for k, w in weights.items()} | {"first_stage_model.a": torch.ones(1)},
        "parallel": {f"module.{k}": w for k, w in weights.items()},
        "diffusers": {diffusers[k]: w for k, w in weights.items()},
    }
    for name, tensors in files.items():
        path = folders / f"{name}.safetensors"
        save_file(tensors, path)
        again = instruct_models.load(eps_model, str(path)).model.diffusion_model.state_dict()
        assert all(torch.equal(again[k], w) for k, w in weights.items()), name


def test_a_training_of_another_seed_is_not_continued(eps_model, clip, vae, folders):
    train(eps_model, clip, vae, name="parts", steps=2)
    with pytest.raises(ValueError, match="state of another training: seed was 4, now 5"):
        train(eps_model, clip, vae, name="parts", steps=6, seed=5, if_exists="continue")


def test_an_instruction_model_is_trained_further(clip, vae):
    model = tiny_editors.instruct_pix2pix()
    made = train(model, clip, vae)[0]
    assert type(made.model) is type(model.model) and not torch.equal(edited(made), edited(model))


def test_it_learns_to_look_at_the_image(eps_model, clip, vae, folders):
    """The image after is the image before: what the model needs is in its new channels."""
    task = task_of(eps_model, clip, vae, "every layer", steps=40, batch_size=3, learning_rate=5e-3, dropout=0.0)
    task = replace(task, images=task.examples.before)
    with torch.inference_mode(False), torch.no_grad():
        loop = trainer.run(task, folders / "state.safetensors", lambda loop: "nowhere")
    losses = [s.loss for s in loop.history]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


@pytest.mark.parametrize(
    "knobs, told",
    [
        (dict(before=[]), "There are no images"),
        (dict(after=[images(2)]), "3 images before and 2 after"),
        (dict(after=[images(3, 32)]), "pair 1 have latents of 8 x 8 and 4 x 4"),
        (dict(instructions=["make it red"]), "1 captions for 3 images"),
        (dict(instructions=[]), "An instruction is missing"),
        (dict(rank=4000), "The rank is 4000"),
        (dict(folder="pairs"), "Pairs are connected, and the folder 'pairs' is named too"),
        (dict(folder="pairs", before=[], after=[], instructions=[]), "There are no pairs in"),
        (dict(folder="../pairs", before=[], after=[], instructions=[]), "cannot be a file's"),
    ],
)
def test_what_cannot_be_learned_from_is_named(knobs, told, eps_model, clip, vae, folders):
    with pytest.raises(ValueError, match=told):
        train(eps_model, clip, vae, **knobs)
    assert not list(folders.rglob("*.safetensors"))


@pytest.mark.parametrize("what", ["attention", "all weights"])
def test_too_little_memory_is_told_before_anything_is_made(what, eps_model, clip, vae, monkeypatch):
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2**14)
    told = r"Training \d+ million numbers with adamw needs \d+ MB beside the model, and 0 MB are free. Train a LoRA"
    with pytest.raises(ValueError, match=told):
        task_of(eps_model, clip, vae, what)


def test_quantized_weights_are_refused(eps_model, clip, vae):
    layer = eps_model.model.diffusion_model.middle_block[1].proj_in
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), False)
    with pytest.raises(ValueError, match=r"weights are quantized \(float8_e4m3fn\).* in fp16, bf16 or fp32\."):
        task_of(eps_model, clip, vae)


def test_a_file_of_another_model_or_none_is_refused(eps_model, clip, vae, folders):
    _, name, *_ = train(eps_model, clip, vae)
    (folders / "secret.safetensors").write_bytes((folders / "diffusion_models" / name).read_bytes())
    for other in ("editer", "../secret"):
        with pytest.raises(ValueError, match=r"There is no model .* Found in models/diffusion_models: editor.safetensors"):
            InstructPix2PixLoader.execute(eps_model, other)
    with pytest.raises(ValueError, match=r"is not an instruction model made from this BaseModel.*weights differ"):
        InstructPix2PixLoader.execute(tiny.unet("eps", model_channels=64), name)


def kept():
    """A folder with a pair for each instruction."""
    folder = PairFolder("things")
    for i, text in enumerate(INSTRUCTIONS):
        folder.add(images(2, seed=i), PromptPair("a", "b", text), {})
    return folder


def test_images_of_a_folder_are_read_one_by_one(clip, vae, monkeypatch):
    """To the same latents as all at once, in the same order."""
    folder, waiting, most = kept(), [0], [0]
    expected, _ = host.examples_of(clip, vae, host.Data(*(list(part) for part in folder.read()), flip=True))
    encode, opened = vae.encode, Image.open

    def reading(path, **how):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        return opened(path, **how)

    def encoding(pixels):
        waiting[0] = 0
        return encode(pixels)

    monkeypatch.setattr(Image, "open", reading)
    monkeypatch.setattr(vae, "encode", encoding)
    found, after = host.examples_of(clip, vae, host.Data(*folder.read(), flip=True))
    assert most[0] == 1 and found.before.originals == 3 and len(after) == 6
    assert all(torch.equal(a, b) for a, b in zip(found.before.latents, expected.before.latents, strict=True))


def test_it_learns_from_a_folder_of_pairs(eps_model, clip, vae, folders):
    folder = kept()
    before = InstructPix2PixTrainer.fingerprint_inputs(folder=["things"])
    model, name, _, blocked = train(eps_model, clip, vae, folder="things", before=[], after=[], instructions=[], validation_count=0)
    assert "no validation image" in blocked.message
    assert InstructPix2PixTrainer.fingerprint_inputs(folder=["things"]) == before  # only more pairs are something new to learn from
    folder.add(images(2), PromptPair("a", "b", "make it old"), {})
    assert InstructPix2PixTrainer.fingerprint_inputs(folder=["things"]) != before
    assert InstructPix2PixTrainer.fingerprint_inputs(folder=[""]) == InstructPix2PixTrainer.fingerprint_inputs(folder=(None,)) == ""
    saved = InstructPix2PixLoader.fingerprint_inputs(name)
    os.utime(folders / "diffusion_models" / name, (1, 1))
    assert InstructPix2PixLoader.fingerprint_inputs(name) != saved
    assert isinstance(model.model, comfy.model_base.SD15_instructpix2pix)
    assert Path(folder.path / "after" / "00003.txt").read_text() == "remove it"


def test_a_compiled_model_does_not_replace_the_new_one(eps_model, caplog):
    """ComfyUI's wrapper puts the network that was compiled into whatever model runs."""
    compiled, seen = eps_model.clone(), []
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *given, **more: seen.append(1))
    with caplog.at_level("WARNING"):
        wide = instruct_models.with_room(compiled)
    assert edited(wide).isfinite().all() and not seen and "put Torch Compile Model behind it" in caplog.text
    assert compiled.get_wrappers(WrappersMP.APPLY_MODEL, "torch.compile")


def test_sdxl_with_continuous_v_scales_the_image_as_loaded():
    model = ModelSamplingContinuousEDM().patch(tiny_text.denoiser("sdxl"), "v_prediction", 200.0, 0.02)[0]
    wide, image = instruct_models.with_room(model).model, torch.ones(1, 4, 8, 8)
    assert wide.model_type is comfy.model_base.ModelType.V_PREDICTION_EDM
    assert torch.equal(wide.process_ip2p_image_in(image), wide.latent_format.process_in(image))
    plain = instruct_models.with_room(tiny_text.denoiser("sdxl")).model
    assert plain.model_type is comfy.model_base.ModelType.EPS and torch.equal(plain.process_ip2p_image_in(image), image)


def test_a_folder_is_learned_from_when_bad_pairs_were_removed(eps_model, clip, vae, folders):
    folder = kept()
    before = InstructPix2PixTrainer.fingerprint_inputs(folder=["things"])
    for place in ("before/00002.png", "after/00002.png", "after/00002.txt"):
        (folder.path / place).unlink()
    assert folder.read()[2] == [INSTRUCTIONS[0], INSTRUCTIONS[2]]
    assert InstructPix2PixTrainer.fingerprint_inputs(folder=["things"]) != before
    assert train(eps_model, clip, vae, folder="things", before=[], after=[], instructions=[], validation_count=0)[1] == "editor.safetensors"
