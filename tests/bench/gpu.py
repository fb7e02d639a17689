"""All tables of the measures page that come from a GPU, meant to take under 8 minutes: `python . run tests/bench/gpu.py [--only TABLE ...] [--again]`.

Finished tables are kept in a file, so that a run that was stopped goes on with the next one; at the end all are printed. Without a GPU the
same scripts run on small shapes: that shows that they work, and nothing about a GPU.
"""

import contextlib
import gc
import importlib
import io
import json
import sys
import time
import traceback

import comfy.model_management
import torch

from harness.environment import PRIVATE
from measures.script import options_of, say

MEAN_STEP = "--steps 10 --start 0.05 --end 0.95"  # all windows of Prompt-to-Prompt, open and closed
QUICK = "--steps 3 --repeats 1 --channels 1"
TABLES = {  # a script of this folder with its options: on a GPU, and without one
    "sd15": (f"overhead --full {MEAN_STEP}", f"overhead {QUICK}"),
    "sd15, bfloat16": ("overhead --full --dtype bfloat16 --repeats 3", f"overhead {QUICK} --dtype bfloat16 --only adapters"),
    "sdxl": (f"overhead --model sdxl --full {MEAN_STEP} --repeats 2", f"overhead {QUICK} --model sdxl --only adapters"),
    "flux": ("overhead --model flux --full --steps 4 --repeats 2 --channels 1 3", f"overhead {QUICK} --model flux"),
    "training": ("training --model sd15 --side 64 --steps 8 --repeats 2", "training --model tiny --steps 1 --repeats 1"),
    "checkpointing, sdxl": ("checkpointing --model sdxl --size 128", "checkpointing --size 8 --channels 32"),
    "checkpointing, flux": ("checkpointing --model flux --size 64", ""),
    "null-text": ("null_text --count 1", ""),
}


def table(command: str) -> str:
    """What a script prints."""
    name, *arguments = command.split()
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        importlib.import_module(f"bench.{name}").main(arguments)
    return f"`{command}`\n\n{lines.getvalue()}"


def measure(name: str, command: str) -> dict | None:
    """A table and how long it took; None where it could not be made, and the reason on the screen."""
    began = time.monotonic()
    try:
        text = table(command)
    except ModuleNotFoundError as error:
        say(f"{name}: left out, because the package {error.name} is not installed.")
        return None
    except Exception:
        say(f"{name}: failed.\n{traceback.format_exc()}")
        return None
    finally:
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
    say(f"{name}: {time.monotonic() - began:.0f} s")
    return {"text": text, "seconds": time.monotonic() - began}


def main() -> None:
    only = dict(nargs="*", metavar="TABLE", choices=list(TABLES), default=list(TABLES), help=f"of: {'; '.join(TABLES)}")
    again = dict(action="store_true", help="those that are kept too")
    o = options_of(__doc__, only=only, again=again, minutes=(8.0, "after which no further table is begun"))
    gpu, began = torch.cuda.is_available(), time.monotonic()
    say(f"On {torch.cuda.get_device_name()}." if gpu else "There is no GPU: small shapes on the CPU, whose figures say nothing of one.")
    path = PRIVATE / "measures" / ("gpu.json" if gpu else "gpu_on_cpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    commands = {name: TABLES[name][0 if gpu else 1] for name in o.only}
    wanted = [name for name, command in commands.items() if command and (o.again or name not in kept)]
    for name in wanted:
        if time.monotonic() - began > 60 * o.minutes:
            break
        if found := measure(name, commands[name]):
            kept[name] = found
            path.write_text(json.dumps(kept))
    for name in filter(kept.__contains__, o.only):
        say(f"\n**{name}**, {kept[name]['text']}")
    if missing := [name for name, command in commands.items() if command and name not in kept]:
        sys.exit(f"Not measured: {', '.join(missing)}. Run the script again for these alone.")


if __name__ == "__main__":
    main()
