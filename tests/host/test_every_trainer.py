"""What every trainer promises, asked of each of them on tiny models."""

import copy
import gc
import math
import re
import weakref
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management
import comfy.sd
import folder_paths
import latent_preview
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_lumina2 import RenormCFG
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.classifier_training import NoisyClassifierTrainer
from controlled_diffusion.nodes.custom_diffusion import CustomDiffusionTrainer
from controlled_diffusion.nodes.dreambooth import DreamBoothTrainer
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.host.attention import attention_maps
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFGWrapper
from controlled_diffusion.nodes.host.training import memory
from controlled_diffusion.nodes.inputs.checks import with_checks
from controlled_diffusion.nodes.instruct_training import InstructPix2PixTrainer
from controlled_diffusion.nodes.textual_inversion import TIEmbeddingTrainer
from controlled_diffusion.nodes.training_options import ClassImages
from controlled_diffusion.training.loop import Diverged, Loop
from safetensors.torch import load_file

from host import editing, tiny
from host.sampling import ksampler
from host.training import execute, images, option, output, stopping_at, watching

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
PAIR = dict(before=[images()], after=[images(seed=1)], instructions=["make it red", "remove it"])
COMMON = dict(name="thing", steps=4, seed=4, validation_cfg=7.0)
CLASS = dict(class_prompt="a cat", class_count=2, class_batch=2, learning_rate=0.05, batch_size=1)
LOOK = dict(warmup=0, validation_count=0, validation_steps=2, schedule="constant")
WORD_OF, TOLD = dict(placeholder="<z>", initial_words="cat", validation_prompt="a {}"), dict(labels=["red", "blue"], held_out=0.0)
TRAINERS = {  # node, folder of its file, what it is given
    "textual inversion": (TIEmbeddingTrainer, "embeddings", dict(images=[images()], **WORD_OF, batch_size=2, **LOOK)),
    "dreambooth": (DreamBoothTrainer, "loras", dict(images=[images()], instance_prompt="a zz cat", rank=2, **CLASS, **LOOK)),
    "custom diffusion": (CustomDiffusionTrainer, "loras", dict(images=[images()], instance_prompt="a <concept> cat", word_rate=0.005, **CLASS, **LOOK)),
    "instructions": (InstructPix2PixTrainer, "diffusion_models", dict(**PAIR, validation_image_scale=1.5, rank=4, batch_size=2, learning_rate=0.01, **LOOK)),
    "classifier": (NoisyClassifierTrainer, classifier.CLASSIFIERS.name, dict(images=[images()], **TOLD, batch_size=2, average=0.0)),
}
CONCEPTS = [k for k in TRAINERS if k != "classifier"]  # those that train on the model itself


@pytest.fixture(scope="module")
def made(reading_clip):
    """(model, clip, vae), made in inference mode as loader nodes make them. Nothing here may change them."""
    with torch.inference_mode():
        return SimpleNamespace(model=tiny.unet("eps", output_scale=0.3), clip=reading_clip, vae=tiny.vae())


def train(kind, made, **knobs):
    """What the node gives, with its defaults and a few steps."""
    node, _, given = TRAINERS[kind]
    return execute(node, **COMMON | given | knobs | vars(made))


