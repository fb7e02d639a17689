"""The inputs that trainers share, and what is read from them."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path

import comfy.samplers
from comfy_api.latest import io

from ...training.augmentation import Augmentation
from ...training.loop import steps_done
from ...training.objectives import TIMESTEPS, WEIGHTINGS
from ...training.optimizers import OPTIMIZERS, SCHEDULES
from ...training.settings import Settings, Validation
from ...training.textual_inversion import NORMS
from ..host.model_folder import IF_EXISTS, ModelFolder
from ..host.training.denoiser import Objective, levels
from ..host.training.memory import CHECKPOINTING
from . import widgets

number = partial(widgets.number, round=0.0001, advanced=True)
whole, choice = (partial(made, advanced=True) for made in (widgets.whole, widgets.choice))


def course(steps: int, steps_tip: str, batch: int, rate: float, rate_tip: str) -> list:
    """Steps, batch size, learning rate and seed."""
    return [
        io.Int.Input("steps", default=steps, min=1, max=1_000_000, tooltip=steps_tip),
        io.Int.Input("batch_size", default=batch, min=1, max=1024, tooltip="Images in each step. Usual 1 to 16; 4 with enough memory."),
        io.Float.Input("learning_rate", default=rate, min=0.0, max=100.0, step=0.000001, round=0.0000001, tooltip=rate_tip),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of noises, noise levels, start values, sentences and images. The same seed learns the same.",
        ),
    ]


def flip(optional: bool = False) -> io.Boolean.Input:
    tip = "Also learn from the images mirrored. Not for what has a left and a right."
    return io.Boolean.Input("flip", default=False, advanced=True, optional=optional, tooltip=tip)


def norms() -> list:
    return [
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
    ]


def objective() -> list:
    return [
        choice(
            "weighting",
            WEIGHTINGS,
            "What an error counts: 'own' is the plain error of what the model predicts, 'min-snr' limits clean levels to gamma, 'clean' is the "
            "error of the clean image, as in the host's LoRA trainer.",
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
        number("end_percent", 1.0, 0.01, 1.0, "Learn at noise levels up to this percent of the sampling; 1 = to the clean image."),
    ]


def steps_taken(warmup: int = 10, more: str = "", optional: bool = False) -> list:
    """How the optimiser takes its steps."""
    made = [
        choice(
            "optimizer",
            OPTIMIZERS,
            "AdamW; Adafactor, at the same rates in less memory; SGD with momentum, at 10 to 1000 times the rate; or Prodigy, which finds its own "
            "(learning_rate 1).",
        ),
        choice("schedule", SCHEDULES, "How the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all."),
        whole("warmup", warmup, 0, 100_000, f"Steps over which the learning rate rises from 0{more}. 0 = none; usual 0 to 100."),
        whole(
            "accumulate", 1, 1, 1024, "Batches in one step of the optimiser: as a batch that much larger, in the memory of one. 1 = plain."
        ),
    ]
    for given in made:
        given.optional = optional
    return made


def run(saved: str, also: str = "") -> list:
    """How the run goes; what most users leave as it is. `saved` is what is written; `also` what else is sampled."""
    return [
        *steps_taken(),
        number("average", 0.0, 0.0, 0.9999, "Save the running average over about 1 / (1 - average) steps; 0 = the last.", 0.001),
        whole("validation_count", 2, 0, 64, "Validation images at a time; 0 = none."),
        whole("validation_steps", 20, 1, 10_000, f"Sampling steps of a validation image{also}. Usual 10 to 30."),
        number(
            "validation_cfg",
            7.0,
            0.0,
            100.0,
            f"Guidance scale of validation images{also}: 7 for SD1.5, 4 for the demo model, 1 for Flux.",
            0.1,
        ),
        choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, f"Sampler of validation images{also}.", "euler"),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, f"Scheduler of validation images{also}.", "normal"),
        choice(
            "if_exists",
            IF_EXISTS,
            f"Where {saved} of this name exists: save under a name with a number, refuse, replace it, or continue its training up to 'steps'.",
        ),
    ]


def checkpointing() -> io.Combo.Input:
    return io.Combo.Input(
        "checkpointing",
        options=list(CHECKPOINTING),
        advanced=True,
        optional=True,
        tooltip="Run the model's blocks again in the backward pass: the same result in far less memory, a third slower. 'auto' where memory would "
        "not suffice.",
    )


def caption_dropout() -> io.Float.Input:
    tip = "How often an image is shown with no words at all, so that guidance's other side learns along. 0 = never; usual 0 to 0.1, more for a style."
    return io.Float.Input("caption_dropout", default=0.0, min=0.0, max=0.99, step=0.01, optional=True, advanced=True, tooltip=tip)


def clean_dropout(name: str, noisy: str, what: str) -> io.Float.Input:
    """The rate of a dropout at clean levels; optional, after all others."""
    tip = (
        f"How often {what} left out at clean levels; at pure noise it is {noisy}, between them it follows the signal to noise ratio. -1 = the "
        "same at all levels."
    )
    return io.Float.Input(name, default=-1.0, min=-1.0, max=1.0, step=0.01, optional=True, advanced=True, tooltip=tip)


def augmentation(scale: bool = True) -> list:
    """What is made of the images before they are encoded; `scale` needs sentences to tell of it."""

    def share(name: str, high: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input(name, default=0.0, min=0.0, max=high, step=0.01, optional=True, advanced=True, tooltip=tooltip)

    changes = [
        io.Int.Input(
            "variants",
            default=0,
            min=0,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Changed copies of each image to learn from too, encoded once; what follows says how. 0 = none; usual 4 to 30.",
        ),
        share("crop", 0.9, "With variants: up to which share of each side is cut off. 0 = none; usual 0.1 to 0.3."),
        share("jitter", 1.0, "With variants: how far brightness, contrast and saturation change. 0 = not at all; usual 0.05 to 0.2."),
    ]
    hinted = share(
        "scale",
        1.0,
        "With variants: the share that is made smaller or larger, as Custom Diffusion does; the sentence then begins with 'very small', 'a far "
        "away', 'zoomed in' or 'close up', and only the image counts. 0 = none; 1 in the paper.",
    )
    return [*changes, hinted] if scale else changes


def augmented(given: dict) -> Augmentation:
    """What those inputs say."""
    asked = {f.name: given[f.name] for f in fields(Augmentation) if f.name in given}
    return Augmentation(**asked) if asked.get("variants") else Augmentation()


def masks() -> io.Mask.Input:
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip="Where the concept is: only there it is learnt. One for each image, or one for all, of the images' size.",
    )


def validation_prompt(default: str, tooltip: str) -> list:
    return [
        io.String.Input("validation_prompt", default=default, tooltip=tooltip),
        io.Int.Input(
            "validation_every", default=0, min=0, max=1_000_000, tooltip="Steps between validation images; 0 = at the end alone."
        ),
    ]


def read(
    given: dict, settings: type[Settings] = Settings, validation: type[Validation] = Validation
) -> tuple[Objective, Settings, Validation]:
    """What the shared inputs say, and those of a trainer's own settings."""
    start, end = given["start_percent"], given["end_percent"]
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(
            f"start_percent is {start:g} and end_percent {end:g}; give 0 <= start_percent < end_percent <= 1, 0 and 1 for all noise levels."
        )
    asked = levels(given["model"], given["timesteps"], low=1 - end, high=1 - start)
    own = {k.removeprefix("validation_"): v for k, v in given.items() if k.startswith("validation_")}
    return (
        Objective(asked, given["weighting"], given["gamma"]),
        settings(**{f.name: given[f.name] for f in fields(settings) if f.name in given}),
        validation(**own, sampler_name=given["sampler_name"], scheduler=given["scheduler"]),
    )


_STOPPED: set[Path] = set()  # states of trainings that were stopped since the host started


def unfinished(folder: ModelFolder, lists: dict) -> str:
    """Of a training that is to be continued: how far it has come once it was seen stopped, else "".

    As a fingerprint it makes the host run a trainer again that was stopped, although nothing on the node has changed; and it never is what it
    was before the stop, whose outputs the host may still keep.
    """
    name, steps, if_exists = ((lists.get(k) or [None])[0] for k in ("name", "steps", "if_exists"))  # None where it is a link
    if if_exists != "continue" or not name or steps is None:
        return ""
    try:
        state = folder.state(name)
    except ValueError:  # a name that running the node refuses
        return ""
    done = steps_done(state)
    if done is not None and done < steps:
        _STOPPED.add(state)
    return f"{done} of {steps}" if state in _STOPPED else ""


def dropout(given: dict) -> dict[str, float]:
    """How captions are left out, as far as it is asked for."""
    return {k: given[k] for k in ("caption_dropout", "clean_caption_dropout") if k in given}


def lists_of(lists: dict, *names: str) -> list[list]:
    """Inputs that are lists, without what is not connected."""
    return [[v for v in lists.get(name) or () if v is not None] for name in names]
