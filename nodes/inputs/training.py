"""The inputs that trainers share, and what is read from them and from option nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import attrgetter

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ...guidance.errors import quoted
from ...training.loop import progress
from ...training.settings import Data, Settings, TrainingOptions, Validation
from ...training.textual_inversion import NORMS, Word
from ..host.model_folder import IF_EXISTS, ModelFolder
from ..host.progress import keep
from ..host.training.denoiser import Objective, levels
from ..host.training.dreambooth import NO_CLASS, Subject
from ..host.training.trainer import TrainResult
from . import auto, sockets, widgets
from .families import AUTO_NUMBER
from .widgets import only_with

number = partial(widgets.number, round=0.0001, advanced=True)
whole, choice, switch, text = (partial(w, advanced=True) for w in (widgets.whole, widgets.choice, widgets.switch, widgets.text))


trainer_schema = partial(widgets.schema, is_input_list=True, is_output_node=True)


@dataclass(frozen=True)
class Option:
    """An option node: its name, the socket of its value, the value where none is connected, and the socket's tooltip."""

    node: str
    socket: type
    usual: object
    tooltip: str

    @property
    def node_id(self) -> str:
        return self.node.replace(" ", "")


OPTIONS = {
    "training_options": Option(
        "Training Options", sockets.TrainingOptions, TrainingOptions(), "Optimizer, schedule, noise levels and memory. Not connected: its defaults."
    ),
    "dataset_options": Option(
        "Dataset Options", sockets.DatasetOptions, Data(), "Captions, masks and changes of the images. Not connected: none."
    ),
    "validation_options": Option(
        "Validation Options",
        sockets.ValidationOptions,
        Validation(cfg=AUTO_NUMBER, image_scale=AUTO_NUMBER),
        "How many validation images, when and how sampled. Not connected: its defaults.",
    ),
    "class_images": Option(
        "Class Images", sockets.ClassImages, NO_CLASS, "Keeps the class as it was (prior preservation). Not connected: plain fine-tuning."
    ),
    "new_word": Option("New Word", sockets.NewWord, Subject(), "A new word that is trained jointly. Not connected: "),
    "concept_slider": Option(
        "Concept Slider", sockets.ConceptSlider, None, "Trains a slider instead of a subject: a LoRA whose strength moves images between two ends."
    ),
}
AUTOMATIC = ("warmup", "average")  # of Training Options: the trainer's own where negative


def options(*names: str, word: str = "none.") -> list:
    """The sockets of option nodes; `word` says what a trainer does without New Word."""
    found = [(name, OPTIONS[name]) for name in names]
    return [o.socket.Input(n, optional=True, tooltip=o.tooltip + (word if n == "new_word" else "")) for n, o in found]


def option(given: dict, name: str, trainer: str, refused: Iterable[str] = (), unused: Iterable[str] = ()):
    """The value at the socket of an option node. Raises ValueError on a setting that asks for other weights than the trainer can make; of one
    that they do not depend on, the node says that it is not used."""
    known = OPTIONS[name]
    found = known.usual if given.get(name) is None else given[name]
    for each, value, usual in changed(found, known.usual, refused):
        is_list = isinstance(value, (list, tuple))
        shown, advice = ("", "Leave them empty") if is_list else (f", which is {_shown(value)}", f"Set it to {_shown(usual)}")
        raise ValueError(f"{trainer} cannot use {each} of {known.node}{shown}. {advice} there.")
    keep(*(f"{each} of {known.node} is not used by {trainer}" for each, *_ in changed(found, known.usual, unused)))
    return found


def with_autos(given: dict, names: dict[str, Iterable[str]], **more) -> dict:
    """The inputs of a trainer with values for what its option nodes leave on auto, `names` of them by socket; the node says which.

    `more` is what the conditions of the table ask for."""
    found = dict(given)
    for socket, own in names.items():
        known = OPTIONS[socket]
        options = known.usual if given.get(socket) is None else given[socket]
        values = auto.chosen(given["model"], known.node_id, {name: getattr(options, name) for name in own} | more)
        found[socket] = replace(options, **{name: values[name] for name in own})
    return found


def changed(found, usual, names: Iterable[str]) -> Iterator[tuple]:
    """(name, value, usual value) of each of these settings that is not as usual."""
    for path in names:
        value, default = attrgetter(path)(found), attrgetter(path)(usual)
        if value != default:
            yield path.rpartition(".")[2], value, default


def _shown(value) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def first(lists: dict) -> dict:
    """The first value of every input of a node that takes lists."""
    return {k: v[0] for k, v in lists.items() if v}


