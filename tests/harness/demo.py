"""``python . demo``: every example workflow on the real server, its images in a folder and on one contact sheet."""

import contextlib
import json
import os
import queue
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from .commands import WORKFLOWS, choose, demo_parser, fail
from .contact_sheet import draw_contact_sheet
from .durations import Record
from .environment import ROOT, SetupError
from .host import device_arguments
from .server import Server, WorkflowError
from .workflow import to_prompt

SERVED = ROOT / ".host" / "server"
CONTACT_SHEET = "contact_sheet.png"
START = 15  # seconds that a server takes until it answers


@dataclass
class Result:
    """What came of one workflow: labeled images, or an error."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    images: list[tuple[str, Image.Image]] = field(default_factory=list)
    error: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name}  ({self.seconds:.1f} s)"


def main(arguments: list[str]) -> int:
    options = demo_parser().parse_args(arguments)
    try:
        return serve(options.port) if options.serve else run_all(choose(options.names), options.output, options.port, options.measure)
    except (SetupError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("\nStopped.")


def serve(port: int) -> int:
    """Leave the server running until Ctrl+C."""
    say("starting ComfyUI with the pack ...")
    with Server(base=SERVED, port=port) as server:
        say(f"Open {server.url} in a browser; the workflows are under Templates. Ctrl+C stops the server.")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                server.check_alive()
                time.sleep(1)
    say("\nstopped")
    return 0


def run_all(workflows: list[Path], output: Path, port: int, measure: bool = False) -> int:
    record, servers = Record.read(), servers_for(len(workflows))
    say(estimate(workflows, record.workflows, servers))
    with ThreadPoolExecutor(servers) as pool, contextlib.ExitStack() as running:  # a stop ends the servers, and thereby their work
        ports = [port, *[0] * (servers - 1)]
        idle = queue.SimpleQueue()
        for server in pool.map(started, [running] * servers, ports):
            idle.put(server)
        say("ComfyUI with the pack has started")
        results = list(pool.map(lambda workflow: run_on_any(idle, workflow), in_order(workflows, record.workflows)))
    results.sort(key=lambda result: result.name)
    if measure:
        record.workflows |= {result.name: round(result.cpu_seconds, 1) for result in results if not result.error}
        record.write()
    return report(results, output)


def servers_for(workflows: int) -> int:
    """Two servers share the cores of a machine without a GPU: the demo model is too small for more than one core."""
    return min(2, workflows, os.cpu_count() or 1) if device_arguments() else 1


def started(running: contextlib.ExitStack, port: int) -> Server:
    return running.enter_context(Server(port=port, threads=1 if device_arguments() else None))


def estimate(workflows: list[Path], recorded: dict[str, float], servers: int) -> str:
    """What the demo will take, by the seconds that each workflow took when it was recorded."""
    usual = sum(recorded.values()) / len(recorded) if recorded else 10.0
    minutes = (sum(recorded.get(path.stem, usual) for path in workflows) / servers + START) / 60
    last = ", the trainings last" if any(map(trains, workflows)) else ""
    return f"{count(workflows, 'workflow')}{last}; this takes about {max(1, round(minutes))} min on {count(range(servers), 'quiet core')}"


def count(things, noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''}"


def in_order(workflows: list[Path], recorded: dict[str, float]) -> list[Path]:
    """The trainings last, the longest of them first, so that the servers end together."""
    trainings = [path for path in workflows if trains(path)]
    return [*(path for path in workflows if path not in trainings), *sorted(trainings, key=lambda path: -recorded.get(path.stem, 0.0))]


def trains(workflow: Path) -> bool:
    return any(node["type"].endswith("Trainer") for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"])


def run_on_any(idle: queue.SimpleQueue, workflow: Path) -> Result:
    server = idle.get()
    try:
        return run_one(server, workflow)
    finally:
        idle.put(server)


def run_one(server: Server, workflow: Path) -> Result:
    result, start, cpu = Result(workflow.stem), time.monotonic(), server.cpu_seconds()
    try:
        prompt = to_prompt(workflow, server.object_info())
        history = server.run(prompt)
        result.images = label(server.images_by_node(history), prompt)
        result.cpu_seconds = server.cpu_seconds() - cpu
    except (WorkflowError, ValueError, json.JSONDecodeError) as error:
        result.error = str(error)
    result.seconds = time.monotonic() - start
    say(f"{result.name}: " + (f"failed: {result.error}" if result.error else f"{result.seconds:.1f} s, {len(result.images)} images"))
    return result


def label(images: dict[str, list[Image.Image]], prompt: dict) -> list[tuple[str, Image.Image]]:
    """Each image with the title of the node that made it, numbered when there are several."""
    labeled = []
    for node, batch in images.items():
        title = prompt[node]["_meta"]["title"]
        labeled += [(title if len(batch) == 1 else f"{title} {number}", image) for number, image in enumerate(batch, 1)]
    return labeled


def report(results: list[Result], output: Path) -> int:
    """Write the images and the contact sheet; say where, and what failed."""
    output.mkdir(parents=True, exist_ok=True)
    for result in results:
        save_images(result, output)
    rows = [(result.title, result.error or result.images) for result in results]
    draw_contact_sheet("Controlled Diffusion: the example workflows", rows).save(output / CONTACT_SHEET)
    say(f"images: {output}\ncontact sheet: {output / CONTACT_SHEET}")
    failed = [result.name for result in results if result.error]
    if failed or not results:
        return fail(f"Failed: {', '.join(failed)}." if failed else f"There is no workflow in {WORKFLOWS}.")
    return 0


def save_images(result: Result, output: Path) -> None:
    for old in output.glob(f"{result.name}-[0-9][0-9]-*.png"):
        old.unlink()
    for number, (title, image) in enumerate(result.images, 1):
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
        image.save(output / f"{result.name}-{number:02d}-{slug}.png")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
