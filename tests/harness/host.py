"""Boots the real ComfyUI inside this process, without a server, and loads the pack as ComfyUI does."""

import importlib.util
import logging
import sys
from pathlib import Path

import torch

from . import standins
from .comfyui import find_comfyui
from .environment import PRIVATE, ROOT, SetupError

PACK = "controlled_diffusion"

__all__ = ["PACK", "PRIVATE", "boot", "device_arguments", "load_pack"]


def boot(base_directory: Path, *arguments: str) -> Path:
    """Make ``import nodes``, ``import comfy.samplers`` and so on reach the real ComfyUI; return its folder.

    Models, inputs and outputs live in ``base_directory``. ``arguments`` are ComfyUI's own command line options. Only
    the first call in a process has an effect.
    """
    comfyui = find_comfyui()
    if comfyui is None:
        raise SetupError("There is no ComfyUI here yet. 'python . test' fetches it; COMFYUI_PATH names another one.")
    if "comfy.cli_args" not in sys.modules:
        logging.getLogger().setLevel(logging.ERROR)
        standins.install()
        sys.path.insert(0, str(comfyui))
        base_directory.mkdir(parents=True, exist_ok=True)
        parse_arguments(["--base-directory", str(base_directory), *device_arguments(), *arguments])
    return comfyui


def parse_arguments(arguments: list[str]) -> None:
    """Let ComfyUI read these options. It reads sys.argv, once, while `comfy.cli_args` is imported."""
    own, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = own


def device_arguments() -> list[str]:
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    return [] if has_accelerator else ["--cpu"]


def load_pack():
    """Import the pack under a fixed name, whatever its folder is called; its root stays off sys.path."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACK])
    return sys.modules[PACK]
