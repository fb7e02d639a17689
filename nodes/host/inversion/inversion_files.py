"""Files of inversions: their folders, names and contents."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import comfy.model_management
import folder_paths

from ....guidance.errors import quoted
from ....inversion import files
from ....inversion.method import Trajectory, method_named
from ..fingerprint import Weights
from ..fingerprint import stamp as file_stamp
from ..model_folder import ModelFolder, check_portable, disk_errors
from ..model_tag import ModelTag
from .invert import Inversion

FOLDER = "inversions"
_OUTPUT = " [output]"  # ComfyUI's mark of a file in its output folder
_OBJECTS = ("method", "trajectory", "model")  # fields of an Inversion that are no plain values


def _output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve() / FOLDER


def _saved() -> dict[str, Path]:
    """Files of the output folder by name, without links out of it."""
    found = sorted(p for p in _output().rglob("*.safetensors") if p.is_file() and p.resolve().is_relative_to(_output()))
    return {f"{FOLDER}/{p.relative_to(_output()).as_posix()}{_OUTPUT}": p for p in found}


class InversionFolder(ModelFolder):
    """Files of output/inversions, marked as such, and of models/inversions."""

    @property
    def where(self) -> str:
        return f"output/{FOLDER} and models/{FOLDER}"

    def files(self) -> dict[str, Path]:
        return _saved() | super().files()


INVERSIONS = InversionFolder(FOLDER, "inversion", own=True)


def stamp(name: str) -> str:
    """Changes when the file of a name does."""
    return file_stamp(INVERSIONS.find(name))


def new_path(prefix: str) -> Path:
    """A free path in output/inversions, with ComfyUI's counter; `prefix` may name a folder, and %year% and so on."""
    check_portable(prefix, "filename_prefix")
    wanted = (_output() / prefix).resolve()
    if not wanted.is_relative_to(_output()) or wanted == _output() or not prefix.strip() or prefix.endswith(("/", "\\")):
        raise ValueError(f"filename_prefix is {quoted(prefix)}, which is no name inside output/{FOLDER}. Give a name, or folder/name.")
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
    with disk_errors(_output() / prefix):
        path = new_path(prefix)
        files.save(values(inversion), path)
    return f"{FOLDER}/{path.relative_to(_output()).as_posix()}{_OUTPUT}"


def load(name: str) -> Inversion:
    """The inversion of a name in its folder."""
    content = files.load(INVERSIONS.find(name))
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
