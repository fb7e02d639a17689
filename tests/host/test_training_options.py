"""Option nodes of trainers: without one a trainer's defaults count, and what a trainer cannot use is an error that names it."""

import pytest
import torch
from controlled_diffusion.nodes import textual_inversion, training_options
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.inputs import training as inputs
from controlled_diffusion.nodes.inputs.training import OPTIONS
from controlled_diffusion.training.textual_inversion import Word

from host import test_every_trainer
from host.test_every_trainer import COMMON, TRAINERS, equal, file, train
from host.training import execute, ids, images, option

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
made = test_every_trainer.made
NODES = {node.GET_SCHEMA().outputs[0].display_name: node for node in training_options.NODES}


@pytest.mark.parametrize("socket", ["training_options", "dataset_options", "validation_options"])
def test_a_new_option_node_says_what_none_says(socket):
    assert option(NODES[socket]) == OPTIONS[socket].usual


@pytest.mark.parametrize("kind", ["textual inversion", "classifier"])
def test_new_option_nodes_leave_the_weights_bit_identical(kind, made, folders):
    """Those trainers have defaults of their own, which a negative value stands for."""
    node, _, given = TRAINERS[kind]
    own = COMMON | {k: v for k, v in given.items() if k in ids(node)} | vars(made)
    asked = {k: option(NODES[k]) for k in ("training_options", "dataset_options", "validation_options") if k in ids(node)}
    for name, more in (("plain", {}), ("asked", asked)):
        execute(node, **own | more | dict(name=name))
    assert len(asked) >= 2 and equal(file(kind, "plain"), file(kind, "asked"))


def test_class_images_and_words_are_as_typed():
    prior = option(NODES["class_images"], class_prompt="a cat", class_count=3, ratio="1:2")
    assert (prior.prompt, prior.count, prior.preservation.ratio, prior.preservation.weight, prior.images) == ("a cat", 3, 2, 1.0, ())
    subject = option(NODES["new_word"], placeholder="<a>, <b>", initial_words="cat", word_rate=0.01)
    assert subject.words == (Word("<a>", "cat"), Word("<b>", "cat")) and subject.word_rate == 0.01


@pytest.mark.parametrize(
    ("kind", "knobs", "said"),
    [
        ("dreambooth", {}, "auto for SD1.5: cfg 7.5"),
        ("dreambooth", dict(placeholder="<z>", instance_prompt="a <z>"), "auto for SD1.5: cfg 7.5\nauto for SD1.5: word_rate 0.005"),
        ("custom diffusion", {}, "auto for SD1.5: cfg 7.5\nauto for SD1.5: word_rate 0.005"),
        ("instructions", {}, "auto for SD1.5: cfg 7.5, image_scale 1.5"),
    ],
)
def test_a_trainer_says_what_option_nodes_leave_to_it(kind, knobs, said, made, folders):
    node, _, given = TRAINERS[kind]
    fixed = ("word_rate", "validation_image_scale", "validation_cfg")
    given = {k: v for k, v in (COMMON | given).items() if k not in fixed}
    with progress.node_text() as text:
        execute(node, **given | knobs | vars(made))
    assert "\n".join(text.lines) == said


def test_settings_that_leave_the_weights_as_they_are_are_said():
    """Options are shared by trainers, and captions are taken off and put back."""
    given = {k: option(NODES[k], **v) for k, v in (("training_options", {"checkpointing": "on"}), ("validation_options", {"image_scale": 2.0}))}
    dropping = option(NODES["dataset_options"], caption_dropout=0.2, clean_caption_dropout=0.1)
    with progress.node_text() as text:
        inputs.option(given, "training_options", "Train X", unused=["checkpointing"])
        inputs.validation(given | {"validation_prompt": "a"}, "Train X")
        textual_inversion._data(dict(images=[images()], dataset_options=[dropping]))
    assert text.lines == [
        "checkpointing of Training Options is not used by Train X",
        "image_scale of Validation Options is not used by Train X",
        "caption_dropout of Dataset Options is not used where there are no captions",
        "clean_caption_dropout of Dataset Options is not used where there are no captions",
    ]


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        ("classifier", dict(captions="a\nb"), "^Train Noisy Classifier cannot use captions of Dataset Options. Leave them empty there.$"),
        ("classifier", dict(masks=[torch.ones(2, 64, 64)]), "cannot use masks of Dataset Options"),
        ("classifier", dict(variants=2, scale=0.5), "cannot use scale of Dataset Options, which is 0.5. Set it to 0.0 there.$"),
        ("classifier", dict(timesteps="shifted"), "cannot use timesteps of Training Options, which is 'shifted'. Set it to 'auto' there.$"),
        ("classifier", dict(start_percent=0.5), "cannot use start_percent of Training Options, which is 0.5"),
        ("instructions", dict(caption_dropout=0.1), r"^Train Instruction Model .* cannot use caption_dropout of Dataset Options, which is 0.1"),
        ("instructions", dict(variants=2, crop=0.2), "cannot use variants of Dataset Options, which is 2"),
        ("dreambooth", dict(crop=0.2), "crop, jitter and scale change variants of the images, but variants is 0"),
        ("dreambooth", dict(start_percent=0.6, end_percent=0.5), r"start_percent is 0\.6 and end_percent 0\.5"),
    ],
)
def test_what_a_trainer_cannot_use_is_named(kind, knobs, message, made, folders):
    with pytest.raises(ValueError, match=message):
        train(kind, made, **knobs)
    assert not list(folders.rglob("*.safetensors"))
