"""Embedding files: where they are kept, and their format."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch

from ....training.loop import save_atomically
from . import file_names

KIND = "embeddings"


def folder() -> Path:
    """Where new embeddings go: the first of the host's embeddings folders."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def path_of(name: str) -> Path:
    return folder() / f"{file_names.check_name(name)}.safetensors"


def state_of(name: str) -> Path:
    """Where the state of an embedding's training is kept."""
    return file_names.state_of(KIND, name)


def existing(name: str) -> Path | None:
    """A file that `embedding:name` could mean already: the host also looks in every subfolder."""
    for base in folder_paths.get_folder_paths("embeddings"):
        places = [Path(base), *(p for p in Path(base).rglob("*") if p.is_dir())]
        found = [p / f"{name}{ending}" for p in places for ending in ("", *file_names.READ) if (p / f"{name}{ending}").is_file()]
        if found:
            return found[0]
    return None


def taken(name: str) -> Path | None:
    """A file that a prompt could mean by this name already, or that it would mean no longer: `embedding:bear` finds 'toys/bear' too."""
    return existing(name) or existing(name.rpartition("/")[2])


def choose(name: str, if_exists: str) -> str:
    """The name to save under; see `file_names.choose`."""
    return file_names.choose(KIND, name, if_exists, taken)


def save(name: str, rows: dict[str, torch.Tensor], about: dict[str, str]) -> Path:
    """Writes the vectors of every encoder, (vectors, dim) by key, in the host's format; where there is a file of this name, beside it or
    in its place, so that prompts find this one."""
    path, found = path_of(name), existing(name)
    path = found.with_name(path.name) if found else path
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(rows, path, about)
    return path
