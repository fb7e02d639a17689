"""Loads the pack as ``controlled_diffusion``; keeps its root off sys.path, where its ``nodes`` folder would hide ComfyUI's."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]

from compare import exact  # noqa: E402
from harness.host import load_pack  # noqa: E402

torch.set_num_threads(1)
load_pack()
exact()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what is there now stays: Python need not look through it a hundred times


@pytest.fixture(scope="session")
def server():
    """The real server with the pack installed, started by the first test that asks for it; see `harness.server.Server`."""
    from harness.server import Server

    with Server() as running:
        yield running
