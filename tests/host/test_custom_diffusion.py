"""Custom Diffusion on tiny UNets: what learns and what does not, its files, and concepts merged."""

import folder_paths
import nodes as host_nodes
import pytest
import torch
from controlled_diffusion.nodes.custom_diffusion import CustomDiffusionMerge, CustomDiffusionTrainer
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import custom_diffusion as host
from controlled_diffusion.nodes.host.training.embeddings import EMBEDDINGS
from controlled_diffusion.training.augmentation import Augmentation
from controlled_diffusion.training.settings import Data
from safetensors.torch import load_file

from compare import assert_close
from host import tiny, tiny_text
from host.test_dreambooth import base, clip, derivatives, folders, images, inside, sampled, stir, task_of  # noqa: F401
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")


def train(model, clip, vae, given=None, **knobs):  # noqa: F811
    """What the node gives with its defaults and a few steps."""
    usual = defaults(CustomDiffusionTrainer) | dict(name="rex", instance_prompt="a <concept> cat", class_prompt="a cat", steps=3, warmup=0)
    usual |= dict(learning_rate=0.05, class_count=2, validation_steps=2, validation_count=0, seed=4, batch_size=1)
    lists = {k: v if isinstance(v, list) else [v] for k, v in {**usual, **knobs}.items()}
    return CustomDiffusionTrainer.execute(
        model=[model], clip=[clip], vae=[vae], images=[images()] if given is None else given, **lists
    ).args


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_the_gradient_agrees_with_finite_differences_but_for_the_first_token(family, vae, clip, monkeypatch):  # noqa: F811
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


def test_it_is_the_model_at_first_and_the_file_gives_what_was_trained(any_model, vae, clip, folders):  # noqa: F811
    plain = sampled(any_model)
    task = task_of(any_model, clip, vae, host.KeysAndValues(), word=True)
    assert torch.equal(sampled(task.model), plain)
    stir(task)
    trained = sampled(task.model)
    adapters.save("rex", task.adapters.tensors(), {}, {})
    loaded, _ = host_nodes.LoraLoader().load_lora(any_model, clip, "rex.safetensors", 1.0, 1.0)
    assert torch.equal(sampled(loaded), trained) and not torch.equal(trained, plain) and torch.equal(sampled(any_model), plain)


def test_keys_and_values_and_a_word_are_learnt_and_nothing_else(eps_model, vae, clip, folders):  # noqa: F811
    model, lora, name, word, curve, _, concept = train(eps_model, clip, vae)
    assert word == "embedding:rex" and concept == "rex = a embedding:rex cat" and curve.ndim == 4 and name == "rex.safetensors"
    assert lora and all(k.endswith(("attn2.to_k.diff", "attn2.to_v.diff")) for k in lora)
    assert set(load_file(folders / "loras" / name)) == {*lora, "bundle_emb.rex.clip_l"} and EMBEDDINGS.existing("rex")
    loaded, _ = host_nodes.LoraLoader().load_lora(eps_model, clip, name, 1.0, 1.0)
    assert torch.equal(sampled(loaded), sampled(model))


def test_several_concepts_are_learnt_jointly_with_images_at_other_scales(eps_model, vae, clip, folders):  # noqa: F811
    """As the paper does: one file of keys and values, a word for each, and images that are said to be far or near."""
    knobs = dict(placeholder="<a>, <b>", initial_words="cat, dog", captions=["a <a>\na <b>"], prior_weight=0.0, variants=6, scale=1.0)
    _, lora, _, word, _, _, concept = train(eps_model, clip, vae, **knobs)
    lines = concept.splitlines()
    assert word == "embedding:rex-a embedding:rex-b" and lines[:2] == ["rex = a embedding:rex-a", "rex = a embedding:rex-b"]
    assert any(line.startswith(("rex = very small a ", "rex = a far away a ", "rex = zoomed in a ", "rex = close up a ")) for line in lines)
    file = load_file(folders / "loras" / "rex.safetensors")
    assert set(file) == {*lora, "bundle_emb.rex-a.clip_l", "bundle_emb.rex-b.clip_l"}


def test_variants_are_learnt_where_they_show_the_image(eps_model, vae, clip):  # noqa: F811
    given = Data([images()], augmentation=Augmentation(variants=12, scale=1.0))
    task = task_of(eps_model, clip, vae, host.KeysAndValues(), word=True, weight=0.0, data=given)
    encoded = task.images
    assert len(encoded) == 26 and encoded.originals == 2 and encoded.hints[:2] == ("", "") and any(encoded.hints)
    assert all(text == (f"{hint} a <z> cat".strip(),) for text, hint in zip(task.texts, encoded.hints))
    far = [float(m.mean()) for m, hint in zip(encoded.masks, encoded.hints) if hint in ("very small", "a far away")]
    assert far and all(0 < share < 0.36 for share in far) and float(encoded.masks[0].min()) == 1
    again = task_of(eps_model, clip, vae, host.KeysAndValues(), word=True, weight=0.0, data=given).images
    assert all(torch.equal(a, b) for a, b in zip(encoded.latents, again.latents))


def test_other_networks_are_refused_by_name(vae, folders):  # noqa: F811
    flux_clip = tiny_text.clip("flux", [str(folders / "embeddings")])
    with pytest.raises(ValueError, match=r"Flux \(Flux\) does not route its attention"):
        train(tiny_text.denoiser("flux"), flux_clip, tiny_text.vae("flux"))




def merge(model, clip, concepts, **knobs):  # noqa: F811
    return CustomDiffusionMerge.execute(
        model, clip, concepts, **(dict(name="both", regular_prompts="", if_exists="number it") | knobs)
    ).args


