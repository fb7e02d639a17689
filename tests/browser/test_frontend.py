"""The real frontend opens every example workflow, and converts it to the prompt that the rest of the suite runs."""

import json

import pytest

from browser.graph_image import image_of, open_workflow
from harness.commands import WORKFLOWS
from harness.environment import ROOT
from harness.graph import Graph
from harness.workflow import REROUTE, to_prompt
from measures.workflows import heights

pytestmark = pytest.mark.browser
SCREENS = ROOT / "demo_output" / "screens"
BOXES = "app.graph._nodes.map(n => [n.title, ...n.getBounding()])"
MISSING = "app.graph._nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"


def frontends_prompt(page) -> dict:
    return json.loads(page.evaluate("app.graphToPrompt().then(result => JSON.stringify(result.output))"))


def saved_by(page) -> dict:
    return json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))


def plain(value):
    """Since 1.58 the frontend writes the type of a curve beside its value, which the server takes off."""
    return value["__value__"] if isinstance(value, dict) and "__type__" in value else value


def without_titles(prompt: dict) -> dict:
    """The frontend translates the titles that a node type has by itself; ours are those of the server."""
    return {
        number: {"class_type": node["class_type"], "inputs": {name: plain(value) for name, value in node["inputs"].items()}}
        for number, node in prompt.items()
    }


def new_errors(page) -> list[str]:
    """Console errors that the bare frontend does not have."""
    return [error for error in page.take_errors() if error not in page.baseline]


def overlaps(boxes: list) -> list:
    """Pairs of nodes that cover each other."""
    return [
        (a, b)
        for index, (a, ax, ay, aw, ah) in enumerate(boxes)
        for b, bx, by, bw, bh in boxes[index + 1 :]
        if ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah
    ]


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_opens(page, server, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    open_workflow(page, workflow)
    image_of(page, SCREENS / f"{path.stem}.png")
    assert page.evaluate(MISSING) == []
    assert page.evaluate("Object.keys(app.graph.links).length || app.graph.links.size") == len(workflow["links"])
    assert overlaps(page.evaluate(BOXES)) == []
    tallest_node, tallest_text = heights(page)
    assert tallest_node <= 1200
    assert tallest_text <= 400
    prompt = frontends_prompt(page)
    assert without_titles(prompt) == without_titles(to_prompt(workflow, server.object_info()))
    assert new_errors(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_opens_in_nodes_2(page_of_nodes_2, path):
    page = page_of_nodes_2
    open_workflow(page, json.loads(path.read_text(encoding="utf-8")))
    page.wait_until("document.querySelectorAll('[data-node-id]').length >= app.graph._nodes.length")
    image_of(page, SCREENS / "nodes_2" / f"{path.stem}.png")
    assert page.evaluate(MISSING) == []
    assert overlaps(page.evaluate(BOXES)) == []
    assert new_errors(page) == []


@pytest.fixture
def tricky(server) -> dict:
    """Host nodes only: a group that grows, inputs that depend on a choice, a linked widget, a seed, a muted and a bypassed node."""
    graph = Graph("Tricky inputs", server.object_info())
    with graph.group("Images"):
        width = graph.add("PrimitiveInt", title="width", value=48)
        green = graph.add("EmptyImage", title="green", width=width, height=64, color=0x00FF00)
        blue = graph.add("EmptyImage", title="blue", width=48, height=64, color=0x0000FF)
        graph.add("RandomNoise", noise_seed=7)
    with graph.group("Work"):
        small = graph.add("ResizeImageMaskNode", input=blue, resize_type="scale by multiplier", **{"resize_type.multiplier": 0.5})
        inverted = graph.add("ImageInvert", image=green)
        batch = graph.add("BatchImagesNode", images=[inverted, blue, small])
        graph.add("StringConcatenate", string_a="several\nlines", string_b="b")
    with graph.group("Results"):
        graph.add("SaveImage", title="result", images=batch)
        graph.add("PreviewImage", title="muted", images=green)
    graph.note("# A note\n\nwith *Markdown*")
    workflow = graph.build()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    nodes[inverted.id]["mode"], nodes[len(graph.nodes)]["mode"] = 4, 2
    return workflow


def test_converter_equals_frontend(page, server, tricky):
    open_workflow(page, tricky)
    image_of(page, SCREENS / "tricky_inputs.png")
    prompt = frontends_prompt(page)
    for workflow in (tricky, saved_by(page)):
        assert without_titles(to_prompt(workflow, server.object_info())) == without_titles(prompt)
    assert overlaps(page.evaluate(BOXES)) == []
    assert new_errors(page) == []
    assert [image.size for image in server.images(server.run(prompt))] == [(48, 64)] * 3


def test_reroute_is_passed_through(page, server, tricky):
    first = tricky["links"][0]
    tricky["nodes"].append(
        {
            "id": 90,
            "type": REROUTE,
            "pos": [0, -200],
            "size": [75, 26],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [{"name": "", "type": "*", "link": 90}],
            "outputs": [{"name": "", "type": first[5], "links": [first[0]]}],
            "properties": {},
        }
    )
    tricky["links"].append([90, first[1], first[2], 90, 0, first[5]])
    first[1:3] = [90, 0]
    open_workflow(page, tricky)
    assert without_titles(to_prompt(tricky, server.object_info())) == without_titles(frontends_prompt(page))


def test_unknown_node_type_is_noticed(page, tricky):
    tricky["nodes"][0]["type"] = "NoSuchNode"
    open_workflow(page, tricky)
    assert page.evaluate(MISSING) == ["NoSuchNode"]
