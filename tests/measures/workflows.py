"""How easy the example workflows are to use: `python . run tests/measures/workflows.py` counts in the real frontend.

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
DEMO_LOADERS = ("DemoModelLoader", "DemoInstructModelLoader")


def links_to_rewire(workflow: dict) -> int:
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    leaving = [kinds[link[1]] for link in workflow["links"]]
    return max(map(leaving.count, DEMO_LOADERS))


def heights(page) -> tuple[float, float]:
    """(the tallest node, the tallest text box) of the open workflow"""
    return tuple(page.evaluate(TALLEST))


def main() -> None:
    say(head("workflow", "nodes", "links to rewire", "tallest node", "tallest text box"))
    with Server() as server:
        small_models.offer(server.base)
        with graph_image.opened_frontend(chromium.find(), server.url) as page:
            for path in sorted(WORKFLOWS.glob("*.json")):
                workflow = json.loads(path.read_text(encoding="utf-8"))
                graph_image.open_workflow(page, workflow)
                page.evaluate(graph_image.VIEW_AT_REST)
                sizes = (round(value) for value in heights(page))
                say(row(path.stem, len(workflow["nodes"]), links_to_rewire(workflow), *sizes))


if __name__ == "__main__":
    main()