@pytest.fixture(params=["sd1", "sdxl"])
def made(request, eps_model, vae, clip):  # noqa: F811
    """(MODEL, CLIP, VAE) with one text encoder and with two."""
    if request.param == "sd1":
        return eps_model, clip, vae
    return (
        tiny_text.denoiser("sdxl"),
        tiny_text.clip("sdxl", embedding_directory=folder_paths.get_folder_paths("embeddings")),
        tiny_text.vae("sdxl"),
    )


def test_merged_concepts_read_as_each_file_has_them(made, eps_model, folders):  # noqa: F811
    model, clip, vae = made  # noqa: F811
    lines = [train(model, clip, vae, name=n, seed=s, learning_rate=0.2, vectors=2)[-1] for n, s in (("rex", 1), ("kit", 2))]
    patched, lora, name = merge(model, clip, "\n".join(lines), regular_prompts="a dog\na house in the rain\ntwo red cats")
    concepts = host.concepts_of("\n".join(lines))
    rows = [host._features(clip, c.prompts[0], c) for c in concepts]
    assert [len(r) for r in rows] == [2, 2] and not torch.allclose(*rows)
    for layer in host.layers_of(model):
        weight = host._weight(model, f"{layer}.weight")
        for own, concept in zip(rows, concepts):
            wanted = own @ (weight + concept.tensors[f"{layer}.diff"].double()).T
            assert_close(own @ (weight + lora[f"{layer}.diff"].double()).T, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    loaded, _ = host_nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
    if model is eps_model:
        assert torch.equal(sampled(loaded), sampled(patched))
    assert merge(model, clip, "\n".join(lines))[2] == "both_2.safetensors"


def test_a_prompt_with_both_words_says_of_each_concept_its_own(eps_model, vae, clip, folders):  # noqa: F811
    lines = [train(eps_model, clip, vae, name=n, seed=s, learning_rate=0.2, vectors=2)[-1] for n, s in (("rex", 1), ("kit", 2))]
    both = "embedding:kit cat beside embedding:rex cat"
    told = [*lines, f"rex = {both}", f"kit = {both}"]
    lora, concepts = merge(eps_model, clip, "\n".join(told))[1], host.concepts_of("\n".join(told))
    rows = [host._features(clip, both, c) for c in concepts]
    everything = host._features(clip, both)
    assert [len(r) for r in rows] == [2, 2] and torch.equal(rows[1], everything[:2]) and torch.equal(rows[0], everything[4:6])
    for layer in host.layers_of(eps_model):
        weight = host._weight(eps_model, f"{layer}.weight")
        for own, concept in zip(rows, concepts):
            wanted = own @ (weight + concept.tensors[f"{layer}.diff"].double()).T
            assert_close(own @ (weight + lora[f"{layer}.diff"].double()).T, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_words_that_follow_a_new_one_stay_as_they_are(eps_model, vae, clip, folders):  # noqa: F811
    """They have nearly the same features after another new word, for which they would ask for other values."""
    rest = "cat on a red mat in a small garden"
    lines = [train(eps_model, clip, vae, name=n, seed=s, learning_rate=0.2, instance_prompt=f"a <concept> {rest}")[-1] for n, s in (("rex", 1), ("kit", 2))]  # fmt: skip
    lora = merge(eps_model, clip, "\n".join(lines))[1]
    single = host.concepts_of("\n".join(lines))[0].tensors
    rows = host._features(clip, f"a {rest}")
    assert all((rows @ lora[k].double().T).norm() < 0.5 * (rows @ single[k].double().T).norm() for k in lora)


def test_only_what_can_be_merged_is(eps_model, vae, clip, folders):  # noqa: F811
    line = train(eps_model, clip, vae)[-1]
    adapters.save("lora", {"diffusion_model.input_blocks.0.0.diff": torch.zeros(32, 4, 3, 3)}, {}, {})
    for text, message in (
        (line, "fewer than two concepts"),
        (f"{line}\nkit", "does not say 'name = prompt'"),
        (f"{line}\nkit = a cat", "There is no 'kit.safetensors' in the loras folder"),
        (f"{line}\nlora = a dog", "'lora' changes diffusion_model.input_blocks.0.0"),
        (f"{line}\n{line}", "fewer than two concepts"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(eps_model, clip, text)
    assert not (folders / "loras" / "both.safetensors").exists()


def test_a_word_counts_wherever_it_stands_in_a_line_and_a_line_without_it_is_refused(eps_model, vae, clip, folders):  # noqa: F811
    lines = [train(eps_model, clip, vae, name=n, seed=s)[-1] for n, s in (("rex", 1), ("kit", 2))]
    late = "a small house in the green hills and " * 12 + "embedding:rex"
    (concept, _) = host.concepts_of(f"rex = {late}\n{lines[1]}")
    features = clip.encode_from_tokens_scheduled(clip.tokenize(late))[0][0][0].double()
    (row,) = host._features(clip, late, concept)
    assert features.shape[0] == 154 and (features - row).abs().sum(1).argmin() > 77 and float((features - row).abs().sum(1).min()) == 0
    for text in ("a dog in snow", "a embedding:rax cat"):
        with pytest.raises(ValueError, match=r"The line 'rex = .*' names no word that 'rex' was learnt with. Write embedding:rex"):
            merge(eps_model, clip, f"rex = {text}\n{lines[1]}")


def test_the_lines_for_merging_are_those_that_name_the_words(eps_model, vae, clip):  # noqa: F811
    given = dict(captions=["a <concept> cat\na dog in snow"], prior_weight=0.0)
    assert train(eps_model, clip, vae, **given)[-1] == "rex = a embedding:rex cat"
