"""The server process: ComfyUI's own main.py, unchanged, ended together with the process that started it."""

import os
import runpy
import sys
import threading

from .comfyui import find_comfyui


def main(arguments: list[str]) -> int:
    threading.Thread(target=leave_with_parent, daemon=True).start()
    if "--cpu" in arguments:  # with a GPU, ComfyUI must be the first to import torch
        from . import standins

        standins.install()
    comfyui = find_comfyui()
    sys.path.insert(0, str(comfyui))
    sys.argv = [str(comfyui / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def leave_with_parent() -> None:
    """Our standard input is a pipe that the parent holds; it ends when the parent does, even when killed."""
    while os.read(0, 1024):
        pass
    os._exit(0)
