"""The inputs that trainers share, and what is read from them."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import comfy.samplers
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ...training.augmentation import Augmentation
from ...training.loop import progress
from ...training.objectives import TIMESTEPS, WEIGHTINGS
from ...training.optimizers import OPTIMIZERS, SCHEDULES
from ...training.settings import Data, Settings, Validation
from ...training.textual_inversion import NORMS, Word
from ..host.model_folder import IF_EXISTS, ModelFolder
from ..host.training.denoiser import Objective, levels
from ..host.training.memory import CHECKPOINTING
from ..host.training.trainer import TrainResult
from . import widgets

number = partial(widgets.number, round=0.0001, advanced=True)
whole, choice, switch, text = (partial(w, advanced=True) for w in (widgets.whole, widgets.choice, widgets.switch, widgets.text))


trainer_schema = partial(widgets.schema, is_input_list=True, is_output_node=True)


def parts(clip: str = "Its text encoders. They are not changed.") -> list:
    return [io.Clip.Input("clip", tooltip=clip), io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once.")]


def course(steps: int, steps_tip: str, batch: int, rate: float, rate_tip: str) -> list:
    """Steps, batch size, learning rate and seed."""
    return [
        widgets.whole("steps", steps, 1, 1_000_000, steps_tip),
        widgets.whole("batch_size", batch, 1, 1024, "Images in each step. Typical: 1–16; 4 with enough memory."),
        widgets.number("learning_rate", rate, 0.0, 100.0, rate_tip, 0.000001, round=0.0000001),
        widgets.seed("Seed of noise, noise levels, start values, sentences and images. The same seed trains the same weights."),
    ]


def flip(optional: bool = False) -> io.Boolean.Input:
    return switch("flip", Data.flip, "Also train on mirrored images. Not for asymmetric subjects.", optional=optional)


def norms() -> list:
    return [
        choice("norm", NORMS, "Length of the word's vectors: 'limit' at most norm_limit words; 'keep' as at the start; 'free' any."),
        number("norm_limit", Word.norm_limit, 0.01, 100.0, "With norm 'limit': 1 = as long as a typical word. Typical: 1–3.", 0.1),
    ]


def objective() -> list:
    weighting = "Error: 'own' of the prediction, 'min-snr' limits low-noise timesteps to gamma, 'clean' of the denoised image (ComfyUI's)."
    timesteps = "Noise levels: 'uniform' as SD1.5, 'logit-normal' as SD3, 'shifted' to noise; 'auto': logit-normal for flow, else uniform."
    return [
        choice("weighting", WEIGHTINGS, weighting),
        number("gamma", Objective.gamma, 0.01, 1000.0, "With 'min-snr': SNR at which the weight stops growing. Paper: 5.", 0.1),
        choice("timesteps", ("auto", *TIMESTEPS), timesteps),
        number("start_percent", 0.0, 0.0, 0.99, "Train on noise levels from this percent of the sampling on. 0 = from pure noise."),
        number("end_percent", 1.0, 0.01, 1.0, "Train on noise levels up to this percent of the sampling. 1 = to the clean image."),
    ]


def steps_taken(warmup: int = Settings.warmup, more: str = "", optional: bool = False) -> list:
    """How the optimizer takes its steps."""
    inputs = [
        choice("optimizer", OPTIMIZERS, "AdamW; Adafactor, same rates in less memory; or SGD with momentum, at 10–1000 times the rate."),
        choice("schedule", SCHEDULES, "How the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all."),
        whole("warmup", warmup, 0, 100_000, f"Steps over which the learning rate rises from 0{more}. 0 = none. Typical: 0–100."),
        whole("accumulate", Settings.accumulate, 1, 1024, "Batches in one step: a batch that much larger in the memory of one. 1 = plain."),
    ]
    return widgets.optional(*inputs) if optional else inputs


def run(saved: str, also: str = "") -> list:
    """How the run goes; what most users leave as it is. `saved` is what is written; `also` what else is sampled."""
    return [
        *steps_taken(),
        number("average", Settings.average, 0.0, 0.9999, "Save the average of the last 1 / (1 - average) steps. 0 = the last.", 0.001),
        whole("validation_count", Validation.count, 0, 64, "Validation images at a time. 0 = none."),
        whole("validation_steps", Validation.steps, 1, 10_000, f"Sampling steps of a validation image{also}. Typical: 10–30."),
        number("validation_cfg", Validation.cfg, 0.0, 100.0, f"CFG of validation images{also}. SD1.5: 7, demo model: 4, Flux: 1.", 0.1),
        choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, f"Sampler of validation images{also}.", Validation.sampler_name),
        choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, f"Scheduler of validation images{also}.", Validation.scheduler),
        choice("if_exists", IF_EXISTS, f"If {saved} of this name exists: number the new one, refuse, replace, or train on up to 'steps'."),
    ]


def checkpointing() -> io.Combo.Input:
    tip = "Run blocks again in the backward pass: same result, far less memory, a third slower. 'auto' = only if memory is short."
    return choice("checkpointing", CHECKPOINTING, tip, optional=True)


def caption_dropout() -> io.Float.Input:
    tip = "How often an image is trained with an empty prompt, for classifier-free guidance. 0 = never. Typical: 0–0.1, more for a style."
    return widgets.number("caption_dropout", Data.caption_dropout, 0.0, 0.99, tip, optional=True, advanced=True)


def clean_dropout(name: str, noisy: str, what: str) -> io.Float.Input:
    """The rate of a dropout at low noise; optional, after all others."""
    tip = f"How often {what} dropped at low-noise timesteps. At pure noise: {noisy}; between: by SNR. -1 = the same everywhere."
    return widgets.number(name, Data.clean_caption_dropout, -1.0, 1.0, tip, optional=True, advanced=True)


def augmentation(scale: bool = True) -> list:
    """Changes of the images before they are encoded; `scale` needs sentences to tell of it."""
    share, own = partial(widgets.number, advanced=True), Augmentation
    inputs = [
        whole("variants", own.variants, 0, 1000, "Changed copies of each image to train on too, encoded once. 0 = none. Typical: 4–30."),
        share("crop", own.crop, 0.0, 0.9, "With variants: largest share of each side to cut off. 0 = none. Typical: 0.1–0.3."),
        share("jitter", own.jitter, 0.0, 1.0, "With variants: change of brightness, contrast and saturation. 0 = none. Typical: 0.05–0.2."),
    ]
    hints = "With variants: share to scale down or up, said in the prompt ('very small', 'close up', ...). 0 = none. Paper: 1."
    return widgets.optional(*inputs, *([share("scale", own.scale, 0.0, 1.0, hints)] if scale else []))


def augmented(given: dict) -> Augmentation:
    """What those inputs say."""
    asked = {f.name: given[f.name] for f in fields(Augmentation) if f.name in given}
    return Augmentation(**asked) if asked.get("variants") else Augmentation()


def masks() -> io.Mask.Input:
    return io.Mask.Input("masks", optional=True, tooltip="Where the concept is: only this area is trained. One per image, or one for all.")


def validation_prompt(default: str, tooltip: str) -> list:
    return [
        widgets.text("validation_prompt", default, tooltip),
        widgets.whole("validation_every", Validation.every, 0, 1_000_000, "Steps between validation images. 0 = only at the end."),
    ]


def captions(tooltip: str) -> io.String.Input:
    return widgets.text("captions", "", tooltip, multiline=True, optional=True)


def loss_curve() -> io.Image.Output:
    return io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps.")


def validation_images() -> io.Image.Output:
    return io.Image.Output(display_name="validation", tooltip="All validation images, the last at the end.")


def trained(result: TrainResult, *outputs, more: tuple = ()) -> io.NodeOutput:
    """A trainer's outputs, with the loss curve and the validation images; without any, nodes that take them do not run. The node shows why
    some are missing."""
    blocker = ExecutionBlocker(f"Training: no validation image was made. {result.missed}".strip())
    shown = blocker if result.images is None else result.images
    return io.NodeOutput(*outputs, result.curve, shown, *more, ui=ui.PreviewText(result.missed) if result.missed else None)


def read(
    given: dict, settings: type[Settings] = Settings, validation: type[Validation] = Validation
) -> tuple[Objective, Settings, Validation]:
    """What the shared inputs say, and those of a trainer's own settings."""
    start, end = given["start_percent"], given["end_percent"]
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(
            f"start_percent is {start:g} and end_percent {end:g}; give 0 <= start_percent < end_percent <= 1, 0 and 1 for all noise levels."
        )
    chosen = levels(given["model"], given["timesteps"], low=1 - end, high=1 - start)
    own = {k.removeprefix("validation_"): v for k, v in given.items() if k.startswith("validation_")}
    return (
        Objective(chosen, given["weighting"], given["gamma"]),
        settings(**{f.name: given[f.name] for f in fields(settings) if f.name in given}),
        validation(**own, sampler_name=given["sampler_name"], scheduler=given["scheduler"]),
    )


def data(lists: dict, given: dict) -> Data:
    """The training data: lists of images, captions and masks, and what is done to them."""
    asked = {k: given[k] for k in ("flip", "caption_dropout", "clean_caption_dropout") if k in given}
    return Data(*lists_of(lists, "images", "captions", "masks"), augmentation=augmented(given), **asked)


def unfinished(folder: ModelFolder, lists: dict) -> str:
    """Of a training that is to be continued: how far it has come if it is unfinished or was continued after a stop, else "".

    As a fingerprint it makes ComfyUI run a trainer again that was stopped, although nothing on the node has changed; and it never is what
    it was before the stop, whose outputs ComfyUI may still keep.
    """
    name, steps, if_exists = ((lists.get(k) or [None])[0] for k in ("name", "steps", "if_exists"))  # None where it is a link
    if if_exists != "continue" or not name or steps is None:
        return ""
    try:
        done, continued = progress(folder.state(name))
    except ValueError:  # a name that running the node refuses
        return ""
    return f"{done} of {steps}" if continued or 0 < done < steps else ""


def lists_of(lists: dict, *names: str) -> list[list]:
    """Inputs that are lists, without what is not connected."""
    return [[v for v in lists.get(name) or () if v is not None] for name in names]
