"""Names of what is trained: files that stay in their folder and are never overwritten unasked, and the states of trainings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import folder_paths

READ = (".safetensors", ".pt", ".bin")
IF_EXISTS = ("number it", "refuse", "replace", "continue")


def check_name(name: str) -> str:
    """A name of letters, digits, '_', '-' and '.', that may begin with subfolders. Raises ValueError on any other."""
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if not re.fullmatch(rf"({part}/)*{part}", name) or ".." in name:
        raise ValueError(
            f"The name '{name}' cannot be a file's here: use letters, digits, '_', '-' and '.', as in 'my-cat', or 'cats/my-cat' for a subfolder."
        )
    if name.lower().endswith((*READ, ".")):
        raise ValueError(f"The name '{name}' ends like a file's; leave the ending away.")
    return name


def state_of(kind: str, name: str) -> Path:
    """Where the state of a training is kept, from which it can be continued: among the host's outputs."""
    return Path(folder_paths.get_output_directory()) / "controlled_diffusion" / kind / f"{check_name(name)}.safetensors"


def choose(kind: str, name: str, if_exists: str, existing: Callable[[str], Path | None]) -> str:
    """The name under which to save: as given, or with a number where it is taken. `existing` gives the file that has a name, if any.

    "refuse" and "number it" never touch a file that exists; "replace" writes over it; "continue" goes on from the training's own state
    and refuses where there is a file but no state of it.
    """
    if if_exists not in IF_EXISTS:
        raise ValueError(f"There is no way '{if_exists}' with an existing file; choose one of {', '.join(IF_EXISTS)}.")

    def taken(name: str) -> Path | None:
        return existing(name) or (state_of(kind, name) if state_of(kind, name).exists() else None)

    found = taken(check_name(name))
    if found is None or if_exists == "replace":
        return name
    if if_exists == "number it":
        return next(n for i in range(2, 100_000) if taken(n := f"{name}_{i}") is None)
    if if_exists == "continue" and state_of(kind, name).exists():
        return name
    missing = f" There is no state of its training at {state_of(kind, name)}." if if_exists == "continue" else ""
    raise ValueError(f"'{name}' exists: {found}.{missing} Choose another name, or set if_exists to 'number it' or 'replace'.")
