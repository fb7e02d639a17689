"""The blueprints as a user meets them: found in the node library, and opened in both canvases."""

import json

import pytest

from browser.graph_image import image_of, open_workflow
from browser.test_frontend import BOXES, MISSING, SCREENS, frontends_prompt, new_errors, overlaps, without_titles
from graphs import blueprints
from harness.environment import ROOT
from harness.workflow import to_prompt

pytestmark = pytest.mark.browser
PATHS = sorted((ROOT / "subgraphs").glob("*.json"))
STORES = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"
LIBRARY = f"{STORES}.get('nodeDef').nodeDefs.filter(each => each.name.startsWith('SubgraphBlueprint.'))"
INSIDE = "(() => { const node = app.graph._nodes.at(-1); app.canvas.openSubgraph(node.subgraph, node) })()"


@pytest.fixture(params=["page", pytest.param("page_of_nodes_2", marks=pytest.mark.slow)])
def either_page(request):
    """The classic canvas, then Nodes 2.0."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_blueprint_opens(either_page, server, path, request):
    """On a graph, where the frontend makes the prompt that the other tests run; and its inside, where nothing overlaps."""
    page, folder = either_page, SCREENS / request.node.callspec.params["either_page"]
    workflow = blueprints.tried(path, server.object_info(), blueprints.models_of(path)[0])
    open_workflow(page, workflow)
    assert without_titles(frontends_prompt(page)) == without_titles(to_prompt(workflow, server.object_info()))
    image_of(page, folder / f"{path.stem}.png")
    page.evaluate(INSIDE)
    page.wait_until("app.canvas.graph !== app.graph")
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView').then(() => 1)")
    image_of(page, folder / f"{path.stem}, inside.png")
    assert page.evaluate(MISSING.replace("app.graph", "app.canvas.graph")) == [] == overlaps(page.evaluate(BOXES.replace("app.graph", "app.canvas.graph")))
    assert new_errors(page) == []


def test_blueprints_are_in_the_node_library(page):
    page.wait_until(f"{LIBRARY}.length")
    found = dict(json.loads(page.evaluate(f"JSON.stringify({LIBRARY}.map(each => [each.display_name, each.category]))")))
    assert {path.stem for path in PATHS} <= set(found)
    assert {found[path.stem] for path in PATHS} == {"Subgraph Blueprints/Controlled Diffusion"}


def test_blueprint_is_found_by_its_name(page):
    """Typed into the search box, it stands on the canvas after Enter."""
    open_workflow(page, {"nodes": [], "links": [], "version": 0.4})
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle').then(() => 1)")
    page.wait_until("document.activeElement?.tagName === 'INPUT'")
    page.type("Edit Image by Words")
    page.wait_until("document.body.innerText.includes('Subgraph Blueprints')")
    page.press_enter()
    page.wait_until("app.graph._nodes.length === 1", timeout=10)
    assert page.evaluate("app.graph._nodes[0].title") == "Edit Image by Words"
