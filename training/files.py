"""Files that are written whole or not at all, and never with NaN in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..guidance.errors import quoted


class NotWritten(OSError, ValueError):
    """A file could not be written; the one that was there before, if any, is unchanged."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside, what a disk refuses becomes NotWritten with the path and the next step."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise NotWritten(
            f"{path} could not be written: {error}. Free space on this disk, or allow ComfyUI to write into the folder, and run again."
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; at the end it is moved there, and after an error nothing of it is left.

    Missing folders are made. Raises NotWritten where the disk is full or does not allow it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # what a killed run left, or a link to somewhere else
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            os.chmod(temporary, mode)  # safetensors lets nobody else read its files
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors, whole or not at all. Raises ValueError for NaN and infinity, NotWritten where the disk does not take it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{path} is not written: {quoted(name)} holds NaN or infinity, so the file would be of no use. Lower the learning rate or the scale "
                "that made it so, and run again."
            )
    with whole_file(path) as temporary:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, metadata)