def file(kind, name="thing"):
    """What was saved; embeddings that lie in it have the file's own name, which is taken off."""
    found = load_file(folder_paths.get_folder_paths(TRAINERS[kind][1])[0] + f"/{name}.safetensors")
    return {k.replace(f"bundle_emb.{name}.", "word."): v for k, v in found.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


every_trainer = pytest.mark.parametrize("kind", list(TRAINERS))
of_concepts = pytest.mark.parametrize("kind", CONCEPTS)


@pytest.mark.parametrize(("kind", "family"), [*((k, "eps") for k in TRAINERS), ("textual inversion", "v"), ("textual inversion", "flow")])
def test_inputs_are_unchanged(kind, family, made):
    """Neither values nor options nor gradients nor hooks, and what was sampled before is sampled again."""
    made = made if family == "eps" else SimpleNamespace(**vars(made) | {"model": tiny.unet(family)})
    parts = made.model.model, made.clip.cond_stage_model, made.vae.first_stage_model

    def states():
        return [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]

    def sampled():
        return ksampler(made.model, tiny.conditioning(1), tiny.conditioning(0), 3.0)

    def asked():
        """Which of the weights ask for a gradient: those of a text encoder do where ComfyUI made them so."""
        return [p.requires_grad for part in parts[:2] for p in part.parameters()]

    image, before, options, asking = sampled(), states(), made.model.model_options.copy(), asked()
    train(kind, made)
    assert all(equal(now, then) for now, then in zip(states(), before))
    assert made.model.model_options == options and not made.model.patches and not made.model.wrappers
    assert not made.model.weight_wrapper_patches and not [m for m in parts[0].modules() if getattr(m, "weight_function", None)]
    assert not made.model.get_nested_additional_models() and not comfy.model_management.in_training
    assert asked() in (asking, [False] * len(asking)) and not any(p.grad is not None for part in parts[:2] for p in part.parameters())
    assert not [m for part in parts for m in part.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert torch.equal(sampled(), image)


@pytest.mark.parametrize("kind", ["textual inversion", "dreambooth"])
def test_a_compiled_model_trains_as_it_would_uncompiled(kind, made, caplog):
    """Compiled, the second training would run the first one's adapters."""
    compiled = made.model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    given = SimpleNamespace(**vars(made) | {"model": compiled})
    with caplog.at_level("WARNING"):
        for seed in (1, 2):
            for name, models in (("plain", made), ("compiled", given)):
                train(kind, models, name=f"{name}-{seed}", seed=seed, steps=2, prior_weight=0.0)
            assert equal(file(kind, f"compiled-{seed}"), file(kind, f"plain-{seed}"))
    assert "Training runs without torch.compile" in caplog.text and compiled.wrappers


def test_a_network_with_compiled_parts_is_refused(made):
    model = made.model.clone()
    model.add_object_patch("diffusion_model.out", torch.compile(model.get_model_object("diffusion_model.out"), backend="eager"))
    with pytest.raises(ValueError, match=r"diffusion_model\.out is compiled.*before the node"):
        train("dreambooth", SimpleNamespace(**vars(made) | {"model": model}))


WORD = dict(placeholder="<subject>", instance_prompt="a <subject>")


@pytest.mark.parametrize(("kind", "knobs"), [*((k, {}) for k in CONCEPTS), ("dreambooth", WORD), ("dreambooth", dict(train="all weights"))])
def test_weights_that_loading_moves_are_trained_with(kind, knobs, made, folders):
    """On a GPU ComfyUI gives weights that a node made in inference mode new data, in the mode that it is called in."""
    clip = tiny.clip(torch.float32, embedding_directory=[str(folders / "embeddings")])
    moved = [tiny.as_on_a_gpu(part) for part in (tiny.unet("eps"), clip, tiny.vae())]
    given = SimpleNamespace(**dict(zip(("model", "clip", "vae"), moved)))
    for number in range(2):
        results = train(kind, given, name=f"thing{number}", steps=2, validation_count=1, validation_steps=1, **knobs)
        assert all(x.isfinite().all() for x in results if torch.is_tensor(x))


@every_trainer
def test_a_stop_keeps_the_weights_and_a_run_continues(kind, made):
    train(kind, made, name="whole", steps=6)
    with stopping_at(1, 6):
        train(kind, made, steps=6)
    part = file(kind)
    assert all(torch.isfinite(v).all() for v in part.values()) and not equal(part, file(kind, "whole"))
    train(kind, made, steps=6, if_exists="continue")
    assert equal(file(kind), file(kind, "whole"))


@pytest.mark.parametrize("kind", ["textual inversion", "instructions"])
def test_a_stopped_training_runs_again(kind, made):
    """What ComfyUI would otherwise give out of its cache; and a finished one is not what it was before the stop."""
    node = TRAINERS[kind][0]

    def fingerprint(**more):
        return node.fingerprint_inputs(**{"folder": [""], "name": ["thing"], "steps": [8], "if_exists": ["continue"], **more})

    def auto():
        return fingerprint(steps=[-1])

    def go_on(name="thing"):
        train(kind, made, name=name, steps=8, if_exists="continue")

    assert fingerprint() == fingerprint(name=[None]) == fingerprint(name=["../x"]) == ""
    with stopping_at(1, 8):
        go_on()
    assert fingerprint() == auto() == "1 of 8" and fingerprint(if_exists=["number it"]) == fingerprint(steps=[None]) == ""
    go_on()
    assert fingerprint() == auto() == "8 of 8" and fingerprint(steps=[9]) == "8 of 9"
    go_on("once")
    assert fingerprint(name=["once"]) == ""  # never stopped: its outputs may stay in the cache
    go_on("once")
    assert fingerprint(name=["once"]) == ""


@of_concepts
def test_a_continued_training_repeats_the_losses(kind, made, monkeypatch):
    seen, run = [], Loop.run
    monkeypatch.setattr(Loop, "run", lambda self, loss_of: (seen.append(step) or step for step in run(self, loss_of)))
    train(kind, made, name="whole", steps=4, average=0.9)
    whole, _ = [s.loss for s in seen], seen.clear()
    for steps in (2, 4):
        train(kind, made, name="parts", steps=steps, average=0.9, if_exists="number it" if steps == 2 else "continue")
    assert [s.loss for s in seen] == whole and len(whole) == 4


@of_concepts
def test_a_state_of_other_weights_is_not_continued(kind, made):
    """Trained weights that belong half to one model and half to another would fit neither."""
    train(kind, made, steps=1, prior_weight=0.0)
    patched, other_layer = comfy.sd.load_lora_for_models(made.model, None, tiny.lora(made.model), 1.0, 0.0)[0], made.clip.clone()
    other_layer.clip_layer(-2)
    for name, other in (("model", tiny.unet("eps", seed=9, output_scale=0.3)), ("model", patched), ("clip", other_layer)):
        with pytest.raises(ValueError, match=rf"state of another training: .*\b{name} was \w+, now \w+"):
            train(kind, SimpleNamespace(**vars(made) | {name: other}), steps=2, prior_weight=0.0, if_exists="continue")


@of_concepts
def test_a_clip_of_several_texts_is_refused(kind, made):
    """One that changes in the middle of the sampling: each image is trained under one text."""
    hooks, keys, clip = comfy.hooks.HookGroup(), comfy.hooks.HookKeyframeGroup(), made.clip.clone()
    keys.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.5))
    hooks.add(comfy.hooks.WeightHook())
    hooks.set_keyframes_on_hooks(keys)
    clip.patcher.forced_hooks, clip.use_clip_schedule = hooks, True
    with pytest.raises(ValueError, match=r"The CLIP gives 2 conditionings for .*Remove hooks and schedules"):
        train(kind, SimpleNamespace(**vars(made) | {"clip": clip}), steps=1, prior_weight=0.0)