def parts(clip: str = "Its text encoders. They are not changed.") -> list:
    return [io.Clip.Input("clip", tooltip=clip), io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once.")]


def course(steps_tip: str, batch: int, rate_tip: str) -> list:
    """Steps, batch size, learning rate and seed."""
    return [
        widgets.auto_whole("steps", 1, 1_000_000, f"Steps of the optimizer. {steps_tip}"),
        widgets.whole("batch_size", batch, 1, 1024, "Images in each step. Typical: 1–16; 4 with enough memory."),
        widgets.auto_number("learning_rate", 0.0, 100.0, rate_tip, 0.000001, round=0.0000001),
        widgets.seed("Seed of noise, noise levels, start values, sentences and images. The same seed trains the same weights."),
    ]


def vectors() -> io.Int.Input:
    return widgets.whole("vectors", Word.vectors, 1, 64, "Vectors (tokens) of the word. 1 combines best with others. Typical: 1–8.")


def norms() -> list:
    return [
        choice("norm", NORMS, "Length of the word's vectors: 'limit' at most norm_limit words; 'keep' as at the start; 'free' any."),
        only_with(number("norm_limit", Word.norm_limit, 0.01, 100.0, "With norm 'limit': 1 = as long as a typical word. Typical: 1–3.", 0.1),
            "norm", NORMS[0]),
    ]


def if_exists(saved: str) -> io.Combo.Input:
    return choice("if_exists", IF_EXISTS, f"If {saved} of this name exists: number the new one, refuse, replace, or train on up to 'steps'.")


def clean_dropout(name: str, noisy: str, what: str) -> io.Float.Input:
    """The rate of a dropout at low noise."""
    tip = f"How often {what} dropped where there is little noise. At pure noise: {noisy}; it fades from one to the other. -1 = the same everywhere."
    return number(name, Data.clean_caption_dropout, -1.0, 1.0, tip)


def loss_curve() -> io.Image.Output:
    return io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps.")


def validation_images() -> io.Image.Output:
    return io.Image.Output(display_name="validation", tooltip="All validation images, the last at the end.")


def trained(result: TrainResult, *outputs, more: tuple = ()) -> io.NodeOutput:
    """A trainer's outputs, with the loss curve and the validation images; without any, nodes that take them do not run. The node shows whether
    the loss fell, and why images are missing."""
    blocker = ExecutionBlocker(f"Training: no validation image was made. {result.missed}".strip())
    shown = blocker if result.images is None else result.images
    text = "\n".join(filter(None, (result.learned, result.missed)))
    return io.NodeOutput(*outputs, result.curve, shown, *more, ui=ui.PreviewText(text) if text else None)


def settings(given: dict, trainer: str, kind: type[Settings] = Settings, refused: Iterable[str] = (), unused: Iterable[str] = ()) -> Settings:
    """What a trainer's own inputs and Training Options say."""
    asked = vars(option(given, "training_options", trainer, refused, unused))
    shared = {k: v for k, v in asked.items() if hasattr(Settings, k) and not (k in AUTOMATIC and v < 0)}
    return kind(**shared, **{f.name: given[f.name] for f in fields(kind) if f.name in given})


def objective(given: dict, trainer: str) -> Objective:
    asked = option(given, "training_options", trainer)
    chosen = levels(given["model"], asked.timesteps, low=1 - asked.end_percent, high=1 - asked.start_percent)
    return Objective(chosen, asked.weighting, asked.gamma)


def validation(given: dict, trainer: str) -> Validation:
    """Validation images of the trainer's prompt."""
    prompt = given["validation_prompt"] or given.get("instance_prompt", "")
    return replace(option(given, "validation_options", trainer, unused=["image_scale"]), prompt=prompt)


def data(lists: dict, trainer: str, refused: Iterable[str] = (), unused: Iterable[str] = ()) -> Data:
    """The training data: a list of images, and what Dataset Options say of them."""
    return replace(option(first(lists), "dataset_options", trainer, refused, unused), images=lists_of(lists, "images")[0])


def unfinished(folder: ModelFolder, lists: dict) -> str:
    """Of a training that is to be continued: how far it has come if it is unfinished or was continued after a stop, else "".

    As a fingerprint it makes ComfyUI run a trainer again that was stopped, although nothing on the node has changed; and it never is what
    it was before the stop, whose outputs ComfyUI may still keep.
    """
    name, steps, if_exists = ((lists.get(k) or [None])[0] for k in ("name", "steps", "if_exists"))  # None where it is a link
    if if_exists != "continue" or not name or steps is None:
        return ""
    try:
        done, planned, continued = progress(folder.state(name))
    except ValueError:  # a name that running the node refuses
        return ""
    steps = planned if steps == AUTO_NUMBER else steps
    return f"{done} of {steps}" if continued or 0 < done < steps else ""


def lists_of(lists: dict, *names: str) -> list[list]:
    """Inputs that are lists, without what is not connected."""
    return [[v for v in lists.get(name) or () if v is not None] for name in names]
