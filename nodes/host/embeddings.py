"""Embedding files: where they lie, and what the host reads from them."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch

from ...training.loop import save_atomically
from . import naming

KIND = "embeddings"


def folder() -> Path:
    """Where new embeddings go: the first of the host's embeddings folders."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def path_of(name: str) -> Path:
    return folder() / f"{naming.check_name(name)}.safetensors"


def state_of(name: str) -> Path:
    """Where the state of an embedding's training is kept."""
    return naming.state_of(KIND, name)


def existing(name: str) -> Path | None:
    """A file that `embedding:name` could mean already: the host also looks in every subfolder."""
    for base in folder_paths.get_folder_paths("embeddings"):
        places = [Path(base), *(p for p in Path(base).rglob("*") if p.is_dir())]
        found = [p / f"{name}{ending}" for p in places for ending in ("", *naming.READ) if (p / f"{name}{ending}").is_file()]
        if found:
            return found[0]
    return None


def choose(name: str, if_exists: str) -> str:
    """The name to save under; see `naming.choose`."""
    return naming.choose(KIND, name, if_exists, existing)


def save(name: str, rows: dict[str, torch.Tensor], about: dict[str, str]) -> Path:
    """Writes the vectors of every encoder, (vectors, dim) by key, in the host's format."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(rows, path, about)
    return path