@of_concepts
def test_where_the_loss_is_lost_the_last_good_file_is_kept(kind, made):
    """The trained weights diverge."""
    knobs = dict(optimizer="sgd") | (dict(norm="free") if kind in ("textual inversion", "custom diffusion") else {})
    with pytest.raises(Diverged, match=r"diverged: the \w+ became (nan|inf) at step \d.* They are saved: .*thing"):
        train(kind, made, learning_rate=1e30, steps=40, **knobs)
    assert all(torch.isfinite(v).all() for v in file(kind).values())


@of_concepts
def test_the_running_average_is_what_the_file_holds(kind, made):
    """Files after one, two and three steps, since a shorter run is the beginning of a longer one, and the average over three."""
    whole = dict(train="all weights") if kind == "instructions" else {}  # where the file holds the trained weights, and no product of them
    for steps in (1, 2, 3):
        train(kind, made, name=f"after-{steps}", steps=steps, **whole)
    share = 0.15
    for steps in (1, 3):
        train(kind, made, name=f"average-{steps}", steps=steps, average=share, **whole)
    one, two, three, first, found = (file(kind, n) for n in ("after-1", "after-2", "after-3", "average-1", "average-3"))
    moved = [k for k in three if not torch.equal(one[k], three[k])]
    assert moved and all(not torch.equal(found[k], three[k]) for k in moved)
    for k in moved:
        expected = share**2 * first[k] + (1 - share) * (share * two[k] + three[k])
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-6)


