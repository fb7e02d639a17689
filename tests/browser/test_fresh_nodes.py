"""What the real frontend sends for a fresh node is what the node takes: every widget type of ComfyUI that the pack uses."""

import json

import pytest

from browser.test_frontend import plain
from harness.environment import ROOT
from harness.workflow import DYNAMIC_COMBO, inputs_of

pytestmark = pytest.mark.browser
PROMISED = json.loads((ROOT / "tests" / "host" / "node_ids.json").read_text(encoding="utf-8"))
FRESH = """
(async () => {
    for (const old of [...app.graph._nodes]) app.graph.remove(old);  // not clear(): a node of the same number would take over its values
    const node = LiteGraph.createNode(%s);
    app.graph.add(node);
    for (const [name, value] of Object.entries(%s)) {
        const widget = node.widgets.find(w => w.name === name);
        widget.value = value;
        widget.callback?.(value);
    }
    await new Promise(requestAnimationFrame);
    return JSON.stringify((await app.graphToPrompt()).output[node.id].inputs);
})()
"""


def sent(page, node_id: str, **chosen) -> dict:
    """The inputs of a fresh node in the prompt that the frontend makes, after its combos were set."""
    return json.loads(page.evaluate(FRESH % (json.dumps(node_id), json.dumps(chosen))))


def dynamic_options() -> list[tuple[str, str, str]]:
    """(node, dynamic combo, option) of the pack."""
    combos = [(node, name, given) for node, promise in PROMISED.items() for name, given in promise["inputs"].items()]
    return [(node, name, option) for node, name, (kind, options) in combos if kind == DYNAMIC_COMBO for option in options]


def check_values(server, node_id: str, values: dict) -> None:
    """Every widget of the node as the server describes it has a value, and one that the node takes."""
    for each in inputs_of(server.object_info()[node_id], values):
        if not each.is_widget or ("." not in each.name and each.name not in PROMISED[node_id]["inputs"]):
            continue
        value = values[each.name]
        assert value is not None, each.name
        if each.type in ("INT", "FLOAT"):
            assert each.options["min"] <= value <= each.options["max"], each.name
        elif each.choices:
            assert value in each.choices, each.name


@pytest.mark.parametrize("node_id", PROMISED)
def test_widgets_of_a_fresh_node_are_accepted(page, server, node_id):
    check_values(server, node_id, sent(page, node_id))


@pytest.mark.parametrize(("node_id", "combo", "option"), dynamic_options())
def test_every_option_of_a_dynamic_combo_brings_its_widgets(page, server, node_id, combo, option):
    values = sent(page, node_id, **{combo: option})
    assert values[combo] == option
    check_values(server, node_id, values)


def test_a_curve_as_the_frontend_draws_it_runs(page, server):
    """It sends a dictionary of points, and never null."""
    values = sent(page, "GuidanceSchedule", shape="curve")
    assert plain(values["shape.curve"])["points"]
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    server.run({"1": {"class_type": "GuidanceSchedule", "inputs": values}, "2": shown})


def test_nodes_2_shows_every_option_without_an_error(page_of_nodes_2):
    page = page_of_nodes_2
    for node_id, combo, option in dynamic_options():
        sent(page, node_id, **{combo: option})
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert [error for error in page.take_errors() if error not in page.baseline] == []
