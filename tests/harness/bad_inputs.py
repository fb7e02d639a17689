"""Damaged values for every input of a node, made from its schema, and a judgment of what the node made of them."""

import linecache
import math
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from unittest.mock import patch

import comfy.model_management
import folder_paths
import torch
from safetensors.torch import load_file

from .environment import ROOT
from .good_inputs import Sockets, good, in_lists, nodes, option_of, run

LONG = "a" * 300  # characters: more than a file's name can have
NAMES = ("name", "folder", "filename_prefix")  # widgets whose text names a file of an output node
WRITTEN = ("embeddings", "loras", "diffusion_models")  # folders that trainers write into and the demo model does not need
PATIENCE, ANSWER = 4.0, 2.0  # seconds until a case is canceled, and those within which it has to stop
OF_PACK = [ROOT / room for room in ("guidance", "inversion", "attention", "training", "nodes")]


@dataclass(frozen=True)
class Damage:
    """A value that stands for one kind of damage. One that is not `refused` may also give a right result."""

    kind: str
    value: object
    refused: bool = True


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """The tensor with one such number in it."""
    found = tensor.clone()
    found.view(-1)[found.numel() // 2] = value
    return found


def of_tensor(good: torch.Tensor) -> Iterator[Damage]:
    """What can be wrong with any batch."""
    yield Damage("NaN", spoilt(good, math.nan))
    yield Damage("infinity", spoilt(good, math.inf))
    yield Damage("none in it", good[:0])
    yield Damage("a side of 0", good[:, :, :0])
    yield Damage("three dimensions more", good[None, None, None])
    yield Damage("one dimension", good.flatten())


def images(good: torch.Tensor) -> Iterator[Damage]:
    yield from of_tensor(good)
    yield Damage("one channel", good[..., :1], False)
    yield Damage("two channels", good[..., :2])
    yield Damage("four channels", torch.cat([good, good[..., :1]], -1), False)
    yield Damage("1 x 1", good[:, :1, :1], False)
    yield Damage("odd size", good[:, :51, :37], False)
    yield Damage("no tensor", "an image")


def masks(good: torch.Tensor) -> Iterator[Damage]:
    yield from of_tensor(good)
    yield Damage("two dimensions", good[0], False)
    yield Damage("1 x 1", good[:, :1, :1], False)
    yield Damage("nothing chosen", torch.zeros_like(good), False)
    yield Damage("above 1", 2 * torch.ones_like(good))
    yield Damage("below 0", good - 0.5)


def latents(good: dict) -> Iterator[Damage]:
    samples = good["samples"]
    for each in of_tensor(samples):
        yield replace(each, value={"samples": each.value})
    yield Damage("no samples", {})
    yield Damage("other channels", {"samples": samples[:, :3]})
    yield Damage("1 x 1", {"samples": samples[..., :1, :1]}, False)
    yield Damage("odd size", {"samples": samples[..., :7, :5]}, False)


def conditionings(good: list) -> Iterator[Damage]:
    features, extras = good[0]
    for each in of_tensor(features):
        yield replace(each, value=[[each.value, extras]])
    yield Damage("empty", [])
    yield Damage("no tokens", [[features[:, :0], extras]])
    yield Damage("two dimensions", [[features[0], extras]])
    yield Damage("another width", [[features[..., :5], extras]], False)


def sigmas(good: torch.Tensor) -> Iterator[Damage]:
    yield Damage("NaN", spoilt(good, math.nan))
    yield Damage("infinity", spoilt(good, math.inf))
    yield Damage("none in it", good[:0])
    yield Damage("one", good[:1], False)
    yield Damage("negative", -good)
    yield Damage("rising", good.flip(0), False)
    yield Damage("two dimensions", good[None])


def curves(good) -> Iterator[Damage]:
    yield Damage("no points", {})
    yield Damage("NaN", {"points": [[0, math.nan], [1, 1]]})
    yield Damage("text", "a curve")


def inversions(good) -> Iterator[Damage]:
    states = tuple(tuple(spoilt(z, math.nan) for z in state) for state in good.trajectory.states)
    yield Damage("NaN", replace(good, trajectory=replace(good.trajectory, states=states)))


def numbers(given) -> Iterator[Damage]:
    """Of INT and FLOAT; what a link gives passes ComfyUI's own check of limits."""
    yield Damage("NaN", math.nan)
    yield Damage("infinity", math.inf)
    yield Damage("above its maximum", given.max + 1)
    yield Damage("below its minimum", given.min - 1)
    yield Damage("text", "many")


def ends(given) -> Iterator[Damage]:
    """The largest and the smallest number that an INT or FLOAT allows: a right result, an error in words, or work that Cancel ends."""
    yield Damage("its maximum", given.max, False)
    yield Damage("its minimum", given.min, False)


def texts(named: bool) -> Iterator[Damage]:
    """Of STRING; `named`: it is the name of a file."""
    yield Damage("300 characters", LONG, named)
    yield Damage("NUL", "a\0b", named)
    yield Damage("line break", "a\nb", named)
    yield Damage("other letters", "ünï 猫", False)
    yield Damage("empty", "", False)
    yield Damage("out of its folder", "../../x", named)
    yield Damage("reserved on Windows", "con", named)
    yield Damage("odd signs", "a:b, (c:1.2) {x|y} => # | %", False)


OF_SOCKET = {
    **{"IMAGE": images, "MASK": masks, "LATENT": latents, "CONDITIONING": conditionings},
    **{"SIGMAS": sigmas, "INVERSION": inversions, "CURVE": curves},
}


def damages(given, sockets: Sockets, writes: bool = False) -> Iterator[Damage]:
    """What can be wrong with an input of a schema, one value of each kind; `writes`: its node makes files."""
    kind = given.get_io_type()
    yield Damage("None", None, not given.optional or hasattr(given, "default"))
    if kind in ("INT", "FLOAT"):
        yield from numbers(given)
    elif kind == "STRING":
        yield from texts(writes and given.id in NAMES)
    elif kind == "COMBO":
        yield Damage("unknown", "no such choice")
    elif kind == "COMFY_DYNAMICCOMBO_V3":
        yield Damage("unknown", {given.id: "no such choice"})
    elif kind == "COMFY_AUTOGROW_V3":
        yield Damage("empty", {}, given.template.min > 0)
        yield Damage("None in it", {f"{given.template.prefix}0": None})
    for single in kind.split(","):
        if single in OF_SOCKET:
            yield from (replace(each, kind=f"{single} with {each.kind}") for each in OF_SOCKET[single](sockets(single)))


def cases(node_id: str, sockets: Sockets, thorough: bool = False) -> Iterator[tuple[str, Damage, dict]]:
    """(input, damage, inputs of the call) of every case of a node; `thorough`: with the ends of its numbers."""
    whole, schema = good(node_id, sockets), nodes()[node_id].GET_SCHEMA()
    for given in schema.inputs:
        more = ends(given) if thorough and given.get_io_type() in ("INT", "FLOAT") else ()
        for each in (*damages(given, sockets, schema.is_output_node), *more):
            value = wrapped(given, each.value) if schema.is_input_list else each.value
            yield given.id, each, whole | {given.id: value}
        if schema.is_input_list and not given.optional:
            yield given.id, Damage("empty list", []), whole | {given.id: []}
        for name, each, value in inner(given, sockets):
            yield f"{given.id}.{name}", each, whole | {given.id: wrapped(given, value) if schema.is_input_list else value}


def wrapped(given, value):
    """A value as a node gets it that takes lists."""
    return in_lists(value) if given.get_io_type() == "COMFY_DYNAMICCOMBO_V3" else [value]


def inner(given, sockets: Sockets) -> Iterator[tuple[str, Damage, dict]]:
    """The same for the inputs of the options of a dynamic combo."""
    for option in getattr(given, "options", None) or () if given.get_io_type() == "COMFY_DYNAMICCOMBO_V3" else ():
        defaults = option_of(given, option, sockets, {})
        for own in option.inputs:
            yield from ((f"{option.key}.{own.id}", each, defaults | {own.id: each.value}) for each in damages(own, sockets))


def is_finite(value, depth: int = 4) -> bool:
    """Whether no tensor and no number in an output is NaN or infinite."""
    if torch.is_tensor(value):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if depth and isinstance(value, dict):
        return all(is_finite(v, depth - 1) for v in value.values())
    if depth and isinstance(value, (list, tuple)):
        return all(is_finite(v, depth - 1) for v in value)
    if depth and is_dataclass(value):
        return all(is_finite(getattr(value, f.name), depth - 1) for f in fields(value))
    return True


@contextmanager
def own_folders(folder: Path) -> Iterator[Path]:
    """Inside, models are read and written, and outputs written, in this folder alone."""
    kinds = {kind: ([str(folder / kind)], {".safetensors", ".pt"}) for kind in WRITTEN}
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(folder_paths, models_dir=str(folder), output_directory=str(folder / "output")))
        stack.enter_context(patch.dict(folder_paths.folder_names_and_paths, kinds))
        for kind in WRITTEN:
            (folder / kind).mkdir(parents=True)
        yield folder


