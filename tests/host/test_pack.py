"""What every node of the pack owes its user."""

import json
import math
from pathlib import Path

import pytest
from controlled_diffusion.nodes import MODULES

import help_tables
from measures.workflows import links_to_rewire
from node_schema import widgets

ROOT = Path(__file__).resolve().parents[2]
NODES = [node for module in MODULES for node in module.NODES]
SNAPSHOT = Path(__file__).with_name("node_ids.json")
FROM_THE_HOST = ("sampler_name", "scheduler", "classifier_name", "adapter_name", "name")  # files, or what its version knows
HEADINGS = ["How to use it", "Inputs", "Typical values", "Compatibility and limits", "Paper"]
each_node = pytest.mark.parametrize("node", NODES, ids=lambda n: n.__name__)


def schema(node):
    return node.GET_SCHEMA()


def flat_inputs(inputs):
    """All inputs, those of dynamic combos and growing inputs too."""
    for given in inputs:
        yield given
        for option in getattr(given, "options", None) or ():
            yield from flat_inputs(getattr(option, "inputs", ()))


def help_page(node) -> str:
    return (ROOT / "nodes" / "web" / "docs" / f"{schema(node).node_id}.md").read_text(encoding="utf-8")


def workflows() -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "example_workflows").glob("*.json"))}


def test_every_file_and_every_node_class_is_listed():
    files = {p.stem for p in (ROOT / "nodes").glob("*.py")} - {"__init__"}
    assert files == {m.__name__.rsplit(".", 1)[1] for m in MODULES}
    for module in MODULES:
        made_here = [
            v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__ and hasattr(v, "define_schema")
        ]
        assert made_here == module.NODES


@each_node
def test_id_is_the_class_name_and_names_and_category_are_given(node):
    made = schema(node)
    assert made.node_id == node.__name__ and made.display_name and made.description and made.search_aliases
    assert made.category.startswith("controlled diffusion/")
    assert made.category.split("/")[1] in {"guidance", "inversion", "attention", "training", "demo"}


FOUND_BY = {
    "face": {"IPAdapterPatch", "DreamBoothTrainer"},
    "regional prompt": {"GuidanceChannel", "MultiCFGGuider", "MultiCFGPatch"},
    "style transfer": {"IPAdapterPatch"},
    "mask from text": {"DiffEditMask", "AttentionMapView", "P2PBlendMask"},
    "merge lora": {"CustomDiffusionMerge"},
    "word weight": {"P2PAttentionPatch", "WordWeights"},
    "sketch": {"SDEditSampler"},
    "apg": {"MultiCFGGuider", "MultiCFGPatch"},
    "cfg zero": {"MultiCFGGuider", "MultiCFGPatch"},
    "rescale cfg": {"MultiCFGGuider", "MultiCFGPatch"},
    "unsample": {"DDIMInverter", "RFInverter"},
    "inpaint": {"DiffEditMask", "DiffEditSampler", "SDEditSampler"},
    "train lora": {"DreamBoothTrainer"},
    "image prompt": {"IPAdapterPatch"},
}


@pytest.mark.parametrize("query", FOUND_BY)
def test_a_search_for_a_task_finds_its_nodes(query):
    """The frontend finds a node where all words of a query stand in its id, its name or one of its aliases; it also forgives typing errors."""
    texts = {n.__name__: [n.__name__, schema(n).display_name, *schema(n).search_aliases] for n in NODES}
    found = {name for name, own in texts.items() if any(all(word in text.lower() for word in query.split()) for text in own)}
    assert found >= FOUND_BY[query]


@each_node
def test_a_weight_can_be_typed_in_hundredths(node):
    """Without `round` the frontend rounds what is typed to the step's digits."""
    for given in flat_inputs(schema(node).inputs):
        if given.id in ("weight", "cfg"):
            assert (given.round or given.step) < 0.1, given.id


@each_node
def test_every_input_and_output_has_a_tooltip(node):
    for given in flat_inputs(schema(node).inputs):
        shown = given.template.input if hasattr(given, "template") else given
        assert shown.tooltip, given.id
    assert all(o.tooltip for o in schema(node).outputs)