@of_concepts
def test_validation_images_are_shown_on_the_node_while_it_trains(kind, made):
    shown = []
    with watching(lambda value, total, preview: preview and total == 4 and shown.append((value, preview[1].size))):
        train(kind, made, validation_count=1, validation_every=2, prior_weight=0.0)
    wide = 128 if kind == "instructions" else 64  # before and after, side by side
    assert shown == [(2, (wide, 64)), (4, (wide, 64))]


@of_concepts
def test_previews_of_training_images_until_validation_images(kind, made, monkeypatch):
    """By the method that the user has set in ComfyUI."""
    shown = []
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    with watching(lambda value, total, preview: preview and total == 4 and shown.append((value, preview[1].height))):
        train(kind, made, validation_count=1, validation_every=2, prior_weight=0.0)
    assert shown == [(1, 8), (2, 8), (2, 64), (4, 64)]


PLACE = {"textual inversion": 2, "dreambooth": 5, "custom diffusion": 5, "instructions": 3}  # of the validation images


def unsampled(model):
    """A model that no sampling takes, as one of another node may be; it is trained with as it is."""

    def fail(args):
        raise RuntimeError("no image today")

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(fail)
    return patched


@of_concepts
def test_validation_that_fails_leaves_the_training(kind, made, caplog):
    """It goes on, its outputs come, and the node's text and the log say why images are missing."""
    knobs = dict(prior_weight=0.0)
    train(kind, made, name="plain", **knobs)
    lost = SimpleNamespace(**vars(made) | {"model": unsampled(made.model)})
    node, _, given = TRAINERS[kind]
    looks = dict(validation_count=2, validation_every=2)
    with caplog.at_level("WARNING"):
        found = output(node, **COMMON | given | knobs | looks | vars(lost))
    assert equal(file(kind), file(kind, "plain"))
    why = "No validation images after step 2, 4: RuntimeError: no image today"
    assert found.ui.value.endswith(why) and why in found.args[PLACE[kind]].message
    assert found.args[PLACE[kind] - 1].shape[-1] == 3, "the loss curve"
    assert caplog.text.count("could not be sampled; the training goes on") == 2 and "RuntimeError: no image today" in caplog.text


def lost(vae):
    """A VAE that decodes NaN, as one does whose precision is too low."""
    found = copy.copy(vae)
    found.decode = lambda samples: vae.decode(samples) * math.nan
    return found


@of_concepts
def test_validation_images_of_nan_are_none(kind, made):
    found = train(kind, SimpleNamespace(**vars(made) | {"vae": lost(made.vae)}), validation_count=1, prior_weight=0.0)
    assert isinstance(found[PLACE[kind]], ExecutionBlocker)
    assert re.search("images hold NaN or infinity: .* --fp32-vae", found[PLACE[kind]].message)
    assert file(kind)


def test_class_images_of_nan_are_not_kept(made, folders):
    """They would be black images, which a later training takes from the disk."""
    with pytest.raises(ValueError, match="The sampled images hold NaN or infinity"):
        train("dreambooth", SimpleNamespace(**vars(made) | {"vae": lost(made.vae)}))
    assert not list(folders.rglob("*.png"))


