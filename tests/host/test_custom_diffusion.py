"""Custom Diffusion on tiny UNets: what learns and what does not, its files, and concepts merged."""

import os
from pathlib import Path

import nodes as host_nodes
import pytest
import torch
from comfy.utils import unet_to_diffusers
from controlled_diffusion.nodes.custom_diffusion import CustomDiffusionMerge, CustomDiffusionTrainer
from controlled_diffusion.nodes.host.progress import node_text
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import custom_diffusion as host
from controlled_diffusion.nodes.host.training.embeddings import EMBEDDINGS
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.settings import Data
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import tiny
from host.test_dreambooth import parts, sampled, task_of
from host.training import derivatives, execute, images, inside, stir

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def train(model, clip, vae, **knobs):
    """What the node gives with its defaults and a few steps."""
    usual = dict(name="rex", instance_prompt="a <concept> cat", class_prompt="a cat", steps=3, warmup=0, learning_rate=0.05, class_count=2)
    usual |= dict(validation_steps=2, validation_count=0, seed=4, batch_size=1, images=[images()])
    return execute(CustomDiffusionTrainer, model=model, clip=clip, vae=vae, **usual | knobs)


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_gradients_but_for_the_first_token(family, vae, clip, monkeypatch):
    task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, host.KeysAndValues(), word=True)
    stir(task)
    parameters = list(task.adapters.parameters.values())

    def gradient():
        return inside(task, lambda g: torch.autograd.grad(task.loss(g, 0), parameters))

    detached = gradient()
    monkeypatch.setattr(host, "without_start", lambda projected: projected)
    exact, measured = derivatives(task)
    assert_close(exact, measured, rtol=0.03, atol=1e-6)
    assert not all(torch.allclose(a, b) for a, b in zip(detached, gradient()))


def test_keys_and_values_and_a_word_are_learned_and_nothing_else(eps_model, vae, clip, folders):
    model, lora, name, word, curve, _, concept = train(eps_model, clip, vae)
    assert word == "embedding:rex" and concept == "rex = a embedding:rex cat" and curve.ndim == 4 and name == "rex.safetensors"
    assert lora and all(k.endswith(("attn2.to_k.diff", "attn2.to_v.diff")) for k in lora)
    assert set(load_file(folders / "loras" / name)) == {*lora, "bundle_emb.rex.clip_l"} and EMBEDDINGS.existing("rex")
    loaded, _ = host_nodes.LoraLoader().load_lora(eps_model, clip, name, 1.0, 1.0)
    assert torch.equal(sampled(loaded), sampled(model))


def test_concepts_are_trained_jointly_at_several_scales(eps_model, vae, clip, folders):
    """As the paper does: one file of keys and values, a word for each, and images that are said to be far or near."""
    knobs = dict(placeholder="<a>, <b>", initial_words="cat, dog", captions=["a <a>\na <b>"], prior_weight=0.0, variants=6, scale=1.0)
    _, lora, _, word, _, _, concept = train(eps_model, clip, vae, **knobs)
    lines = concept.splitlines()
    assert word == "embedding:rex-a embedding:rex-b" and lines[:2] == ["rex = a embedding:rex-a", "rex = a embedding:rex-b"]
    assert any(line.startswith(("rex = very small a ", "rex = a far away a ", "rex = zoomed in a ", "rex = close up a ")) for line in lines)
    file = load_file(folders / "loras" / "rex.safetensors")
    assert set(file) == {*lora, "bundle_emb.rex-a.clip_l", "bundle_emb.rex-b.clip_l"}


