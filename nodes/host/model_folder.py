"""Folders of model files: what is there, and where a new file goes, so that no name leaves its folder and no file is overwritten unasked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError

from ...guidance.errors import listed, quoted
from ...training.files import disk_errors, save_atomically

__all__ = ["ModelFolder", "disk_errors", "save_atomically"]  # the last two for those who write files of their own

SHIPPED = Path(__file__).parents[1] / "weights"  # files that come with the pack
ENDINGS = (".safetensors", ".pt", ".bin")  # of files that could mean a name already
IF_EXISTS = ("number it", "refuse", "replace", "continue")
LONGEST = 200  # characters of a name; with an ending and a number it fits into the 255 bytes that disks take
_DAMAGES = (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)  # what a damaged file raises
_WRAPPER = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")  # in names of networks that were trained on several GPUs, or compiled
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


def check_portable(name: str, what: str = "The name") -> None:
    """Refuses a name, with or without subfolders, that some disk or system cannot keep."""
    if len(name) > LONGEST:
        raise ValueError(f"{what} {quoted(name)} is too long for a file's; use at most {LONGEST} characters.")
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise ValueError(f"{what} {quoted(name)} holds a control character, such as a line break. Write it on one line, without it.")
    for part in re.split(r"[/\\]", name):
        if (part.strip(". ") and part.endswith((".", " "))) or _RESERVED.fullmatch(part.partition(".")[0]):
            raise ValueError(
                f"{what} {quoted(name)} holds {quoted(part)}, which Windows cannot keep as a file. Use another, such as '{part}-1'."
            )


def check_name(name: str) -> str:
    """A name of a-z, A-Z, 0-9, '_', '-' and '.', that may begin with subfolders. Raises ValueError on any other."""
    check_portable(name)
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if not re.fullmatch(rf"({part}/)*{part}", name) or ".." in name:
        raise ValueError(
            f"The name {quoted(name)} cannot be a file's here: use a-z, A-Z, 0-9, '_', '-' and '.', as in 'my-cat', or 'cats/my-cat' for a "
            "subfolder."
        )
    if name.lower().endswith(ENDINGS):
        raise ValueError(f"The name {quoted(name)} ends like a file's; remove the file extension.")
    return name


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, on the CPU, by the names they had before a network was wrapped for its training.

    Raises ValueError for a file that is cut, is something else, or holds NaN.
    """
    try:
        tensors, about = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except _DAMAGES as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged or no safetensors file ({quoted(str(error))}). Copy or download it again, or choose another."
        ) from error
    lost = next((k for k, t in tensors.items() if not bool(torch.isfinite(t.float()).all())), None)
    if lost is not None:
        raise ValueError(f"{path} is damaged: {quoted(lost)} holds NaN or infinity. Copy or download it again, or train it anew.")
    return {_WRAPPER.sub("", k): t for k, t in tensors.items()}, about or {}


def numbered(name: str, taken: Callable[[str], object]) -> str:
    """The name with the first number that is not taken."""
    return next(n for i in range(2, 100_000) if not taken(n := f"{name}_{i}"))


@dataclass(frozen=True)
class ModelFolder:
    """A model folder by ComfyUI's name for it; a `noun` names its files in errors, and `advice` ends the error about one that is not there.

    An `own` folder belongs to the pack, which registers models/NAME and the files that come with it in ComfyUI. Only safetensors are read.
    """

    name: str
    noun: str
    own: bool = False
    advice: str = ""

    @property
    def shipped(self) -> Path:
        """Files of this kind that come with the pack."""
        return SHIPPED / self.name

    @property
    def where(self) -> str:
        return f"models/{self.name}"

    def folders(self) -> list[Path]:
        """Where ComfyUI looks, in its order."""
        for folder in (self._models(), self.shipped) if self.own else ():
            folder_paths.add_model_folder_path(self.name, str(folder))
        return [Path(p) for p in folder_paths.get_folder_paths(self.name)]

    def _models(self) -> Path:
        return Path(folder_paths.models_dir) / self.name

    def _first(self) -> Path:
        """Where new files go; models/unet is the old name of models/diffusion_models."""
        known = self.folders()
        return self._models() if self.own else next((f for f in known if f.name != "unet"), known[0])

    def files(self) -> dict[str, Path]:
        """Files by name, such as 'cats/mine.safetensors'; the first folder wins."""
        found: dict[str, Path] = {}
        for folder in self.folders():
            for name in sorted(n for n in folder_paths.recursive_search(str(folder))[0] if n.endswith(".safetensors")):
                if (folder / name).is_file():  # a pipe of that name would never end
                    found.setdefault(Path(name).as_posix(), folder / name)
        return found

    def names(self) -> list[str]:
        return list(self.files())

    def find(self, name: str) -> Path:
        """The file of a name in `names()`, with or without its ending; nothing else can be reached."""
        known = self.files()
        found = known.get(name) or known.get(f"{name}.safetensors")
        if found is None:
            raise ValueError(f"There is no {self.noun} {quoted(name)}. Found in {self.where}: {listed(known)}.{self.advice}")
        return found

    def existing(self, name: str) -> Path | None:
        """A file that a name without an ending means already, in any of the folders."""
        return next((p for folder in self.folders() for ending in ENDINGS if (p := folder / f"{name}{ending}").is_file()), None)

    def taken(self, name: str) -> Path | None:
        """A file for which a new one cannot have the name."""
        return self.existing(name)

    def place(self, name: str) -> Path:
        """Where a file is written: where ComfyUI finds the one of that name, else into the first folder. What comes with the pack stays."""
        found = self.existing(check_name(name))
        new = self._first() / f"{name}.safetensors"
        return new if found is None or self.shipped in found.parents else found.with_name(new.name)

    def state(self, name: str) -> Path:
        """Where the state of a training is kept, from which it can be continued: among ComfyUI's outputs."""
        return Path(folder_paths.get_output_directory()) / "controlled_diffusion" / self.name / f"{check_name(name)}.safetensors"

    def choose(self, name: str, if_exists: str, also: Callable[[str], Path | None] = lambda name: None) -> str:
        """The name to train and save under: as given, or with a number where it is taken; `also` gives other files that must not be there.

        "refuse" and "number it" never touch a file that exists; "replace" writes over it; "continue" goes on from the training's own state
        and refuses where there is a file but no state of it.
        """

        def taken(name: str) -> Path | None:
            return self.taken(name) or also(name) or (state if (state := self.state(name)).exists() else None)

        found, resumable = taken(check_name(name)), self.state(name).exists()
        if found is None or if_exists == "replace" or (if_exists == "continue" and resumable):
            return name
        if if_exists == "number it":
            return numbered(name, taken)
        missing = f" There is no state of its training at {self.state(name)}." if if_exists == "continue" else ""
        raise ValueError(f"{quoted(name)} exists: {found}.{missing} Choose another name, or set if_exists to 'number it' or 'replace'.")

    def save(self, name: str, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> Path:
        """Writes a file whole or not at all, and gives its path."""
        path = self.place(name)
        save_atomically(tensors, path, about)
        return path
