"""Images of every template after its run, in both canvases, to look at: `python . run tests/browser/screens.py [--only START ...]`.

The models are those of tests/small_models.py: what they draw is noise, but every node shows what it shows to a user. The images go to
demo_output/screens; nodes that cover each other are named.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from browser import chromium
from browser.graph_image import image_of, open_workflow, opened_frontend
from browser.test_frontend import BOXES, overlaps
from harness.commands import WORKFLOWS, needs_download
from harness.environment import ROOT
from harness.server import Server
from small_models import offer, small, write_small_models

FOLDER = ROOT / "demo_output" / "screens" / "after"
NODES_2 = "app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {}).then(() => 1)"
FIT = "app.extensionManager.command.execute('Comfy.Canvas.FitView').then(() => 1)"


def run_in(page, server: Server) -> None:
    """Run the open workflow with few steps; its nodes show what they made."""
    prompt = json.loads(page.evaluate("app.graphToPrompt().then(result => JSON.stringify(result.output))"))
    number, refused = server.submit(small(prompt), page.evaluate("app.api.clientId"))
    if refused:
        raise refused
    while server.history(number) is None:
        time.sleep(0.5)
    time.sleep(2.0)  # images load


def screens(page, server: Server, path: Path) -> None:
    open_workflow(page, json.loads(path.read_text(encoding="utf-8")))
    run_in(page, server)
    for folder, nodes_2 in (("classic", "false"), ("nodes_2", "true")):
        page.evaluate(NODES_2.format(nodes_2))
        time.sleep(1.0)
        page.evaluate(FIT)
        image_of(page, FOLDER / folder / f"{path.stem}.png")
        for pair in overlaps(page.evaluate(BOXES)):
            sys.stdout.write(f"{path.stem}, {folder}: {' and '.join(pair)} overlap\n")
    page.evaluate(NODES_2.format("false"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="START", help="templates whose names begin so, as 01")
    only = tuple(parser.parse_args().only or [""])
    with Server(threads=1) as server:
        offer(server.base)
        write_small_models(server.base / "models")
        with opened_frontend(chromium.find(), server.url) as page:
            for path in sorted(WORKFLOWS.glob("*.json")):
                if needs_download(path) and path.name.startswith(only):
                    screens(page, server, path)
                    sys.stdout.write(f"{path.stem}\n")


if __name__ == "__main__":
    main()
