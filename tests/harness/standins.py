"""Lets ComfyUI start beside a CPU build of torch, for which torchvision and torchaudio have no compiled part.

ComfyUI imports both packages at start; neither is used by this pack. Where the real ones work, nothing is done.
"""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import torch

TORCHVISION_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_definitions = []  # a torch.library.Library takes its operators away when it is collected


def install() -> None:
    """Put stand-ins in place of what does not load here; to be called before the first import of ComfyUI."""
    if not _definitions and not torchvision_loads():
        define_torchvision_operators()
    if not torchaudio_loads():
        sys.modules.update(empty_modules("torchaudio", "torchaudio.functional", "torchaudio.transforms"))


def torchvision_loads() -> bool:
    """Whether torchvision's compiled part fits this torch. Found without importing it: a failed import leaves traces."""
    spec = importlib.util.find_spec("torchvision")
    libraries = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("_C*")] if spec else []
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def define_torchvision_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in TORCHVISION_OPERATORS:
        library.define(schema)
    _definitions.append(library)


def torchaudio_loads() -> bool:
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        return False
    return True


def empty_modules(*names: str) -> dict[str, types.ModuleType]:
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules
