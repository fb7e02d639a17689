"""Files of inversions: their folders, names and contents."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import comfy.model_management
import folder_paths

from ....inversion import files
from ....inversion.method import Trajectory, method_named
from ..fingerprint import Weights
from ..model_tag import ModelTag
from .invert import Inversion

FOLDER = "inversions"
SHIPPED = Path(__file__).parents[2] / "weights" / FOLDER
_OUTPUT = " [output]"  # ComfyUI's mark of a file in its output folder
_OBJECTS = ("method", "trajectory", "model")  # fields of an Inversion that are no plain values


def _output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve() / FOLDER


def _saved() -> dict[str, Path]:
    """Files of the output folder by name, without links out of it."""
    found = sorted(p for p in _output().rglob("*.safetensors") if p.is_file() and p.resolve().is_relative_to(_output()))
    return {f"{FOLDER}/{p.relative_to(_output()).as_posix()}{_OUTPUT}": p for p in found}


def _placed() -> dict[str, Path]:
    """Files of the model folders and of the pack, by name; the first folder wins."""
    for folder in (Path(folder_paths.models_dir) / FOLDER, SHIPPED):
        folder_paths.add_model_folder_path(FOLDER, str(folder))
    found = {}
    for folder in folder_paths.get_folder_paths(FOLDER):
        for name in sorted(n for n in folder_paths.recursive_search(folder)[0] if n.endswith(".safetensors")):
            found.setdefault(Path(name).as_posix(), Path(folder) / name)
    return found


def names() -> list[str]:
    """What can be loaded: files of output/inversions, marked [output], and of models/inversions."""
    return [*_saved(), *_placed()]


def path_of(name: str) -> Path:
    """The file of a name in `names()`; nothing else can be reached."""
    found = (_saved() if name.endswith(_OUTPUT) else _placed()).get(name)
    if found is None:
        raise ValueError(f"There is no inversion '{name}'. Files in output/{FOLDER} and models/{FOLDER}: {', '.join(names()) or 'none'}.")
    return found


def stamp(name: str) -> str:
    """Changes when the file of a name does."""
    state = path_of(name).stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def new_path(prefix: str) -> Path:
    """A free path in output/inversions, with ComfyUI's counter; `prefix` may name a folder, and %year% and so on."""
    wanted = (_output() / prefix).resolve()
    if not wanted.is_relative_to(_output()) or wanted == _output() or not prefix.strip() or prefix.endswith(("/", "\\")):
        raise ValueError(f"filename_prefix is '{prefix}', which is no name inside output/{FOLDER}. Give a name, or folder/name.")
    folder, stem, counter, *_ = folder_paths.get_save_image_path(prefix, str(_output()))
    return Path(folder) / f"{stem}_{counter:05}_.safetensors"


def values(inversion: Inversion) -> dict:
    """The contents of an inversion's file, by name."""
    method, trajectory = inversion.method, inversion.trajectory
    plain = {f.name: getattr(inversion, f.name) for f in fields(Inversion) if f.name not in _OBJECTS}
    return {
        "method": method.name,
        "settings": {f.name: getattr(method, f.name) for f in fields(method)},
        "model": asdict(inversion.model),
        "sigmas": trajectory.sigmas,
        "states": trajectory.states,
        "extras": trajectory.extras,
        **{f"{k} conditioning" if k in ("source", "null") else k: v for k, v in plain.items()},
    }


def save(inversion: Inversion, prefix: str) -> str:
    """Writes an inversion, bit by bit; the name for `load`."""
    path = new_path(prefix)
    files.save(values(inversion), path)
    return f"{FOLDER}/{path.relative_to(_output()).as_posix()}{_OUTPUT}"


def load(name: str) -> Inversion:
    """The inversion of a name in `names()`."""
    content = files.load(path_of(name))
    try:
        method = method_named(content.pop("method"))(**content.pop("settings"))
        trajectory = Trajectory(content.pop("sigmas"), content.pop("states"), content.pop("extras"))
        tag = content.pop("model")
        model = ModelTag(**tag | {"weights": Weights(**tag["weights"])})
        return Inversion(method, trajectory, model=model, **{k.removesuffix(" conditioning"): v for k, v in content.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} was written by another version of the pack ({error}). Update the pack, or invert again.") from error


def image(model, inversion: Inversion) -> dict:
    """The image that was inverted, as a LATENT."""
    clean = inversion.trajectory.states[-1][0].float().to(comfy.model_management.intermediate_device())
    return {"samples": model.model.process_latent_out(clean)}
