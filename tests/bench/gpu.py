"""All tables of the measures page that come from a GPU: `python . run tests/bench/gpu.py [--only TABLE ...] [--again] [--keep FILE]`.

Finished tables are kept in a file and printed at once, so that a run that was stopped goes on with the next one: where a machine is lent for
minutes, give a file that comes back with --keep. A table that fails leaves the others. Nothing needs the network; `training` is left out where
`diffusers` is not installed. Expected on one data-centre GPU, in seconds, the models being made included: sd15 90, sdxl 150, flux 150, training
90, sd15 in bfloat16 20, checkpointing 30 and 60, null-text 60. That is more than 8 minutes with all of them: --minutes 8, the default, begins no
table after that, and a second run makes what is left. Without a GPU the same scripts run on small shapes: that shows that they work, and nothing
about a GPU.
"""

import contextlib
import gc
import importlib
import io
import json
import sys
import time
import traceback
from pathlib import Path

import comfy.model_management
import torch

from harness.environment import PRIVATE
from measures.script import options_of, say

MEAN_STEP = "--steps 10 --start 0.05 --end 0.95"  # all windows of Prompt-to-Prompt, open and closed
QUICK = "--steps 3 --repeats 1 --channels 1"
TABLES = {  # a script of this folder with its options: on a GPU, and without one; the most wanted first
    "sd15": (f"overhead --full {MEAN_STEP} --repeats 3", f"overhead {QUICK}"),
    "sdxl": (f"overhead --model sdxl --full {MEAN_STEP} --repeats 2", f"overhead {QUICK} --model sdxl --only adapters"),
    "training": ("training --model sd15 --side 64 --steps 8 --repeats 2", "training --model tiny --steps 1 --repeats 1"),
    "flux": ("overhead --model flux --full --steps 4 --repeats 2 --channels 1 3", f"overhead {QUICK} --model flux"),
    "sd15, bfloat16": ("overhead --full --dtype bfloat16 --repeats 3 --only attention", f"overhead {QUICK} --dtype bfloat16 --only adapters"),
    "checkpointing, sdxl": ("checkpointing --model sdxl --size 128", "checkpointing --model sdxl --size 8 --narrow"),
    "checkpointing, flux": ("checkpointing --model flux --size 64", "checkpointing --model flux --size 8 --narrow"),
    "null-text": ("null_text --count 1", "null_text --count 1 --steps 4"),
}


def table(command: str, lines: io.StringIO) -> None:
    """Runs a script, which prints into `lines`."""
    name, *arguments = command.split()
    with contextlib.redirect_stdout(lines):
        importlib.import_module(f"bench.{name}").main(arguments)


def measure(name: str, command: str) -> dict | None:
    """A table and how long it took; None where it could not be made, and on the screen the reason and what there was until then."""
    began, lines = time.monotonic(), io.StringIO()
    try:
        table(command, lines)
    except ModuleNotFoundError as error:
        say(f"{name}: left out, because the package {error.name} is not installed.")
        return None
    except (Exception, SystemExit):
        say(f"{name}: failed.\n{lines.getvalue()}\n{traceback.format_exc()}")
        return None
    finally:
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
    return {"text": f"`{command}`\n\n{lines.getvalue()}", "seconds": time.monotonic() - began}


def tell(name: str, found: dict) -> None:
    say(f"\n**{name}**, {found['seconds']:.0f} s, {found['text']}")


def main() -> None:
    only = dict(nargs="*", metavar="TABLE", choices=list(TABLES), default=list(TABLES), help=f"of: {'; '.join(TABLES)}")
    again = dict(action="store_true", help="none that was kept counts")
    keep = dict(type=Path, metavar="FILE", help="where finished tables are; default: one in the folder of measures")
    o = options_of(__doc__, only=only, again=again, keep=keep, minutes=(8.0, "after which no further table is begun"))
    gpu, began = torch.cuda.is_available(), time.monotonic()
    say(f"On {torch.cuda.get_device_name()}." if gpu else "There is no GPU: small shapes on the CPU, whose figures say nothing of one.")
    path = o.keep or PRIVATE / "measures" / ("gpu.json" if gpu else "gpu_on_cpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() and not o.again else {}
    commands = {name: TABLES[name][0 if gpu else 1] for name in o.only}
    for name, command in commands.items():
        if command and name not in kept and time.monotonic() - began < 60 * o.minutes and (found := measure(name, command)):
            kept[name] = found
            path.write_text(json.dumps(kept))
        if name in kept:
            tell(name, kept[name])
    if missing := [name for name, command in commands.items() if command and name not in kept]:
        sys.exit(f"Not measured: {', '.join(missing)}. Run the script again for these alone.")


if __name__ == "__main__":
    main()
