"""Inversions as files: numbers, text, tensors and any nesting of them in one safetensors file.

The nesting is JSON in the metadata, one entry a name; tensors stand in it by their names. Tensors keep their precision and every bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..guidance.errors import quoted

FORMAT, VERSION = "controlled_diffusion.inversion", 1
_FRAME = ("format", "version")


def packed(value, name: str, tensors: dict[str, torch.Tensor]):
    """What JSON takes for a value; its tensors are added to `tensors`. Refuses, by `name`, objects that are no plain values."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise ValueError(f"{quoted(name)} is a tensor of {value.dtype} that safetensors cannot keep. Invert without it.")
        key = f"{len(tensors):05d}.{name}"  # names alone may be equal: a key may have a dot
        tensors[key] = value.cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, (list, tuple)):
        items = [packed(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(k, (str, int)) for k in value):
        return {"dict": [[k, packed(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    raise ValueError(
        f"{quoted(name)} is a {type(value).__name__}, which a file cannot keep: only tensors, numbers and text. Invert without it, or use "
        "the inversion in its workflow without saving it."
    )


def unpacked(value, tensors: Mapping[str, torch.Tensor]):
    """The value that `packed` was given."""
    if isinstance(value, list):
        return [unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpacked(v, tensors) for v in content)
    return {k: unpacked(v, tensors) for k, v in content}


def save(values: Mapping[str, object], path: Path) -> None:
    """Writes named values to a temporary name and moves them to `path`, which must not exist.

    Raises ValueError for a value that no file can keep and for NaN, FileExistsError for a file that is there.
    """
    tensors = {}
    entries = {k: json.dumps(packed(v, k, tensors)) for k, v in values.items()}
    lost = next((k for k, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())), None)
    if lost is not None:
        raise ValueError(
            f"{quoted(lost.partition('.')[2])} holds NaN or infinity, so the file would be of no use. Invert again, at a lower cfg."
        )
    path.open("xb").close()  # the name is ours from here on
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, temporary, entries | {"format": FORMAT, "version": str(VERSION)})
        shutil.copymode(path, temporary)  # safetensors lets nobody else read its files
        os.replace(temporary, path)
    except BaseException:
        path.unlink()
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict:
    """The values of a file that `save` wrote, on the CPU; refuses anything else, and a file that is cut or whose structure is damaged."""
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path.name} is no inversion: its metadata lacks the format {quoted(FORMAT)}. Choose a file of Save Inversion.")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path.name} has format version {metadata.get('version')}; this pack reads {VERSION}. Update the pack, or invert again."
        )
    try:
        return {k: unpacked(json.loads(v), tensors) for k, v in metadata.items() if k not in _FRAME}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is damaged: its metadata do not fit its tensors. Take another copy, or invert again.") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(metadata, tensors); ordinary tensors, which take gradients in a node too."""
    try:
        with torch.inference_mode(False), safe_open(path, "pt") as file:
            return file.metadata() or {}, {k: file.get_tensor(k).clone() for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: it is damaged or no safetensors file ({error}). Choose another.") from error
