"""Textual inversion: a new word for a concept, learnt from a few pictures."""

from dataclasses import fields

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..training.objectives import TIMESTEPS, WEIGHTINGS
from ..training.optimizers import OPTIMIZERS, SCHEDULES
from ..training.textual_inversion import KINDS, NORMS, TEMPLATES, own_templates
from .host import textual_inversion as host
from .host.naming import IF_EXISTS
from .host.training import Objective, levels

_LISTS = ("images", "captions", "masks")


def number(name, default, low, high, tooltip, step=0.01):
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=0.0001, advanced=True, tooltip=tooltip)


def whole(name, default, low, high, tooltip):
    return io.Int.Input(name, default=default, min=low, max=high, advanced=True, tooltip=tooltip)


def choice(name, options, tooltip, default=None):
    return io.Combo.Input(name, options=list(options), default=default, advanced=True, tooltip=tooltip)


def _learning() -> list:
    """What is learnt from each picture; what most users leave as it is."""
    return [
        number(
            "caption_dropout",
            0.1,
            0.0,
            0.99,
            "How often a caption is left out, so that the word learns to stand alone; 0 = never. Usual 0 to 0.3.",
        ),
        io.Boolean.Input(
            "flip", default=False, advanced=True, tooltip="Also learn from the pictures mirrored. Not for what has a left and a right."
        ),
        choice(
            "norm",
            NORMS,
            "How long the word's vectors may grow: 'limit' at most norm_limit times a typical word's length, so that it mixes with other words; "
            "'keep' the length they start with; 'free' any.",
        ),
        number(
            "norm_limit",
            1.5,
            0.01,
            100.0,
            "With norm 'limit': in typical lengths of word vectors. 1 = as long as a word; usual 1 to 3.",
            0.1,
        ),
        choice(
            "weighting",
            WEIGHTINGS,
            "What an error counts: 'own' is the plain error of what the model predicts, 'min-snr' limits clean levels to gamma, 'clean' is the "
            "error of the clean picture, as in the host's LoRA trainer.",
        ),
        number(
            "gamma",
            5.0,
            0.01,
            1000.0,
            "With weighting 'min-snr': the signal to noise ratio at which the weight stops growing. 5 in the paper.",
            0.1,
        ),
        choice(
            "timesteps",
            ("auto", *TIMESTEPS),
            "How noise levels are drawn: 'uniform' as SD1.5 was trained, 'logit-normal' mostly in the middle as SD3, 'shifted' to noise. "
            "'auto': logit-normal for flow models, else uniform.",
        ),
        number("start_percent", 0.0, 0.0, 0.99, "Learn at noise levels from this percent of the sampling on; 0 = from pure noise."),
        number("end_percent", 1.0, 0.01, 1.0, "Learn at noise levels up to this percent of the sampling; 1 = to the clean picture."),
    ]


def _run() -> list:
    """How the run goes; what most users leave as it is."""
    return [
        choice("optimizer", OPTIMIZERS, "AdamW, SGD with momentum, Adafactor, or Prodigy, which finds its own rate (learning_rate 1)."),
        choice("schedule", SCHEDULES, "How the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all."),
        whole("warmup", 10, 0, 100_000, "Steps over which the learning rate rises from 0. 0 = none; usual 0 to 100."),
        whole(
            "accumulate", 1, 1, 1024, "Batches in one step of the optimiser: as a batch that much larger, in the memory of one. 1 = plain."
        ),
        number(
            "average", 0.0, 0.0, 0.9999, "Save the running average of the vectors over about 1 / (1 - average) steps; 0 = the last.", 0.001
        ),
        whole("validation_count", 2, 0, 64, "Validation pictures at a time; 0 = none."),
        whole("validation_steps", 20, 1, 10_000, "Sampling steps of a validation picture. Usual 10 to 30."),
        number(
            "validation_cfg", 7.0, 0.0, 100.0, "Guidance scale of validation pictures: 7 for SD1.5, 4 for the demo model, 1 for Flux.", 0.1
        ),
        choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, "Sampler of validation pictures.", "euler"),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, "Scheduler of validation pictures.", "normal"),
        choice(
            "if_exists",
            IF_EXISTS,
            "Where an embedding of this name exists: save under a name with a number, refuse, replace it, or continue its training up to "
            "'steps'.",
        ),
    ]


class TIEmbeddingTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TIEmbeddingTrainer",
            display_name="Train Embedding (Textual Inversion)",
            category="controlled diffusion/training",
            description="Learns a new word for what a few pictures show, and saves it as an embedding that every prompt can use at once: "
            "embedding:name. Only the word's own vectors are learnt; the model and the text encoders stay as they are.",
            search_aliases=["textual inversion", "TI", "train embedding", "An Image is Worth One Word", "personalization", "new concept"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the word is for: eps, v or flow. It is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoders; the word is learnt for each of them. They are not changed."),
                io.Vae.Input("vae", tooltip="Its VAE. Each picture is encoded once."),
                io.Image.Input(
                    "images",
                    tooltip="3 to 20 pictures of the concept: a batch, or a list as folder loaders give it. Their sizes may differ.",
                ),
                io.String.Input(
                    "name",
                    default="my-concept",
                    tooltip="The word is saved in the embeddings folder under this name and used as embedding:name. 'toys/bear' goes into a subfolder.",
                ),
                io.String.Input(
                    "placeholder",
                    default="<concept>",
                    tooltip="A made-up word that stands for the concept in captions, templates and the validation prompt.",
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="What the word means at first, as 'cat' or 'small toy': a short name of the kind of thing. Empty = the mean of all words.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Vectors, that is tokens, of the word. 1 is easiest to combine with other words; usual 1 to 8, more for details.",
                ),
                io.Combo.Input(
                    "templates",
                    options=list(KINDS),
                    tooltip="Sentences in which the word is learnt: for an object, a style or a face, or your own.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps of the optimiser. Usual 500 to 5000 for SD1.5; fewer at a higher learning_rate.",
                ),
                io.Int.Input(
                    "batch_size", default=4, min=1, max=1024, tooltip="Pictures in each step. Usual 1 to 16; 4 with enough memory."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.005,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    round=0.000001,
                    tooltip="As published for SD1.5: usual 0.0005 to 0.01. Encoders with larger word vectors get it in proportion. With prodigy 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of noises, noise levels, sentences and validation pictures. The same seed learns the same word.",
                ),
                io.String.Input(
                    "validation_prompt",
                    default="a photo of {}",
                    tooltip="Pictures of this prompt are shown while it learns; {} or the placeholder is the word.",
                ),
                io.Int.Input(
                    "validation_every", default=0, min=0, max=1_000_000, tooltip="Steps between validation pictures; 0 = at the end alone."
                ),
                io.String.Input(
                    "own_templates",
                    default="",
                    multiline=True,
                    tooltip="With templates 'own': one a line, {} is the word and {caption} the picture's caption, as in '{caption} with {}'.",
                ),
                *_learning(),
                *_run(),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What else each picture shows, so that the word need not learn it: a list as folder loaders give it, or one a line. A "
                    "caption that holds the placeholder is the whole sentence. Empty = none.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the concept is: only there it is learnt. One for each picture, or one for all, of the pictures' size.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps."),
                io.Image.Output(display_name="validation", tooltip="All validation pictures, the last at the end."),
            ],
        )

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = {k: v[0] for k, v in lists.items() if k not in _LISTS}
        word, settings = (kind(**{f.name: given[f.name] for f in fields(kind)}) for kind in (host.Word, host.Settings))
        data = host.Data(*([v for v in lists.get(k) or () if v is not None] for k in _LISTS), given["flip"], given["caption_dropout"])
        made = host.learn(
            *(given[k] for k in ("model", "clip", "vae")), data, word, _templates(given), _objective(given), settings, _validation(given),
            given["name"], given["if_exists"],
        )  # fmt: skip
        seen = ExecutionBlocker("Train Embedding: no validation picture was made.") if made.pictures is None else made.pictures
        return io.NodeOutput(f"embedding:{made.name}", made.curve, seen)


def _templates(given: dict) -> tuple[str, ...]:
    kind = given["templates"]
    return own_templates(given["own_templates"], given["placeholder"]) if kind == "own" else TEMPLATES[kind]


def _objective(given: dict) -> Objective:
    asked = levels(given["model"], given["timesteps"], low=1 - given["end_percent"], high=1 - given["start_percent"])
    return Objective(asked, given["weighting"], given["gamma"])


def _validation(given: dict) -> host.Validation:
    own = {k.removeprefix("validation_"): v for k, v in given.items() if k.startswith("validation_")}
    return host.Validation(**own, sampler_name=given["sampler_name"], scheduler=given["scheduler"])


NODES = [TIEmbeddingTrainer]