def test_variants_are_learned_where_they_show_the_image(eps_model, vae, clip):
    given = Data([images()], augmentation=Augmentation(variants=12, scale=1.0))
    task = task_of(eps_model, clip, vae, host.KeysAndValues(), word=True, weight=0.0, data=given)
    encoded = task.images
    assert len(encoded) == 26 and encoded.originals == 2 and encoded.hints[:2] == ("", "") and any(encoded.hints)
    assert all(text == (f"{hint} a <z> cat".strip(),) for text, hint in zip(task.texts, encoded.hints))
    far = [float(m.mean()) for m, hint in zip(encoded.masks, encoded.hints) if hint in ("very small", "a far away")]
    assert far and all(0 < share < 0.36 for share in far) and float(encoded.masks[0].min()) == 1
    again = task_of(eps_model, clip, vae, host.KeysAndValues(), word=True, weight=0.0, data=given).images
    assert all(torch.equal(a, b) for a, b in zip(encoded.latents, again.latents))


def test_other_networks_are_refused_by_name(vae, clip):
    with pytest.raises(ValueError, match=r"Flux \(Flux\) does not route its attention"):
        train(*parts("flux", clip, vae))


def merge(model, clip, concepts, regular_prompts=""):
    return CustomDiffusionMerge.execute(model, clip, concepts, "both", regular_prompts, "number it").args


def two(model, clip, vae, **knobs):
    """Trains two concepts; gives the lines for merging them."""
    return [train(model, clip, vae, name=n, seed=s, **dict(learning_rate=0.2) | knobs)[-1] for n, s in (("rex", 1), ("kit", 2))]


def check_values(model, lora, rows, concepts):
    """The features of each concept get the keys and values that its own file gives them."""
    for layer in host.layers_of(model):
        weight = host._weight(model, f"{layer}.weight")
        for own, concept in zip(rows, concepts):
            wanted = own @ (weight + concept.tensors[f"{layer}.diff"].double()).T
            assert_close(own @ (weight + lora[f"{layer}.diff"].double()).T, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["eps", "sdxl"])
def test_merged_concepts_read_as_each_file_has_them(kind, vae, clip, folders):
    """With one text encoder and with two."""
    model, clip, vae = parts(kind, clip, vae)
    lines = "\n".join(two(model, clip, vae, vectors=2))
    patched, lora, name = merge(model, clip, lines, regular_prompts="a dog\na house in the rain\ntwo red cats")
    concepts = host.concepts_of(lines)
    rows = [host._features(clip, c.prompts[0], c) for c in concepts]
    assert [len(r) for r in rows] == [2, 2] and not torch.allclose(*rows)
    check_values(model, lora, rows, concepts)
    loaded, _ = host_nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
    if kind == "eps":
        assert torch.equal(sampled(loaded), sampled(patched))
    before = CustomDiffusionMerge.fingerprint_inputs(lines)
    assert before == CustomDiffusionMerge.fingerprint_inputs(lines) and not CustomDiffusionMerge.fingerprint_inputs(None)
    os.utime(host._path("kit"), (1, 1))
    assert CustomDiffusionMerge.fingerprint_inputs(lines) != before
    with node_text() as text:
        assert merge(model, clip, lines)[2] == "both_2.safetensors" and not text.lines
        if kind == "eps":
            merge(tiny.unet("eps", seed=9), clip, lines)
            assert text.lines == [f"'{name}' was trained on another model, or with other LoRAs on it" for name in ("rex", "kit")]


PREFIXES = ("module.diffusion_model.", "_orig_mod.diffusion_model.", "lora_unet_", "unet.")