def files_in(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def spoilt_files(folder: Path, before: dict[Path, int]) -> list[str]:
    """New files in a folder that hold NaN or infinity, or were left half written."""
    new = [p for p, changed in files_in(folder).items() if before.get(p) != changed]
    return [p.name for p in new if p.name.endswith(".partial") or (p.suffix == ".safetensors" and not is_finite(load_file(p)))]


def is_sentence(error: Exception) -> bool:
    """Whether an error was raised by a line of the pack, in words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = any(Path(last.filename).is_relative_to(room) for room in OF_PACK)
    line = linecache.getline(last.filename, last.lineno).strip()
    return isinstance(error, ValueError) and own and line.startswith("raise") and len(str(error).split()) > 4


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `verdict` "named", "ok", or the fault: "raw", "silent", "NaN", "file", "hang"; `text` says more."""

    node: str
    input: str
    kind: str
    verdict: str
    text: str = ""

    @property
    def is_fault(self) -> bool:
        return self.verdict not in ("named", "ok")

    def __str__(self) -> str:
        return f"{self.node}.{self.input}, {self.kind}: {self.verdict} {self.text}".strip()


@contextmanager
def cancelling(seconds: float) -> Iterator[None]:
    """The user's Cancel after so many seconds."""
    timer = threading.Timer(seconds, comfy.model_management.interrupt_current_processing)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        comfy.model_management.interrupt_current_processing(False)


def outcome(node_id: str, name: str, damage: Damage, inputs: dict, folder: Path, patience: float = PATIENCE) -> Outcome:
    """Runs a case, cancels it after `patience` seconds, and judges it; `folder` is where the node may write."""
    before, started = files_in(folder), time.monotonic()
    try:
        with cancelling(patience):
            made = run(node_id, **inputs)
    except comfy.model_management.InterruptProcessingException:
        late = time.monotonic() - started - patience
        verdict, text = ("hang", f"{late:.1f} s after Cancel") if late > ANSWER else ("silent" if damage.refused else "ok", "cancelled")
    except Exception as error:
        verdict, text = ("named" if is_sentence(error) else "raw"), f"{type(error).__name__}: {str(error)[:160]}"
    else:
        verdict, text = ("silent" if damage.refused else "ok") if is_finite(made) else "NaN", ""
    left = spoilt_files(folder, before)
    return Outcome(node_id, name, damage.kind, *("file", ", ".join(left)) if left else (verdict, text))


def outcomes(node_id: str, sockets: Sockets, folder: Path, thorough: bool = False) -> Iterator[Outcome]:
    """Of every case of a node."""
    for name, damage, inputs in cases(node_id, sockets, thorough):
        yield outcome(node_id, name, damage, inputs, folder)