@of_concepts
@pytest.mark.parametrize("stopped", [False, True])
def test_the_node_says_when_the_loss_did_not_fall(kind, stopped, made, caplog):
    """On the same samples before and after, also of a run that was stopped in between; at rate 0 nothing moves."""
    node, _, given = TRAINERS[kind]
    knobs = COMMON | given | vars(made) | dict(steps=10, learning_rate=0.0)
    if stopped:
        with stopping_at(3, 10):
            shown = output(node, **knobs).ui
        assert shown is None, f"a stopped training is not judged: {shown.value}"
    with caplog.at_level("WARNING"):
        text = output(node, **knobs, if_exists="continue").ui.value
    assert re.match(r"The loss did not fall: (\S+) before, \1 after training \([+-]0.0%\), both on the same samples\. If images", text)
    assert text in caplog.text


@pytest.mark.parametrize("kind", ["dreambooth", "custom diffusion"])
def test_the_node_says_when_class_images_are_missing(kind, made):
    node, _, given = TRAINERS[kind]
    knobs = COMMON | given | vars(made)
    assert output(node, **knobs).ui is None
    assert "Connect Class Images" in output(node, **knobs, prior_weight=0.0).ui.value


@of_concepts
def test_the_node_says_how_the_loss_changed(kind, made, monkeypatch):
    """Of the first samples: before, it is that of the first step; after, that of the trained weights, which a finished run still knows."""
    seen, run = [], Loop.run
    monkeypatch.setattr(Loop, "run", lambda self, loss_of: (seen.append(step) or step for step in run(self, loss_of)))
    node, _, given = TRAINERS[kind]
    knobs = COMMON | given | vars(made) | dict(steps=10)
    text, again = (output(node, **knobs, if_exists="continue").ui.value for _ in range(2))
    before, after = re.search(r": (\S+) before, (\S+) after", text).groups()
    assert before == f"{seen[0].loss:.4g}" and after != before and text == again


def test_renorm_cfg_fails_validation_and_not_the_training(made):
    """ComfyUI's node fails at every batch of two."""
    model = RenormCFG.execute(made.model, 100.0, 1.0).args[0]
    found = train("dreambooth", SimpleNamespace(**vars(made) | {"model": model}), validation_count=2, prior_weight=0.0)
    assert isinstance(found[5], ExecutionBlocker) and "Boolean value of Tensor" in found[5].message


def captured(model, clip):
    return attention_maps.prepare(model, clip, "a cat", "cat", "all", 0.0, 1.0, 1, None)[0]


def edited(model, clip):
    return editing.patch(model, clip, "a dog", "a cat")[0]


@of_concepts
@pytest.mark.parametrize(("mark", "node"), [(captured, "Attention Map Capture"), (edited, "P2P Attention Patch")])
def test_models_with_marks_are_refused_before_the_first_step(kind, mark, node, made, folders):
    marked = SimpleNamespace(**vars(made) | {"model": mark(made.model, made.clip)})
    with watching(lambda *now: pytest.fail("nothing may begin")), pytest.raises(ValueError, match=f"comes from {node}, .* cannot be trained through"):
        train(kind, marked, validation_count=1)
    assert not list(folders.rglob("*.safetensors"))


@of_concepts
def test_channels_on_the_model_are_no_matter_of_training(kind, made):
    """Nothing is trained on them, and no error speaks of a sampling that the user did not start."""
    train(kind, made, name="plain", prior_weight=0.0)
    patched = MultiCFGWrapper([Channel(tiny.conditioning(3), 2.0)], Rules(rescale=0.5)).install(made.model)
    train(kind, SimpleNamespace(**vars(made) | {"model": patched}), prior_weight=0.0)
    assert equal(file(kind), file(kind, "plain"))


@of_concepts
def test_nothing_keeps_the_model_after_a_training(kind, made):
    """No circle of references: ComfyUI frees a model without one, and else collects garbage at every later load."""
    gc.collect()
    gc.disable()
    try:
        own = SimpleNamespace(**vars(made) | {"model": made.model.clone()})
        gone = weakref.ref(own.model)
        train(kind, own, prior_weight=0.0)
        del own
        assert gone() is None
    finally:
        gc.enable()