def rename(file: Path, model, prefix: str) -> None:
    """Gives the differences in a LoRA file the names that other tools write."""
    diffusers = {ours.removesuffix(".weight"): theirs for theirs, ours in unet_to_diffusers(model.model.model_config.unet_config).items()}

    def other(key: str) -> str:
        layer = key.removeprefix("diffusion_model.").removesuffix(".diff")
        theirs = diffusers[layer].removesuffix(".weight")
        kinds = {"unet.": theirs.replace(".to_", ".processor.to_"), "lora_unet_": theirs.replace(".", "_")}
        return f"{prefix}{kinds.get(prefix, layer)}.diff"

    save_file({other(k) if k.endswith(".diff") else k: t for k, t in load_file(file).items()}, file)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_concepts_merge_alike_under_names_of_other_tools(prefix, eps_model, vae, clip, folders):
    lines = "\n".join(two(eps_model, clip, vae))
    wanted = merge(eps_model, clip, lines)[1]
    rename(folders / "loras" / "rex.safetensors", eps_model, prefix)
    found = merge(eps_model, clip, lines)[1]
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_a_prompt_with_both_words_says_of_each_concept_its_own(eps_model, vae, clip, folders):
    both = "embedding:kit cat beside embedding:rex cat"
    lines = "\n".join([*two(eps_model, clip, vae, vectors=2), f"rex = {both}", f"kit = {both}"])
    lora, concepts = merge(eps_model, clip, lines)[1], host.concepts_of(lines)
    rows = [host._features(clip, both, c) for c in concepts]
    everything = host._features(clip, both)
    assert [len(r) for r in rows] == [2, 2] and torch.equal(rows[1], everything[:2]) and torch.equal(rows[0], everything[4:6])
    check_values(eps_model, lora, rows, concepts)


def test_words_that_follow_a_new_one_stay_as_they_are(eps_model, vae, clip, folders):
    """They have nearly the same features after another new word, for which they would ask for other values."""
    rest = "cat on a red mat in a small garden"
    lines = "\n".join(two(eps_model, clip, vae, instance_prompt=f"a <concept> {rest}"))
    lora, single = merge(eps_model, clip, lines)[1], host.concepts_of(lines)[0].tensors
    rows = host._features(clip, f"a {rest}")
    assert all((rows @ lora[k].double().T).norm() < 0.5 * (rows @ single[k].double().T).norm() for k in lora)


def test_only_what_can_be_merged_is(eps_model, vae, clip, folders):
    line = train(eps_model, clip, vae)[-1]
    adapters.save("lora", {"diffusion_model.input_blocks.0.0.diff": torch.zeros(32, 4, 3, 3)}, {}, {})
    adapters.save("flux", {"transformer.double_blocks.0.img_attn.proj.diff": torch.zeros(4, 4)}, {}, {})
    for text, message in (
        (line, "fewer than two concepts"),
        (f"{line}\nkit", "does not say 'name = prompt'"),
        (f"{line}\nkit = a cat", "There is no 'kit.safetensors' in the loras folder"),
        (f"{line}\nlora = a dog", "'lora' changes diffusion_model.input_blocks.0.0"),
        (f"{line}\nflux = a dog", "'flux' has nothing for this model"),
        (f"{line}\n{line}", "fewer than two concepts"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(eps_model, clip, text)
    assert not (folders / "loras" / "both.safetensors").exists()


def test_a_line_must_name_its_word_anywhere(eps_model, vae, clip, folders):
    lines = two(eps_model, clip, vae, learning_rate=0.05)
    late = "a small house in the green hills and " * 12 + "embedding:rex"
    (concept, _) = host.concepts_of(f"rex = {late}\n{lines[1]}")
    features = clip.encode_from_tokens_scheduled(clip.tokenize(late))[0][0][0].double()
    (row,) = host._features(clip, late, concept)
    assert features.shape[0] == 154 and (features - row).abs().sum(1).argmin() > 77 and float((features - row).abs().sum(1).min()) == 0
    for text in ("a dog in snow", "a embedding:rax cat"):
        with pytest.raises(ValueError, match=r"The line 'rex = .*' names no word that 'rex' was trained with. Write embedding:rex"):
            merge(eps_model, clip, f"rex = {text}\n{lines[1]}")


def test_the_lines_for_merging_are_those_that_name_the_words(eps_model, vae, clip):
    given = dict(captions=["a <concept> cat\na dog in snow"], prior_weight=0.0)
    assert train(eps_model, clip, vae, **given)[-1] == "rex = a embedding:rex cat"
