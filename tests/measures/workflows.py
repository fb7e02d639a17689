"""How easy the example workflows and nodes are to use: `python . run tests/measures/workflows.py` counts in the real frontend.

Links to rewire: those that leave the loaders of the demo model, or of the demo instruction model if these are more: to use another model, a
user moves them to its loader.
"""

import json
from pathlib import Path

import small_models
from browser import chromium, graph_image
from harness.server import Server
from measures.script import head, row, say

WORKFLOWS = Path(__file__).parents[2] / "example_workflows"
TALLEST = """(() => {
  const widgets = app.graph._nodes.flatMap(node => node.widgets ?? []).filter(each => ['customtext', 'MARKDOWN'].includes(each.type))
  return [Math.max(...app.graph._nodes.map(node => node.size[1])), Math.max(0, ...widgets.map(each => each.computedHeight ?? 0))]
})()"""
BEFORE = {  # when all workflows were made for the demo model
    "example workflows": "36",
    "links to rewire to use another model: mean, most": "10.9, 39",
    "most nodes in a workflow": "73",
    "tallest node": "2602",
    "tallest text box": "over 400",
    "most widgets of a node": "56",
    "most widgets before advanced ones are opened": "not counted",
}
DEMO_LOADERS = ("DemoModelLoader", "DemoInstructModelLoader")


def links_to_rewire(workflow: dict) -> int:
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    leaving = [kinds[link[1]] for link in workflow["links"]]
    return max(map(leaving.count, DEMO_LOADERS))


def heights(page) -> tuple[float, float]:
    """(the tallest node, the tallest text box) of the open workflow"""
    return tuple(page.evaluate(TALLEST))


def widgets_of_nodes() -> dict:
    """By display name. ComfyUI must be importable, which tests that only need `heights` do without."""
    from controlled_diffusion.nodes import MODULES

    from node_schema import widgets

    return {node.GET_SCHEMA().display_name: widgets(node) for module in MODULES for node in module.NODES}


def main() -> None:
    """What was counted before and what now; then every workflow, and the nodes with the most widgets."""
    rows = {}
    with Server() as server:
        small_models.offer(server.base)
        with graph_image.opened_frontend(chromium.find(), server.url) as page:
            for path in sorted(WORKFLOWS.glob("*.json")):
                workflow = json.loads(path.read_text(encoding="utf-8"))
                graph_image.open_workflow(page, workflow)
                page.evaluate(graph_image.VIEW_AT_REST)
                rows[path.stem] = len(workflow["nodes"]), links_to_rewire(workflow), *map(round, heights(page))
    counted = widgets_of_nodes()
    nodes, links, tallest, text = zip(*rows.values())
    every, shown = zip(*counted.values())
    now = (len(rows), f"{sum(links) / len(links):.1f}, {max(links)}", max(nodes), max(tallest), max(text), max(every), max(shown))
    say(head("", "before", "now"))
    for each in zip(BEFORE, BEFORE.values(), now):
        say(row(*each))
    say("\n" + head("workflow", "nodes", "links to rewire", "tallest node", "tallest text box"))
    for name, found in rows.items():
        say(row(name, *found))
    say("\n" + head("node", "widgets", "before advanced ones are opened"))
    for name, found in sorted(counted.items(), key=lambda item: item[1], reverse=True)[:12]:
        say(row(name, *found))


if __name__ == "__main__":
    main()
