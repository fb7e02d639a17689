"""Values as files: numbers, text, tensors and any nesting of them in one safetensors file that knows whether it is whole.

The nesting is JSON in the metadata, one entry a name; tensors stand in it by their names. Tensors keep their precision and every bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT, VERSION = "controlled_diffusion.inversion", 1
_FRAME = ("format", "version", "checksum")


class Packing:
    """Turns values into JSON and collects their tensors, each of which is kept once however often it occurs."""

    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple, str] = {}

    def pack(self, value, where: str):
        """What JSON takes for a value; `where` is what to call it in errors. Refuses objects that are no plain values, by name."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            return {"tensor": self._name(value, where)}
        if isinstance(value, (list, tuple)):
            items = [self.pack(v, f"{where}.{i}") for i, v in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict) and all(isinstance(k, (str, int)) for k in value):
            return {"dict": [[k, self.pack(v, f"{where}.{k}")] for k, v in value.items()]}
        raise ValueError(
            f"'{where}' is a {type(value).__name__}, which a file cannot keep: only tensors, numbers and text. Invert without it, or use "
            "the inversion in its workflow without saving it."
        )

    def _name(self, tensor: torch.Tensor, where: str) -> str:
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise ValueError(f"'{where}' is a tensor of {tensor.dtype} that safetensors cannot keep. Invert without it.")
        own = tensor.cpu().clone(memory_format=torch.contiguous_format)
        known = (own.dtype, own.shape, _digest(own))
        if known not in self._names:
            self._names[known] = f"{len(self.tensors):05d}.{where}"
            self.tensors[self._names[known]] = own
        return self._names[known]


def unpacked(value, tensors: Mapping[str, torch.Tensor]):
    """The value that `Packing.pack` was given."""
    if isinstance(value, list):
        return [unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "tuple":
        return tuple(unpacked(v, tensors) for v in held)
    return {k: unpacked(v, tensors) for k, v in held}


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(0, dtype=torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=16).hexdigest()


def _checksum(entries: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    lines = [*(f"{k}={v}" for k, v in sorted(entries.items())), *(f"{k}:{_digest(t)}" for k, t in sorted(tensors.items()))]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def save(values: Mapping[str, object], path: Path) -> None:
    """Writes named values to a temporary name and moves them to `path`, which must not exist.

    Raises ValueError for a value that no file can keep, FileExistsError for a file that is there.
    """
    packing = Packing()
    entries = {k: json.dumps(packing.pack(v, k)) for k, v in values.items()}
    frame = {"format": FORMAT, "version": str(VERSION), "checksum": _checksum(entries, packing.tensors)}
    path.open("xb").close()  # the name is ours from here on
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file(packing.tensors, temporary, entries | frame)
        shutil.copymode(path, temporary)  # safetensors lets nobody else read its files
        os.replace(temporary, path)
    except BaseException:
        path.unlink()
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict:
    """The values of a file that `save` wrote, on the CPU; refuses anything else, and what is damaged."""
    about, tensors = _read(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path.name} is no inversion: its metadata lacks the format '{FORMAT}'. Choose a file of Save Inversion.")
    if about.get("version") != str(VERSION):
        raise ValueError(
            f"{path.name} has format version {about.get('version')}; this pack reads {VERSION}. Update the pack, or invert again."
        )
    entries = {k: v for k, v in about.items() if k not in _FRAME}
    if about.get("checksum") != _checksum(entries, tensors):
        raise ValueError(f"{path.name} is damaged: what it holds does not fit its checksum. Take another copy, or invert again.")
    return {k: unpacked(json.loads(v), tensors) for k, v in entries.items()}


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(metadata, tensors); ordinary tensors, of which gradients can be asked in a node too."""
    try:
        with torch.inference_mode(False), safe_open(path, "pt") as file:
            return file.metadata() or {}, {k: file.get_tensor(k).clone() for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: it is damaged or no safetensors file ({error}). Choose another.") from error
