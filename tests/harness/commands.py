"""The command line of ``python .``: makes everything ready, then goes on inside the environment. Standard library only."""

import argparse
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from .comfyui import ensure_comfyui, surrounding
from .environment import DISK_ADVICE, ROOT, SetupError, ensure_environment, running_python_is_enough

WORKFLOWS = ROOT / "example_workflows"
HELP = """\
Controlled Diffusion: try it out, or work on it. Everything that is missing is set up inside this folder on first use.

  python . demo                     run every example workflow on the real ComfyUI; images go to demo_output/
  python . demo --serve             start ComfyUI with the pack and print the address to open in a browser
  python . demo --help              the other options of the demo
  python . test                     run the quick tests (5 minutes on two cores)
  python . test --all               run all tests (25 minutes on two cores)
  python . test [pytest arguments]  run the tests that they choose, for example: python . test tests/test_ddim.py -k round
  python . run SCRIPT [arguments]   run a script of this repository with ComfyUI importable,
                                    for example: python . run tests/demo/make_model.py --help

COMFYUI_OPTIONS are options of ComfyUI's command line for a script, such as --use-pytorch-cross-attention.
COMFYUI_PATH names another ComfyUI to use; COMFYUI_VERSION picks a pinned one (0.18.2, 0.27.0 or 0.30.0).
"""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    try:
        check_arguments(*arguments)
        python = prepare()
    except SetupError as error:
        return fail(str(error))
    except OSError as error:
        return fail(disk_sentence(error))
    except KeyboardInterrupt:
        return fail("Stopped. Run it again to go on.")
    return go_on_inside(python, arguments)


def check_arguments(command: str, *arguments: str) -> None:
    """Refuse what cannot work before the long set-up."""
    if command == "demo":
        choose(demo_parser().parse_args(arguments).names)
    elif command == "run" and not (arguments and Path(arguments[0]).is_file()):
        raise SetupError(f"'run' needs the path of a script, got {arguments[0] if arguments else 'nothing'!r}.")
    elif command not in ("run", "test"):
        raise SetupError(f"There is no command {command!r}; choose demo, test or run. 'python . --help' says what each does.")


def demo_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python . demo", description="Run the example workflows on the real ComfyUI.")
    parser.add_argument("names", nargs="*", metavar="name", help="run only these example workflows (default: all)")
    parser.add_argument("--serve", action="store_true", help="leave the server running and print its address")
    parser.add_argument("--output", metavar="DIR", type=Path, default=ROOT / "demo_output", help="where images go (default: demo_output)")
    parser.add_argument("--measure", action="store_true", help="record the seconds of each workflow, from which the estimate is made")
    parser.add_argument("--port", type=port_number, default=0, help="port of the server (default: any free one)")
    return parser


def choose(names: list[str], folder: Path = WORKFLOWS) -> list[Path]:
    """The workflows on the demo model with these names; all of them without names."""
    known = {path.stem: path for path in sorted(folder.glob("*.json")) if not needs_download(path)}
    wanted = [Path(name).stem for name in names] or list(known)
    for name in wanted:
        if name not in known:
            raise SetupError(f"There is no example workflow {name!r}; choose from {', '.join(known) or 'none, the folder is empty'}.")
    return [known[name] for name in wanted]


def needs_download(workflow: Path) -> bool:
    """Whether its loaders name published models, which do not come with the pack."""
    nodes = json.loads(workflow.read_text(encoding="utf-8")).get("nodes", [])
    return any(node.get("properties", {}).get("models") for node in nodes)


def port_number(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535, or 0 for any free one")
    return int(text)


def prepare() -> Path:
    """Get a Python with all packages, and ComfyUI.

    The Python that runs this is used when the pack sits in a ComfyUI and that Python has all that is needed (pytest
    included); nothing is ever installed into it. Otherwise a private environment is made in the checkout.
    """
    own = surrounding() and running_python_is_enough()
    python = Path(sys.executable) if own else ensure_environment()
    ensure_comfyui(python)
    return python


def go_on_inside(python: Path, arguments: list[str]) -> int:
    command = [str(python), str(Path(__file__).with_name("inside.py")), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there, exec would give the prompt back at once
        return subprocess.call(command)
    return os.execv(command[0], command)


def fail(sentence: str) -> int:
    sys.stderr.write(sentence + "\n")
    return 1


def disk_sentence(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk is full ({error.filename or ROOT}). {DISK_ADVICE}"
    return f"{error.strerror or error}: {error.filename or ROOT}. Check that this folder can be written to and run it again."
