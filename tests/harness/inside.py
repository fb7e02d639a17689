"""What runs inside the environment: ``inside.py demo|test|run|serve ...``, started by `commands` and `server`."""

import os
import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


def main(command: str, *arguments: str) -> int:
    # `harness` becomes importable; the pack's root must not: its `nodes` would hide ComfyUI's own nodes.py.
    sys.path[:] = [str(TESTS), *(path for path in sys.path[1:] if path and Path(path).resolve() != ROOT)]
    return {"demo": demo, "test": test, "run": run, "serve": serve}[command](list(arguments))


def demo(arguments: list[str]) -> int:
    from harness import demo

    return demo.main(arguments)


def test(arguments: list[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    import pytest

    return pytest.main(["-p", "harness.tiers", *arguments])


def run(arguments: list[str]) -> int:
    """Run a script of the repository with ComfyUI and the pack (as ``controlled_diffusion``) importable."""
    from harness import host

    host.boot(host.PRIVATE / "scripts", *os.environ.get("COMFYUI_OPTIONS", "").split())
    host.load_pack()
    sys.argv = arguments
    script = Path(arguments[0]).resolve()
    if ROOT in script.parents and TESTS not in script.parents:  # part of the pack, with relative imports
        name = ".".join((host.PACK, *script.relative_to(ROOT).with_suffix("").parts))
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(script), run_name="__main__")
    return 0


def serve(arguments: list[str]) -> int:
    from harness import serve

    return serve.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