@each_node
def test_a_hand_can_set_its_widgets(node):
    """At most 16 in all, since the classic canvas draws advanced ones too, and 10 before those are opened."""
    count = widgets(node)
    assert count[0] <= 16 and count[1] <= 10, count


@each_node
def test_the_host_can_describe_it_to_the_frontend(node):
    assert json.dumps(node.GET_NODE_INFO_V1())


@each_node
def test_a_help_page_has_the_headings_and_names_every_input(node):
    page = help_page(node)
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == HEADINGS
    assert len(help_tables.BLOCK.sub("", page).splitlines()) < 60
    missing = [i.id for i in flat_inputs(schema(node).inputs) if f"**{i.id}**" not in page]
    assert not missing


@each_node
def test_it_stands_in_an_example_workflow(node):
    used = {n["type"] for flow in workflows().values() for n in flow["nodes"]}
    assert schema(node).node_id in used


def test_every_workflow_has_a_thumbnail_and_a_note():
    for name, flow in workflows().items():
        assert (ROOT / "example_workflows" / f"{name}.jpg").stat().st_size > 1000, name
        assert any(n["type"] in ("Note", "MarkdownNote") for n in flow["nodes"]), name


def test_nodes_of_workflows_fit_a_screen():
    assert not [f"{name}: {n['type']}" for name, flow in workflows().items() for n in flow["nodes"] if n["size"][1] > 1200]


def test_model_of_a_workflow_is_changed_by_three_links():
    assert {name: links for name, flow in workflows().items() if (links := links_to_rewire(flow)) > 3} == {}


def test_notes_of_templates_are_six_lines():
    for name, flow in workflows().items():
        if name[0].isdigit():
            (note,) = (n["widgets_values"][0] for n in flow["nodes"] if n["type"] == "MarkdownNote")
            assert len([line for line in note.splitlines() if line]) <= 6, name


@each_node
def test_the_frontend_shows_numbers_as_they_are(node):
    """It shows and rounds to as many digits as the step has, or as `round` says."""
    for given in flat_inputs(schema(node).inputs):
        if getattr(given, "io_type", "") != "FLOAT" or not getattr(given, "step", None):
            continue
        shown = max(0, -math.floor(math.log10(given.step)))
        assert float(f"{given.default:.{shown}f}") == given.default, f"{given.id} {given.default} is shown with {shown} digits"


def promise_of(inputs, prefix: str = "") -> dict[str, list]:
    """[type, options that are the pack's own] of every input, by the name that workflows know it by."""
    found = {}
    for given in inputs:
        name = f"{prefix}{given.id}"
        options = [str(getattr(o, "key", o)) for o in getattr(given, "options", None) or ()]
        found[name] = [given.get_io_type(), [] if given.id in FROM_THE_HOST else options]
        for option in getattr(given, "options", None) or ():
            found |= promise_of(getattr(option, "inputs", ()), f"{name}.")
    return found


def test_ids_inputs_and_outputs_are_as_promised():
    """Users share workflow JSON: what changes here breaks theirs. Add to the snapshot, never take away."""
    promised = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    now = {
        schema(n).node_id: {"inputs": promise_of(schema(n).inputs), "outputs": [[o.display_name, o.io_type] for o in schema(n).outputs]}
        for n in NODES
    }
    for node_id, promise in promised.items():
        mine = now[node_id]
        before, after = ([k for k in found if "." not in k] for found in (promise["inputs"], mine["inputs"]))
        assert after[: len(before)] == before, node_id  # the frontend keeps values by their place
        for name, (kind, options) in promise["inputs"].items():
            assert mine["inputs"][name][0] == kind and {*options} <= {*mine["inputs"][name][1]}, f"{node_id}.{name}"
        assert mine["outputs"][: len(promise["outputs"])] == promise["outputs"], node_id
    assert now.keys() == promised.keys(), "a new node belongs into tests/host/node_ids.json"