@every_trainer
def test_the_curve_shows_losses_and_the_learning_rate(kind, made):
    """The same losses under another schedule differ below, in the rate, and hardly above."""
    place = {"textual inversion": 1, "dreambooth": 4, "custom diffusion": 4, "instructions": 2, "classifier": 2}[kind]
    falling, constant = (train(kind, made, name=s, schedule=s, learning_rate=1e-9, warmup=0)[place] for s in ("linear", "constant"))
    assert falling.shape == constant.shape == (1, 384 + 220, 768, 3)
    assert (falling - constant)[:, 384:].abs().mean() > 1e-3


@of_concepts
def test_images_and_sentences_that_stay_are_encoded_once(kind, made, monkeypatch):
    def encoded(steps):
        seen = []
        for part, name in ((type(made.vae), "encode"), (type(made.clip), "encode_from_tokens_scheduled")):
            own = getattr(part, name)
            monkeypatch.setattr(part, name, lambda self, *a, own=own, name=name, **k: seen.append(name) or own(self, *a, **k))
        train(kind, made, name=f"of-{steps}", steps=steps)
        monkeypatch.undo()
        return sorted(seen)

    train(kind, made, name="first")  # samples class images, which are kept
    assert encoded(2) == encoded(7) and encoded(2).count("encode") == (2 if kind == "textual inversion" else 4)


@of_concepts
def test_one_image_is_enough(kind, made):
    one = dict(before=[images(1)], after=[images(1, seed=1)], instructions=["make it red"])
    train(kind, made, **(one if kind == "instructions" else dict(images=[images(1)])))
    assert file(kind)


def test_one_image_cannot_be_told_from_others(made):
    with pytest.raises(ValueError, match="nothing to tell apart"):
        train("classifier", made, images=[images(1)], labels=["red"])


LOST = torch.full((2, 64, 64, 3), torch.nan)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *[(kind, "images") for kind in TRAINERS if kind != "instructions"],
        *[("instructions", side) for side in ("before", "after")],
        *[(kind, "masks") for kind in CONCEPTS[:3]],
    ],
)
def test_images_that_hold_no_numbers_are_refused(kind, what, made, folders):
    node, _, given = TRAINERS[kind]
    lost, socket = (LOST[..., 0], "dataset_options") if what == "masks" else (LOST, what)
    with pytest.raises(ValueError, match=f"'{socket}' holds NaN"):
        execute(with_checks(node), **COMMON | given | {what: [lost]} | vars(made))
    assert not list(folders.rglob("*.safetensors"))


def test_class_images_that_hold_no_numbers_are_refused():
    with pytest.raises(ValueError, match="'images' holds NaN"):
        option(with_checks(ClassImages), images=[LOST], class_prompt="a cat")


@every_trainer
def test_names_that_leave_the_folder_are_refused(kind, made, folders):
    with pytest.raises(ValueError, match="The name '"):
        train(kind, made, name="../thing")
    assert not list(folders.rglob("*.safetensors"))


@every_trainer
def test_a_file_that_is_there_is_never_written_over_unasked(kind, made, folders):
    train(kind, made)
    first = file(kind)
    train(kind, made, seed=5)
    assert equal(file(kind), first) and not equal(file(kind, "thing_2"), first)
    with pytest.raises(ValueError, match="'thing' exists"):
        train(kind, made, if_exists="refuse")
    assert equal(file(kind), first)


@of_concepts
def test_memory_that_is_not_there_is_told_before_the_first_step(kind, made, monkeypatch, folders):
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2**10)
    with pytest.raises(ValueError, match=r"needs (about )?\d+ MB (of memory )?beside the model, and 0 MB are free"):
        train(kind, made)
    assert not list(folders.rglob("*.safetensors"))
